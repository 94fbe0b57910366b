r"""FedDyn's terms: a linear one in every client's objective, and the server's step that fits it.

Clients minimise $F_i(w) - \langle g_i, w \rangle + \frac{\alpha}{2} \lVert w - w_t \rVert^2$; then
$g_i \leftarrow g_i - \alpha \Delta_i$. With n clients in all, the server moves every tensor from
the mean over the c clients that trained it::

    h <- h - alpha (c / n) (mean - w)        w <- mean - h / alpha

A tensor that nobody trained keeps its value.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.algorithms.client_memory import LAST_STEP, added, no_rows, row_of
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import Sums, masked_mean
from fedjax_het.contract.algorithm import Aggregator, Algorithm, Chunk, Merged, Task, Variables
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

    sums: Sums
    own: PyTree


def pull_back(task: Task) -> PyTree:
    """Gradient of a client's linear term, for local training with the proximal factor alpha."""
    return jax.tree.map(jnp.negative, task.kept)


def regularised(base: Algorithm, problem: Problem, alpha: float) -> Algorithm:
    """The method with FedDyn's memory and step of the server.

    Args:
      base: method without a state that takes the masked mean, whose local training has the term
        `pull_back` and the proximal factor `alpha`. Its weights count the clients: they are 1, or
        1 on average over all clients.
      problem: model, data and fleet.
      alpha: factor of the terms, positive.

    Returns:
      The method; its merge reports the weight of each tensor as `holders`, float32[tensors], in the
      order of `jax.tree.leaves`.
    """
    like, n = problem.model.shapes.params, problem.num_clients

    def init(variables: Variables, key: Any) -> State:
        del key
        zero = jax.tree.map(jnp.zeros_like, variables.params)
        return State(no_rows(variables.params, n), zero)

    def update(state: State, old: Variables, merged: Merged) -> tuple[State, Variables]:
        mean, stats = merged.variables
        weights = jax.tree.unflatten(jax.tree.structure(mean), list(merged.info["holders"]))

        def followed(h: jax.Array, before: jax.Array, after: jax.Array, c: jax.Array) -> jax.Array:
            return h - alpha * (c / n) * (after - before)

        def moved(w: jax.Array, h: jax.Array, c: jax.Array) -> jax.Array:
            # Without any update a tensor stays, as under every other method.
            return w - jnp.where(c > 0, 1.0 / alpha, 0.0) * h

        h = jax.tree.map(followed, state.mean, old.params, mean, weights)
        return state._replace(mean=h), Variables(jax.tree.map(moved, mean, h, weights), stats)

    return base._replace(
        init=init, merge=_merge(like, alpha), update=update, paces=Paces(overlap=LAST_STEP)
    )


def _merge(like: PyTree, alpha: float) -> Aggregator:
    """The mean of the updates, and the gradients of the clients after the step."""
    mean = masked_mean()

    def init(state: State, variables: Variables, mask_shapes: PyTree) -> Acc:
        return Acc(mean.init((), variables, mask_shapes), state.own)

    def add(acc: Acc, chunk: Chunk) -> Acc:
        change = jax.tree.map(lambda delta: -alpha * delta, chunk.delta)
        return Acc(mean.add(acc.sums, chunk), added(acc.own, chunk, change))

    def finalize(acc: Acc, variables: Variables, shared: PyTree) -> Merged:
        merged = mean.finalize(acc.sums, variables, shared)
        holders = jnp.stack(jax.tree.leaves(acc.sums.terms["weight"]))
        return merged._replace(info={**merged.info, "holders": holders})

    buffers = Buffers(
        lambda acc: acc.own, lambda state, own: state._replace(own=own), Memory(row_of, like)
    )
    return Aggregator(init, add, finalize, buffers)
