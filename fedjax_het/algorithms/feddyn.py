"""FedDyn: every client's objective has a linear term that makes the optima of all agree."""

from typing import Unpack

import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.client_memory import require_room
from fedjax_het.algorithms.dynamic import pull_back, regularised
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Unlimited
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import barrier
from fedjax_het.problem import Problem


@register(options=UniformTraining)
def feddyn(
    problem: Problem,
    *,
    alpha: float = 0.01,
    memory_bytes: Unlimited = 16e9,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""FedDyn: clients minimise $F_i(w) - \langle g_i, w \rangle + \frac{\alpha}{2} |w - w_t|^2$.

    Then $g_i \leftarrow g_i - \alpha \Delta_i$, which is the gradient of $F_i$ where the client
    stopped, if it minimised exactly. The server keeps $h \leftarrow h - \frac{\alpha}{n} \sum_i
    \Delta_i$, the mean of the g_i, and moves to $w \leftarrow \frac{1}{|S|} \sum_i w_i -
    h / \alpha$. Where nothing changes any more, the mean of the clients' gradients is zero, however
    long they train.

    A client sends its update only; a device holds one array per parameter more. The simulation
    keeps n models. The g_i follow the updates that the merge gets, changed by uploads or not.

    Args:
      problem: model, data and fleet.
      alpha: factor of the proximal term; the paper uses 0.001 to 0.1.
      memory_bytes: limit of the bytes of all clients' gradients.
      **training: fields of `UniformTraining`; `weighting="samples"` weighs all sums over clients by
        n_i over the mean of all clients.

    References:
      Acar et al., *Federated Learning Based on Dynamic Regularization*, 2021, Algorithm 1.
    """
    require(np.isfinite(alpha) and alpha > 0, f"alpha = {alpha}", "must be positive", "try 0.01")
    options = UniformTraining.parse(training)
    require_room(problem, "feddyn", memory_bytes)
    relative = parts.relative_weights(problem, options)
    base = parts.full_model("feddyn", problem, options, pace=barrier(), kept=1, amend=relative)
    local = options.local_update(problem, proximal=alpha, linear=pull_back)
    return regularised(base._replace(local=local), problem, alpha)
