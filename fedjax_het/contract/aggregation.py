r"""Merging as a streaming sum, based on one masked weighted mean.

For clients $i$ with weights $a_i$, masks $m_i$ and updates $\Delta_i$, per coordinate::

    num += sum_i a_i m_i delta_i      den += sum_i a_i m_i      new = old + num / den   (den > 0)

Coordinates that no client trained keep their old value bit for bit. FedAvg, FedPMT, FedEL and
HeteroFL use this rule with different masks and weights. Rules that normalise by steps (FedNova), or
that must be unbiased if layers are left out at random (ADEL-FL), sum other terms and divide by
them.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import Aggregator, Chunk, Merged, Variables
from fedjax_het.contract.placing import Placed

# `(row, shared) -> factor` of one client's weight, float32, traced: a scalar, or a pytree whose
# leaves have the shapes of the mask's leaves.
Factor = Callable[[PyTree, PyTree], PyTree]


class Term(NamedTuple):
    """A sum of weights that a merge may divide by.

    Attributes:
      factor: function for the factor of each client's weight; None for 1.
      masked: whether a client counts only at the coordinates that it trains. An unmasked term is
        one float32[].
    """

    factor: Factor | None = None
    masked: bool = True


class Sums(NamedTuple):
    """Accumulator of a masked mean.

    Attributes:
      num: sum of `a f m delta`, float32, structure and shapes of the parameters.
      terms: sums of weights by name, float32. A masked term has the shapes of the mask's leaves
        (`()` per tensor without a mask), an unmasked term is float32[]. `weight` always exists.
      stats_num: sum for the running statistics, float32, in their structure and shapes.
      stats_den: weight of the clients that trained the block of a statistic and hold it, float32,
        in the same structure. Exit heads have no running statistics.
      blocks: weight of the clients that trained each block, float32[L].
    """

    num: PyTree
    terms: dict[str, PyTree]
    stats_num: PyTree
    stats_den: PyTree
    blocks: jax.Array


def weighted_sum(coefficient: jax.Array, values: jax.Array) -> jax.Array:
    """`sum_i coefficient_i * values_i` over the leading client axis.

    Args:
      coefficient: coefficients, float32[c, ...]; the axes after the client axis broadcast against
        those of `values` from the right.
      values: values to sum, float32[c, ...].

    Returns:
      The sum, float32[...].
    """
    if coefficient.ndim == 1:
        # Highest precision, because an accelerator would round the updates to TF32 or bfloat16.
        return jnp.tensordot(coefficient, values, axes=1, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(rows_like(coefficient, values) * values, axis=0)


@jax.jit
def zeros(tree: PyTree) -> PyTree:
    """Zeros of the shapes and dtypes of these arrays, made in one program."""
    return jax.tree.map(jnp.zeros_like, tree)


def align(coefficient: jax.Array, like: jax.Array) -> jax.Array:
    """Broadcasts a mask-shaped array to the shape of a parameter, from the right."""
    shape = (1,) * (like.ndim - coefficient.ndim) + coefficient.shape
    return jnp.broadcast_to(coefficient.reshape(shape), like.shape)


def masked_mean(
    *,
    factor: Factor | None = None,
    terms: Mapping[str, Term] | None = None,
    divide_by: Callable[[dict[str, PyTree], PyTree], PyTree] | None = None,
) -> Aggregator:
    """The mean over the clients that train a coordinate, weighted by `Plan.weight`.

    Running statistics are averaged over the clients that trained their block. The arguments do not
    change this, because amplified statistics could have a negative variance.

    Args:
      factor: function for the factor of each client's weight in the sum of updates (an inverse
        propensity ...); None for 1.
      terms: further sums of weights by name. The term `weight` always exists; it has the same
        factor as the updates unless it is given here.
      divide_by: function `(terms, shared) -> denominator` of the sum of updates: a pytree like a
        masked term, or float32[] for all coordinates. None divides by `terms["weight"]`.

    Returns:
      An `Aggregator` whose `finalize` reports `merged_weight`, the sum of the weights merged per
      block (float32[L]).
    """
    summed = {"weight": Term(factor), **(terms or {})}

    def init(state: PyTree, variables: Variables, mask_shapes: PyTree) -> Sums:
        del state
        params, stats = variables

        def empty(leaf: Any) -> jax.Array:
            return jnp.zeros(leaf.shape, jnp.float32)

        def scalar(leaf: Any) -> jax.Array:
            del leaf
            return jnp.zeros((), jnp.float32)

        def start(term: Term) -> PyTree:
            if not term.masked:
                return jnp.zeros((), jnp.float32)
            return (
                jax.tree.map(scalar, params)
                if mask_shapes is None
                else jax.tree.map(empty, mask_shapes)
            )

        return Sums(
            jax.tree.map(empty, params),
            {name: start(term) for name, term in summed.items()},
            jax.tree.map(empty, stats),
            jax.tree.map(empty, stats),
            jnp.zeros((len(params["blocks"]),), jnp.float32),
        )

    def add(acc: Sums, chunk: Chunk) -> Sums:
        nothing = jax.tree.map(lambda _: None, acc.num)
        mask = nothing if chunk.mask is None else chunk.mask

        def factors(of: Factor | None) -> PyTree:
            """Stacked factors, one leaf per parameter."""
            if of is None:
                return nothing
            values = jax.vmap(of)(chunk.row, chunk.shared)
            single = isinstance(values, jax.Array)
            return jax.tree.map(lambda _: values, acc.num) if single else values

        def coefficient(mask: jax.Array | None, factor: jax.Array | None) -> jax.Array:
            weight = chunk.weight if mask is None else coefficients(chunk.weight, mask)
            if factor is None:
                return weight
            if factor.ndim < weight.ndim:
                factor = factor.reshape(factor.shape + (1,) * (weight.ndim - factor.ndim))
            return weight * jnp.broadcast_to(factor, weight.shape)

        # A leaf that the route does not train is None in `delta`; its mask is then zero everywhere.
        num = jax.tree.map(
            lambda s, d, m, f: s if d is None else s + weighted_sum(coefficient(m, f), d),
            acc.num,
            chunk.delta,
            mask,
            factors(factor),
        )

        def total(term: Term, so_far: PyTree) -> PyTree:
            if not term.masked:
                own = (
                    None if term.factor is None else jax.vmap(term.factor)(chunk.row, chunk.shared)
                )
                return so_far + jnp.sum(coefficient(None, own), axis=0)
            return jax.tree.map(
                lambda s, m, d, f: s if d is None else s + jnp.sum(coefficient(m, f), axis=0),
                so_far,
                mask,
                chunk.delta,
                factors(term.factor),
            )

        live = weights_by_block(chunk)
        over = stats_weights(chunk, live)
        stats_num = jax.tree.map(
            lambda s, w, d: s + weighted_sum(w, d), acc.stats_num, over, chunk.stats_delta
        )
        stats_den = jax.tree.map(lambda s, w: s + align(jnp.sum(w, axis=0), s), acc.stats_den, over)
        found = {name: total(term, acc.terms[name]) for name, term in summed.items()}
        return Sums(num, found, stats_num, stats_den, acc.blocks + jnp.sum(live, axis=0))

    def finalize(acc: Sums, variables: Variables, shared: PyTree) -> Merged:
        def mean(
            old: jax.Array, num: jax.Array, den: jax.Array, over: jax.Array | None = None
        ) -> jax.Array:
            touched = align(den > 0, num)
            over = align(den if over is None else over, num)
            step = num / jnp.where(touched, over, 1.0)
            return jnp.where(touched, old + step.astype(old.dtype), old)

        weight = acc.terms["weight"]
        over = weight if divide_by is None else divide_by(acc.terms, shared)
        if isinstance(over, jax.Array):
            over = jax.tree.map(lambda _: over, acc.num)
        params = jax.tree.map(mean, variables.params, acc.num, weight, over)
        stats = jax.tree.map(mean, variables.stats, acc.stats_num, acc.stats_den)
        return Merged(Variables(params, stats), {"merged_weight": acc.blocks})

    plain = factor is None and terms is None and divide_by is None
    # Without factors, every masked term is the weight of those who hold a coordinate.
    equal = all(of is None for of in (factor, *(term.factor for term in summed.values())))
    narrow = (add, functools.partial(_add_narrow, summed)) if equal else None
    return Aggregator(init, add, finalize, mean=plain, narrow=narrow)


def weights_by_block(chunk: Chunk) -> jax.Array:
    """The weight of each client at the blocks that it trains, float32[c, L]."""
    if chunk.mask is None:
        live = jnp.ones((chunk.weight.shape[0], len(chunk.delta["blocks"])), jnp.float32)
    else:
        live = jax.vmap(masks.live_blocks)(chunk.mask).astype(jnp.float32)
    return live * chunk.weight[:, None]


def coefficients(weight: jax.Array, keep: jax.Array) -> jax.Array:
    """Weights [c] of clients where `keep`, bool[c, ...], holds, float32[c, ...]."""
    weight = weight.reshape((-1,) + (1,) * (keep.ndim - 1))
    return jnp.broadcast_to(weight, keep.shape) * keep.astype(jnp.float32)


def stats_weights(chunk: Chunk, live: jax.Array) -> PyTree:
    """The weight of each client at every running statistic, float32[c, ...], in their structure.

    Args:
      chunk: clients.
      live: weight of each client at the blocks that it trains, float32[c, L].
    """
    weights = {
        part: tuple(
            jax.tree.map(lambda _, b=b: live[:, b], block) for b, block in enumerate(blocks)
        )
        for part, blocks in chunk.stats_delta.items()
    }
    if chunk.stats_mask is None:
        return weights
    return jax.tree.map(coefficients, weights, chunk.stats_mask)


def _add_narrow(summed: Mapping[str, Term], acc: Sums, chunk: Chunk, placed: Placed) -> Sums:
    """The `add` of a mean whose terms have no factors for updates at the sizes of a sub-network."""
    live = weights_by_block(chunk)
    keep = placed.everything(len(chunk.weight)) if chunk.mask is None else chunk.mask
    over = jax.tree.map(
        lambda d, k: None if d is None else coefficients(chunk.weight, k),
        chunk.delta,
        keep,
        is_leaf=lambda leaf: leaf is None,
    )
    over_stats = jax.tree.map(rows_like, stats_weights(chunk, live), chunk.stats_delta)
    weights = Variables(over, over_stats)
    values = jax.tree.map(
        lambda w, v: rows_like(w, v) * v, weights, Variables(chunk.delta, chunk.stats_delta)
    )
    num, stats_num = placed.add(Variables(acc.num, acc.stats_num), values)
    den, stats_den = placed.add(Variables(acc.terms["weight"], acc.stats_den), weights)
    everyone = jnp.sum(chunk.weight, axis=0)
    terms = {
        name: den if term.masked else acc.terms[name] + everyone for name, term in summed.items()
    }
    return Sums(num, terms, stats_num, stats_den, acc.blocks + jnp.sum(live, axis=0))


def rows_like(weight: jax.Array, values: jax.Array) -> jax.Array:
    """Weights [c, ...] broadcast to values [c, ...], from the right after the client axis."""
    missing = values.ndim - weight.ndim
    shape = weight.shape[:1] + (1,) * missing + weight.shape[1:]
    return jnp.broadcast_to(weight.reshape(shape), values.shape)


def plain_mean() -> Aggregator:
    """The mean over all clients; a client that freezes a tensor counts with a zero update."""
    return masked_mean(
        terms={"everyone": Term(masked=False)}, divide_by=lambda terms, _: terms["everyone"]
    )


def normalised_mean() -> Aggregator:
    r"""Per tensor, the mean update per local step times the mean number of steps.

    The sums are over the clients i that trained tensor k, with $c_i = a_i / \sum a$ and $\tau_i$
    local steps: $w_k \leftarrow w_k + (\sum_i c_i \tau_i) \sum_i c_i \Delta_{i,k} / \tau_i$. The
    influence of a client therefore does not grow with its number of steps. Equal steps give the
    masked mean.

    References:
      Wang et al., *Tackling the Objective Inconsistency Problem*, 2020, for plain SGD.
    """

    def divide_by(terms: dict[str, PyTree], shared: PyTree) -> PyTree:
        del shared

        def over(weight: jax.Array, steps: jax.Array) -> jax.Array:
            return weight * weight / jnp.where(steps > 0, steps, 1.0)

        return jax.tree.map(over, terms["weight"], terms["steps"])

    inner = masked_mean(
        factor=lambda steps, _: 1.0 / steps,
        terms={"weight": Term(), "steps": Term(lambda steps, _: steps)},
        divide_by=divide_by,
    )

    def add(acc: Sums, chunk: Chunk) -> Sums:
        return inner.add(acc, chunk._replace(row=chunk.steps.astype(jnp.float32)))

    return inner._replace(add=add)
