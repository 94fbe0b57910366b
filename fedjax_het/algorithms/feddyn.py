"""FedDyn: every client's objective has a linear term that makes the optima of all agree."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.client_memory import LAST_STEP, added, no_rows, require_room, row_of
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Aggregator, Algorithm, Chunk, Merged, Task, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.memory import Buffers, Memory
from fedjax_het.contract.paces import Paces
from fedjax_het.problem import Problem


class State(NamedTuple):
    """Gradients that FedDyn keeps.

    Attributes:
      own: gradients $g_i$ of all clients, float32[n, ...] per parameter; buffers of the merge, None
        while they are merged.
      mean: their mean $h$ over all clients, in the shapes of the parameters.
    """

    own: PyTree
    mean: PyTree


class Acc(NamedTuple):
    """Accumulator of a merge: the sums of the mean, and the gradients of all clients."""

    sums: PyTree
    own: PyTree


@register(options=UniformTraining)
def feddyn(
    problem: Problem,
    *,
    alpha: float = 0.01,
    memory_bytes: float = 16e9,
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
    like, n = problem.model.shapes.params, problem.num_clients

    def init(variables: Variables, key: Any) -> State:
        del key
        zero = jax.tree.map(jnp.zeros_like, variables.params)
        return State(no_rows(variables.params, n), zero)

    def update(state: State, old: Variables, merged: Merged) -> tuple[State, Variables]:
        mean, stats = merged.variables
        share = merged.info["merged_weight"][0] / n

        def followed(h: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
            return h - alpha * share * (after - before)

        h = jax.tree.map(followed, state.mean, old.params, mean)
        # Without any update the model stays, as under every other method.
        pull = jnp.where(share > 0, 1.0 / alpha, 0.0)
        params = jax.tree.map(lambda w, h: w - pull * h, mean, h)
        return state._replace(mean=h), Variables(params, stats)

    def pull_back(task: Task) -> PyTree:
        return jax.tree.map(jnp.negative, task.kept)

    relative = parts.relative_weights(problem, options)
    base = parts.full_model("feddyn", problem, options, pace=barrier(), kept=1, amend=relative)
    local = options.local_update(problem, proximal=alpha, linear=pull_back)
    paces = Paces(overlap=LAST_STEP)
    merge = _merge(like, alpha)
    return base._replace(init=init, local=local, merge=merge, update=update, paces=paces)


def _merge(like: PyTree, alpha: float) -> Aggregator:
    """The mean of the updates, and the gradients of the clients after the step."""
    mean = masked_mean()

    def init(state: State, variables: Variables, mask_shapes: PyTree) -> Acc:
        return Acc(mean.init((), variables, mask_shapes), state.own)

    def add(acc: Acc, chunk: Chunk) -> Acc:
        change = jax.tree.map(lambda delta: -alpha * delta, chunk.delta)
        return Acc(mean.add(acc.sums, chunk), added(acc.own, chunk, change))

    def finalize(acc: Acc, variables: Variables, shared: PyTree) -> Merged:
        return mean.finalize(acc.sums, variables, shared)

    buffers = Buffers(
        lambda acc: acc.own, lambda state, own: state._replace(own=own), Memory(row_of, like)
    )
    return Aggregator(init, add, finalize, buffers)
