r"""Merging as a streaming sum; one masked weighted mean under all of it.

For clients $i$ with weights $a_i$, masks $m_i$ and updates $\Delta_i$, per coordinate::

    num += sum_i a_i m_i delta_i      den += sum_i a_i m_i      new = old + num / den   (den > 0)

Coordinates nobody trained keep their old value bit for bit. FedAvg, FedPMT, FedEL and HeteroFL are
this kernel with different masks and weights; rules that must be unbiased when layers are missed at
random (ADEL-FL) change the denominator.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import Aggregator, Chunk, Variables


class Sums(NamedTuple):
    """Accumulator of a masked mean.

    Attributes:
      num: float32, structure and shapes of the parameters; sum of `a m delta`.
      den: float32 with the shapes of the mask's leaves (`()` per tensor without a mask).
      stats_num: float32, structure and shapes of the running statistics.
      stats_den: float32[L], weight of the clients that trained each block. Exit heads have no
        running statistics.
    """

    num: PyTree
    den: PyTree
    stats_num: PyTree
    stats_den: jax.Array


def weighted_sum(coefficient: jax.Array, values: jax.Array) -> jax.Array:
    """`sum_i coefficient_i * values_i` over the leading client axis.

    Args:
      coefficient: float32[c, ...]; behind the client axis it broadcasts against `values` from the
        right.
      values: float32[c, ...].
    """
    if coefficient.ndim == 1:
        # Full precision: an accelerator would otherwise round the updates to TF32 or bfloat16.
        return jnp.tensordot(coefficient, values, axes=1, precision=jax.lax.Precision.HIGHEST)
    missing = values.ndim - coefficient.ndim
    shape = coefficient.shape[:1] + (1,) * missing + coefficient.shape[1:]
    return jnp.sum(jnp.broadcast_to(coefficient.reshape(shape), values.shape) * values, axis=0)


@jax.jit
def zeros(tree: PyTree) -> PyTree:
    """Zeros of the shapes and types of these arrays, made at once."""
    return jax.tree.map(jnp.zeros_like, tree)


def align(coefficient: jax.Array, like: jax.Array) -> jax.Array:
    """Broadcasts a mask-shaped array to the shape of a parameter, from the right."""
    shape = (1,) * (like.ndim - coefficient.ndim) + coefficient.shape
    return jnp.broadcast_to(coefficient.reshape(shape), like.shape)


def masked_mean(
    *,
    factors: Callable[[PyTree, PyTree], PyTree] | None = None,
    denominator: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Aggregator:
    """The mean over contributors, per coordinate, weighted by `Plan.weight`.

    Running statistics are averaged over the clients that trained the block they belong to, whatever
    `factors` and `denominator` say: amplifying them could make a variance negative.

    Args:
      factors: `(row, shared) -> pytree`, float32 factors on one client's weight, of the shape of
        its mask's leaves (an inverse propensity ...); traced. None for ones.
      denominator: `(den, shared) -> pytree`, what the weighted sums are divided by where `den > 0`
        (`den * shared["gain"]`, a number of clients ...); traced. None for `den` itself.

    Returns:
      An `Aggregator` whose `finalize` reports `merged_weight`, the sum of the weights merged per
      block (float32[L]).
    """

    def init(state: PyTree, variables: Variables, mask_shapes: PyTree) -> Sums:
        del state
        params, stats = variables

        def zeros(leaf: jax.Array) -> jax.Array:
            return jnp.zeros(leaf.shape, jnp.float32)

        den = (
            jax.tree.map(lambda _: jnp.zeros((), jnp.float32), params)
            if mask_shapes is None
            else jax.tree.map(zeros, mask_shapes)
        )
        return Sums(
            jax.tree.map(zeros, params),
            den,
            jax.tree.map(zeros, stats),
            jnp.zeros((len(params["blocks"]),), jnp.float32),
        )

    def add(acc: Sums, chunk: Chunk) -> Sums:
        def coefficient(mask: jax.Array | None, factor: jax.Array | None) -> jax.Array:
            weight = chunk.weight
            if mask is not None:
                weight = weight.reshape((-1,) + (1,) * (mask.ndim - 1))
                weight = jnp.broadcast_to(weight, mask.shape) * mask.astype(jnp.float32)
            return weight if factor is None else weight * factor

        nothing = jax.tree.map(lambda _: None, acc.num)
        factor = nothing
        if factors is not None:
            factor = jax.vmap(factors, in_axes=(0, None))(chunk.row, chunk.shared)
        mask = chunk.mask
        if mask is None:
            mask = nothing
            live = jnp.ones((chunk.weight.shape[0], len(acc.num["blocks"])), jnp.float32)
        else:
            live = jax.vmap(masks.live_blocks)(mask).astype(jnp.float32)

        # A leaf that the route left out is None in `delta`; its mask is then all zero.
        num = jax.tree.map(
            lambda s, d, m, f: s if d is None else s + weighted_sum(coefficient(m, f), d),
            acc.num,
            chunk.delta,
            mask,
            factor,
        )
        den = jax.tree.map(
            lambda s, m, d, f: s if d is None else s + jnp.sum(coefficient(m, f), axis=0),
            acc.den,
            mask,
            chunk.delta,
            factor,
        )
        live = live * chunk.weight[:, None]
        stats_num = {
            part: tuple(
                jax.tree.map(lambda s, d, b=b: s + weighted_sum(live[:, b], d), total, delta)
                for b, (total, delta) in enumerate(
                    zip(acc.stats_num[part], chunk.stats_delta[part], strict=True)
                )
            )
            for part in acc.stats_num
        }
        return Sums(num, den, stats_num, acc.stats_den + jnp.sum(live, axis=0))

    def finalize(
        acc: Sums, variables: Variables, shared: PyTree
    ) -> tuple[Variables, dict[str, Any]]:
        def mean(
            old: jax.Array, num: jax.Array, den: jax.Array, over: jax.Array | None = None
        ) -> jax.Array:
            touched = align(den > 0, num)
            over = align(den if over is None else over, num)
            step = num / jnp.where(touched, over, 1.0)
            return jnp.where(touched, old + step.astype(old.dtype), old)

        over = acc.den if denominator is None else denominator(acc.den, shared)
        params = jax.tree.map(mean, variables.params, acc.num, acc.den, over)
        stats = {
            part: tuple(
                jax.tree.map(lambda o, n, b=b: mean(o, n, acc.stats_den[b]), old, num)
                for b, (old, num) in enumerate(
                    zip(variables.stats[part], acc.stats_num[part], strict=True)
                )
            )
            for part in variables.stats
        }
        return Variables(params, stats), {"merged_weight": acc.stats_den}

    return Aggregator(init, add, finalize)
