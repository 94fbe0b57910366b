"""Layers: their tensors, the cost of each depth, and the depth that a device reaches.

ADEL-FL counts layers in the order in which back-propagation finishes them, output first: a device
that finished d of L layers has trained the last d. A layer here is a block of the model ("module")
or, as in the authors' MNIST networks, a single tensor ("tensor"). Arrays over layers have the input
side first, as everywhere in this library.

With exponential layer times of mean 1/rate the number of layers finished in a window has a Poisson
distribution, so all probabilities here are Poisson tails.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Array
from fedjax_het.models.base import Block, BlockModel
from fedjax_het.problem import Problem

Granularity = Literal["module", "tensor"]

# Back-propagation computes the gradient of a bias before that of its kernel.
_ORDER = ("kernel", "bias")


class Layers(NamedTuple):
    """The layers of a model and the price of each depth; arrays over depths have entries 0..L.

    Attributes:
      number: number of layers, L.
      ids: layer of each tensor, a pytree of ints with the structure of the parameters; 0 at the
        input side, -1 for exit heads, which are never trained.
      first_block: int64[L+1], shallowest block that a depth trains (the last block at depth 0).
      flops: float64[L+1], FLOPs per sample; depth 0 is charged the attempt at depth 1.
      upload_bytes: int64[L+1], bytes of the upload; depth 0, which misses the deadline, is priced
        like the whole model.
    """

    number: int
    ids: PyTree
    first_block: np.ndarray
    flops: np.ndarray
    upload_bytes: np.ndarray

    def mask(self, row: PyTree, shared: PyTree) -> PyTree:
        """`Algorithm.mask` of the layers that a client finishes, from `first_layer` of its row."""
        del shared
        return trained(self.ids, jnp.asarray(row["first_layer"]))


def layers_of(
    problem: Problem, granularity: Granularity = "module", virtual_layers: int = 0
) -> Layers:
    """Divides the model of a problem into layers.

    Args:
      problem: model and its prices.
      granularity: unit of a layer. "module": every block that has parameters. "tensor": every
        kernel and every bias, the bias nearer to the output (L = 6 for three fully connected
        layers).
      virtual_layers: number of layers without tensors between the output layer and the next one,
        which only take time. 2 gives VGG-11 and VGG-13 the authors' 11 and 13 layers, which stand
        for fully connected layers that the networks do not have.

    Raises:
      InputError: if the order of the tensors is not known.

    References:
      methods/adel_fl.md 4.2, A7.
    """
    require(
        virtual_layers >= 0,
        f"virtual_layers = {virtual_layers}",
        "must be at least 0",
        "use 2 for the authors' VGG, else leave it out",
    )
    shapes = problem.model.shapes.params
    # Layers as (block, name of a tensor or None for all tensors), input side first.
    order: list[tuple[int, str | None]] = []
    for b, block in enumerate(shapes["blocks"]):
        names = _tensor_names(problem.model, b, block) if granularity == "tensor" else [None]
        order += [(b, name) for name in names if jax.tree.leaves(block)]
    require(
        bool(order),
        f"model {problem.model.name!r} without parameters",
        "has no layer to train",
        "use another model",
    )
    number = len(order) + virtual_layers

    def layer(b: int, path: Any) -> int:
        place = order.index((b, path[-1].key if granularity == "tensor" else None))
        # The virtual layers lie between the output layer and all others.
        return number - 1 if place == len(order) - 1 else place

    blocks = tuple(
        jax.tree_util.tree_map_with_path(lambda path, _, b=b: layer(b, path), block)
        for b, block in enumerate(shapes["blocks"])
    )
    ids = {"blocks": blocks, "exits": jax.tree.map(lambda _: -1, shapes["exits"])}
    first_layers = [number - max(depth, 1) for depth in range(number + 1)]
    prices = [_price(problem, shapes["blocks"], blocks, first) for first in first_layers]
    first, flops, sent = zip(*prices)
    sent = (sent[-1], *sent[1:])
    return Layers(number, ids, np.asarray(first), np.asarray(flops), np.asarray(sent, np.int64))


def trained(ids: PyTree, first_layer: jax.Array) -> PyTree:
    """Mask of the layers `first_layer..L-1`, one `bool[]` per tensor.

    Args:
      ids: layer of each tensor, `Layers.ids`.
      first_layer: first trained layer, L - depth, int32 scalar.
    """
    return jax.tree.map(lambda i: (i >= first_layer) if i >= 0 else jnp.asarray(False), ids)


def on_batch_statistics(model: BlockModel) -> BlockModel:
    """The model with batch normalisation by the moments of the batch in every block.

    A device runs the whole forward pass in training mode before it knows how many layers it will
    finish. With stored statistics in the untrained blocks its gradient would depend on its depth,
    and no merge of layers could be unbiased. Running statistics are updated in trained blocks, as
    usual.
    """
    if model.stats_policy == "frozen":
        return model

    def fixed(block: Block) -> Block:
        def apply(
            params: PyTree, stats: PyTree, x: PyTree, *, train: bool | Array, **mode: Any
        ) -> tuple[Array, PyTree]:
            y, new = block.apply(params, stats, x, train=True, **mode)
            if isinstance(train, bool):
                return y, new if train else stats
            return y, jax.tree.map(lambda a, b: jnp.where(train, a, b), new, stats)

        return block._replace(apply=apply, traced_train=True)

    return dataclasses.replace(model, blocks=tuple(map(fixed, model.blocks)))


def miss_probability(layers: int, expected_layers: np.ndarray | float) -> np.ndarray:
    r"""Probability that one client misses each layer: $q^\ell = Q(L+1-\ell, \lambda)$.

    It is $P(N \le L-\ell)$ for $N \sim$ Poisson($\lambda$); Q is the regularised upper incomplete
    gamma function.

    Args:
      layers: number of layers, L.
      expected_layers: mean lambda of the number of layers in the window if there were infinitely
        many layers, float64[...]; with 0 all layers are missed.

    Returns:
      Probabilities float64[..., L], input side first: decreasing along the last axis.

    References:
      methods/adel_fl.md 1.3.
    """
    needed = layers - np.arange(layers)
    return scipy.special.gammaincc(needed, np.asarray(expected_layers, np.float64)[..., None])


def log_miss(layers: int, expected_layers: np.ndarray) -> np.ndarray:
    """`log(miss_probability)` without underflow, from the finite sum of Q for integers L."""
    rate = np.asarray(expected_layers, np.float64)[..., None]
    k = np.arange(layers)
    # The terms are rate^k / k!; their prefix sums are Q(1), Q(2), ... times e^rate.
    running = np.logaddexp.accumulate(_log_terms(k, rate), axis=-1)
    return running[..., ::-1] - rate


def log_miss_slope(layers: int, expected_layers: np.ndarray) -> np.ndarray:
    """`log(-d miss_probability / d expected_layers)`, the log of a Poisson probability."""
    rate = np.asarray(expected_layers, np.float64)[..., None]
    k = layers - 1 - np.arange(layers)
    return _log_terms(k, rate) - rate


def batch_sizes(
    scale: float, power: np.ndarray, deadline_s: float, communication_s: np.ndarray
) -> np.ndarray:
    r"""ADEL-FL's batch rule before rounding: $S_u = m P_u (T - B_u)^+ / T$.

    The expected number of layers, $(T - B_u) P_u / S_u = T / m$, is then the same for all clients,
    so one constant per layer removes the bias of the merge.

    Args:
      scale: batch scale m, seconds per layer.
      power: power P, samples x layers per second, float64[k].
      deadline_s: deadline T in seconds; inf ignores communication.
      communication_s: communication time B in seconds, float64[k].

    Returns:
      Samples float64[k]; 0 for a client whose communication takes the whole round.

    References:
      methods/adel_fl.md 1.2, A3.
    """
    share = 1.0 if np.isinf(deadline_s) else np.maximum(0.0, 1.0 - communication_s / deadline_s)
    return scale * power * share


def whole_batches(wanted: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Batch sizes rounded to whole samples, at least 1 and at most `most`; int64[k]."""
    return np.clip(np.rint(wanted), 1, most).astype(np.int64)


