"""One ranking of all prunable weights, so that the masks of all clients are nested."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common.types import PyTree
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem


def prunable(tree: PyTree) -> list[Any]:
    """The prunable leaves: weights, not biases or scales (methods/pr_fl.md 1)."""
    return [leaf for leaf in jax.tree.leaves(tree) if len(leaf.shape) >= 2]


def never_pruned(tree: PyTree) -> list[Any]:
    """The leaves that are not `prunable`."""
    return [leaf for leaf in jax.tree.leaves(tree) if len(leaf.shape) < 2]


def flat(params: PyTree) -> jax.Array:
    """All prunable weights, float32[N]."""
    return jnp.concatenate([leaf.reshape(-1) for leaf in prunable(params)])


def join(like: PyTree, weights: jax.Array, rest: list[jax.Array]) -> PyTree:
    """Parameters of the structure of `like` from `flat` and `never_pruned`."""
    sizes = [int(np.prod(leaf.shape)) for leaf in prunable(like)]
    parts = iter(jnp.split(weights, np.cumsum(sizes)[:-1]))
    others = iter(rest)
    return jax.tree.map(
        lambda leaf: next(parts).reshape(leaf.shape) if len(leaf.shape) >= 2 else next(others),
        like,
    )


class Network(NamedTuple):
    """Sizes of the prunable and other parts of a model.

    Attributes:
      structure: shapes of the parameters.
      weights: number of prunable weights, N.
      dense: number of other parameters, D.
      core: number of weights of the core, which all sub-models have.
    """

    structure: PyTree
    weights: int
    dense: int
    core: int

    def kept(self, density: np.ndarray) -> np.ndarray:
        """Number of weights of sub-models of these densities, at least the core; int64."""
        floor = np.floor(density * self.weights + 1e-9).astype(np.int64)
        return np.maximum(floor, self.core)


def network(model: BlockModel, core: float) -> Network:
    """The sizes of a model, with the share `core` of each leaf in the core."""
    structure = model.shapes.params
    sizes = np.asarray([leaf.size for leaf in prunable(structure)], np.int64)
    dense = sum(leaf.size for leaf in never_pruned(structure))
    return Network(structure, int(np.sum(sizes)), dense, int(np.sum(core_sizes(sizes, core))))


def nested_mask(params: PyTree, rank: list[jax.Array], count: jax.Array) -> PyTree:
    """Mask of the first `count` weights of the ranking, and of all leaves that are not prunable.

    Args:
      params: structure and shapes of the parameters.
      rank: rank of each weight, int32, one array per prunable leaf.
      count: number of weights, int32[].
    """
    ranks = iter(rank)

    def of(leaf: Any) -> jax.Array:
        return next(ranks) < count if len(leaf.shape) >= 2 else jnp.asarray(True)

    return jax.tree.map(of, params)


class Importance(NamedTuple):
    """Running importance of the prunable weights, one array per leaf in each list.

    Attributes:
      table: float32, last mean of an interval; 0 before the first.
      total: float32, sum over the uploads of this interval.
      seen: float32, number of uploads of this interval with a scaled gradient other than zero.
    """

    table: list[jax.Array]
    total: list[jax.Array]
    seen: list[jax.Array]


def no_importance(params: PyTree) -> Importance:
    """Importance before the first upload."""
    return Importance(*([jnp.zeros_like(leaf) for leaf in prunable(params)] for _ in range(3)))


def observe(importance: Importance, squares: list[jax.Array], keep: jax.Array) -> Importance:
    """Adds the squared gradients of clients, each scaled to [0, 1] over all its weights.

    Args:
      importance: importance so far.
      squares: squared gradients, float32[c, ...] per leaf.
      keep: mask of the clients that count, bool[c].
    """

    def over(reduce: Any) -> jax.Array:
        per_leaf = [reduce(leaf.reshape(leaf.shape[0], -1), axis=1) for leaf in squares]
        return reduce(jnp.stack(per_leaf), axis=0)

    low, high = over(jnp.min), over(jnp.max)
    span = jnp.where(keep & (high > low), high - low, 1.0)

    def scaled(leaf: jax.Array) -> jax.Array:
        shape = (-1,) + (1,) * (leaf.ndim - 1)
        value = (leaf - low.reshape(shape)) / span.reshape(shape)
        return jnp.where(keep.reshape(shape), value, 0.0)

    values = [scaled(leaf) for leaf in squares]
    return importance._replace(
        total=[t + jnp.sum(v, axis=0) for t, v in zip(importance.total, values, strict=True)],
        seen=[
            c + jnp.sum((v != 0).astype(jnp.float32), axis=0)
            for c, v in zip(importance.seen, values, strict=True)
        ],
    )


def close_interval(importance: Importance) -> Importance:
    """Writes the means of the interval to the table and starts a new interval."""

    def newest(old: jax.Array, total: jax.Array, count: jax.Array) -> jax.Array:
        mean = total / jnp.maximum(count, 1.0)
        return jnp.where(mean != 0, mean, old)

    return Importance(
        [newest(*leaf) for leaf in zip(*importance, strict=True)],
        [jnp.zeros_like(leaf) for leaf in importance.total],
        [jnp.zeros_like(leaf) for leaf in importance.seen],
    )


def core_sizes(sizes: np.ndarray, core: float) -> np.ndarray:
    """Number of core weights of each leaf, int64: a share of the leaf, and at least one."""
    return np.maximum(np.floor(core * sizes + 1e-9).astype(np.int64), 1)


def rank_weights(
    params: PyTree, table: list[jax.Array], core: float, cost: np.ndarray
) -> list[jax.Array]:
    """Ranks of all prunable weights; rank 0 is pruned last (methods/pr_fl.md 3).

    The core of every layer, its largest weights by magnitude, comes first. The others are ordered
    by importance over cost, across layers. A weight without importance gets the smallest importance
    of its layer times its magnitude, so it comes after those with importance. Ties are broken by
    index.

    Args:
      params: parameters of the server's model.
      table: importance of the weights, `Importance.table`.
      core: share of each layer that all sub-models have.
      cost: time per weight, or ones, float[leaves].

    Returns:
      The ranks, int32 per prunable leaf.
    """
    keys = []
    leaves = prunable(params)
    sizes = np.asarray([leaf.size for leaf in leaves])
    for leaf, seen, own, price in zip(leaves, table, core_sizes(sizes, core), cost, strict=True):
        size = jnp.abs(leaf).reshape(-1)
        seen = seen.reshape(-1)
        smallest = jnp.min(jnp.where(seen > 0, seen, jnp.inf))
        smallest = jnp.where(jnp.isfinite(smallest), smallest, 1.0)
        value = jnp.where(seen > 0, seen, smallest * size) / np.float32(price)
        by_size = jnp.argsort(-size, stable=True)
        in_core = jnp.zeros(size.shape, bool).at[by_size[:own]].set(True)
        keys.append(jnp.where(in_core, jnp.inf, value))
    order = jnp.argsort(-jnp.concatenate(keys), stable=True)
    rank = jnp.zeros(order.shape, jnp.int32).at[order].set(jnp.arange(order.size, dtype=jnp.int32))
    parts = jnp.split(rank, np.cumsum(sizes)[:-1])
    return [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


def time_per_weight(problem: Problem, training: TrainingOptions, net: Network) -> np.ndarray:
    """PruneFL's cost of a weight, per prunable leaf: its transfer and its computation.

    Both are times at the median speed and rates of round 0, relative to the mean over all weights.
    """
    fleet, table = problem.fleet, problem.cost
    link_s = 4 / np.median(fleet.uplink_bytes_per_s) + 4 / np.median(fleet.downlink_bytes_per_s)
    sizes = problem.data.sizes
    samples = float(np.median(training.samples(sizes, training.steps(sizes))))
    flops = table.forward_flops + table.input_grad_flops + table.weight_grad_flops
    cost, size = [], []
    for block, work in zip(net.structure["blocks"], flops, strict=True):
        own = prunable(block)
        total = sum(leaf.size for leaf in own)
        for leaf in own:
            cost.append(link_s + samples * work / max(total, 1) / np.median(fleet.flops_per_s))
            size.append(leaf.size)
    for leaf in prunable(net.structure["exits"]):
        cost.append(float(np.mean(cost)))
        size.append(leaf.size)
    return np.asarray(cost) / np.average(cost, weights=size)
