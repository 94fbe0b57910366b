"""FedAvg, and its variants with another pace or another objective of the clients."""

from typing import Unpack

import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Unlimited
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import barrier, deadline
from fedjax_het.problem import Problem


@register
def fedavg(problem: Problem, **training: Unpack[TrainingKeywords]) -> Algorithm:
    r"""Federated averaging: $w \leftarrow \sum_i n_i w_i / \sum_i n_i$ over the cohort.

    Args:
      problem: model, data and fleet.
      **training: fields of `TrainingOptions`; `learning_rate` is required.

    Returns:
      The algorithm.

    References:
      McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*,
      2017, Algorithm 1.
    """
    return parts.full_model("fedavg", problem, TrainingOptions.parse(training), pace=barrier())


@register
def fedprox(
    problem: Problem,
    *,
    mu: float = 0.1,
    deadline_s: Unlimited = float("inf"),
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""FedProx: minimises $F_i(w) + \frac{\mu}{2} \lVert w - w_t \rVert^2$ and keeps partial work.

    With a deadline, a slow device returns the steps that it finished instead of being dropped.
    `mu=0` without a deadline equals FedAvg bit for bit.

    Args:
      problem: model, data and fleet.
      mu: factor of the proximal term; the paper uses 0.001 to 1.
      deadline_s: virtual seconds after which the server closes the round; inf for no deadline.
      **training: fields of `TrainingOptions`.

    References:
      Li et al., *Federated Optimization in Heterogeneous Networks*, 2020, Algorithm 2.
    """
    require(np.isfinite(mu) and mu >= 0, f"mu = {mu}", "must be at least 0", "try 0.001 to 1")
    options = TrainingOptions.parse(training)
    parts.require_feasible(problem, options, deadline_s, whole=False)
    pace = deadline("partial") if np.isfinite(deadline_s) else barrier()
    return parts.full_model(
        "fedprox", problem, options, pace=pace, deadline_s=deadline_s, proximal=mu
    )


@register
def drop_stragglers(
    problem: Problem, *, deadline_s: float, **training: Unpack[TrainingKeywords]
) -> Algorithm:
    """FedAvg with a deadline: clients that arrive later are not in the mean.

    A round without arrivals does not change the model.

    Args:
      problem: model, data and fleet.
      deadline_s: virtual seconds after which the server closes the round.
      **training: fields of `TrainingOptions`.

    References:
      The "drop" baseline of Li et al. 2020 and of the SALF and ADEL-FL papers. Here the mean is
      over the clients that finished (the code of ADEL-FL divides by the number of all clients).
    """
    options = TrainingOptions.parse(training)
    parts.require_feasible(problem, options, deadline_s, whole=True)
    return parts.full_model(
        "drop_stragglers", problem, options, pace=deadline("drop"), deadline_s=deadline_s
    )