def depths_reached(finished_s: np.ndarray, window_s: np.ndarray) -> np.ndarray:
    """Number of layers finished within each window, int64[k].

    Args:
      finished_s: seconds after which each layer is finished, output side first, float64[k, L].
      window_s: seconds of each window, float64[k].
    """
    return np.sum(finished_s <= window_s[:, None], axis=1)


def _tensor_names(model: BlockModel, b: int, block: PyTree) -> list[str | None]:
    names = [path[-1].key for path, _ in jax.tree_util.tree_flatten_with_path(block)[0]]
    require(
        len(set(names)) == len(names) and set(names) <= set(_ORDER),
        f"block {model.blocks[b].name!r} with tensors {names} and granularity = 'tensor'",
        "the order in which gradients are ready is known for one kernel and one bias only",
        "use granularity='module'",
    )
    return sorted(names, key=_ORDER.index)


def _price(problem: Problem, shapes: Any, ids: Any, first_layer: int) -> tuple[int, float, int]:
    """First trained block, FLOPs per sample and bytes sent of the layers `first_layer..L-1`."""
    cost = problem.cost
    kept = [
        [leaf for leaf, i in zip(jax.tree.leaves(block), jax.tree.leaves(of)) if i >= first_layer]
        for block, of in zip(shapes, ids)
    ]
    first = next(b for b, leaves in enumerate(kept) if leaves)
    flops = float(cost.step_flops(first))
    if not any(leaf.ndim >= 2 for leaf in kept[first]):
        # If only biases train, their gradients need no contraction in their own block.
        flops -= float(cost.weight_grad_flops[first])
    sent = sum(leaf.size * leaf.dtype.itemsize for leaves in kept for leaf in leaves)
    if cost.uploads_stats:
        sent += sum(int(cost.stats_bytes[b]) for b, leaves in enumerate(kept) if leaves)
    return first, flops, sent


def _log_terms(k: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """`log(rate^k / k!)`."""
    return scipy.special.xlogy(k, rate) - scipy.special.gammaln(k + 1)
