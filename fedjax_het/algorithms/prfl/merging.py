r"""MaskFedAvg: every coordinate averaged over the uploads that have it.

::

    num = sum_i p_i m_i W_i      den = sum_i p_i m_i      new = W + eta (num / den - W)   (den > 0)

over the buffers (`buffers.py`), one slot per client with its latest upload, weighted by staleness,
and over the arrivals that are not kept. An upload keeps the mask it came with when the ranking
changes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.algorithms.prfl.buffers import Booked, Slots, store, weighted_sums
from fedjax_het.algorithms.prfl.ranking import Importance, observe
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import zeros
from fedjax_het.contract.algorithm import Aggregator, Buffers, Chunk, Merged, Variables
from fedjax_het.contract.staleness import Discount


class Acc(NamedTuple):
    """Accumulator of one merge.

    Attributes:
      slots: with the arrivals in place.
      booked: what is set aside for them.
      importance: with theirs.
      arrived: bool[n].
      num, den: sums over the arrivals that are not kept; over all where buffers are not merged.
      step: int32[], server step, from 0.
    """

    slots: Slots
    booked: Booked
    importance: Importance
    arrived: jax.Array
    num: PyTree
    den: PyTree
    step: jax.Array


def sums(weight: jax.Array, values: jax.Array, masked: bool) -> tuple[jax.Array, jax.Array]:
    """`sum_i p_i m_i W_i` and `sum_i p_i m_i`, with m from the NaNs of the values.

    Args:
      weight: float32[c], p.
      values: float32[c, ...].
      masked: False counts a pruned coordinate as a zero.
    """
    there = ~jnp.isnan(values)
    p = jnp.broadcast_to(weight.reshape((-1,) + (1,) * (values.ndim - 1)), values.shape)
    num = jnp.sum(jnp.where(there, p * values, 0.0), axis=0)
    return num, jnp.sum(jnp.where(there, p, 0.0) if masked else p, axis=0)


def moved(old: jax.Array, num: jax.Array, den: jax.Array, eta: jax.Array | float) -> jax.Array:
    """`old + eta (num / den - old)`, and `old` bit for bit where den is 0."""
    there = den > 0
    mean = num / jnp.where(there, den, 1.0)
    return jnp.where(there, old + eta * (mean - old), old)


def mask_fed_avg(
    late: Discount, *, buffered: bool, masked: bool, live: bool, eta: float
) -> Aggregator:
    r"""The merge of PR-FL, and of its ablations.

    Args:
      late: the discount s.
      buffered: False averages the arrivals only and moves the model by their share $\alpha = \sum
        p_i$ of the weights of all clients, as the author's FedAsyn and FedFix do.
      masked: False takes the plain mean, in which a pruned coordinate is a zero.
      live: weighs every slot by its staleness now; False by the staleness it arrived with.
      eta: the server's step.

    Returns:
      An `Aggregator` over a state with the fields `slots`, `booked`, `importance` and `step`.
    """

    def init(state: Any, variables: Variables, mask_shapes: PyTree) -> Acc:
        del mask_shapes
        slots = state.slots
        return Acc(
            slots,
            jax.tree.map(jnp.asarray, state.booked),
            state.importance,
            jnp.zeros(slots.version.shape, bool),
            zeros(variables),
            zeros(variables),
            jnp.asarray(state.step, jnp.int32),
        )

    def add(acc: Acc, chunk: Chunk) -> Acc:
        keep = chunk.weight > 0
        nowhere = acc.arrived.shape[0]
        at = jnp.where(keep, chunk.client, nowhere)
        discount = late(chunk.staleness)

        def upload(start: jax.Array, delta: jax.Array, mask: jax.Array) -> jax.Array:
            mask = mask.reshape(mask.shape + (1,) * (start.ndim - mask.ndim))
            return jnp.where(jnp.broadcast_to(mask, start.shape), start + delta, jnp.nan)

        def put(every: jax.Array, new: jax.Array) -> jax.Array:
            return every.at[at].set(new.astype(every.dtype), mode="drop")

        mask = chunk.mask
        if mask is None:
            everyone = jnp.ones(keep.shape, bool)
            mask = jax.tree.map(lambda _: everyone, chunk.delta)
        params = jax.tree.map(upload, chunk.start.params, chunk.delta, mask)
        stats = jax.tree.map(jnp.add, chunk.start.stats, chunk.stats_delta)
        uploads = Variables(params, stats)
        passing = keep & (acc.booked.ranking[chunk.client] < 0) if buffered else keep

        def pass_on(total: tuple[Variables, Variables]) -> tuple[Variables, Variables]:
            p = jnp.where(passing, chunk.weight * discount, 0.0)
            both = jax.tree.map(lambda values: sums(p, values, masked), uploads)
            num = jax.tree.map(lambda old, pair: old + pair[0], total[0], both)
            return num, jax.tree.map(lambda old, pair: old + pair[1], total[1], both)

        # A loop of one turn or none: XLA's conditional crashed here (JAX 0.10.2, CPU, two devices).
        turns = jnp.any(passing).astype(jnp.int32) if buffered else 1
        num, den = jax.lax.fori_loop(0, turns, lambda _, total: pass_on(total), (acc.num, acc.den))
        slots = store(acc.slots, acc.booked, chunk.client, keep, uploads, chunk.shared["order"])
        slots = slots._replace(
            version=put(slots.version, acc.step - chunk.staleness),
            weight=put(slots.weight, chunk.weight),
            discount=put(slots.discount, discount),
        )
        return acc._replace(
            slots=slots,
            importance=acc.importance
            if chunk.aux is None
            else observe(acc.importance, chunk.aux, keep),
            arrived=put(acc.arrived, keep),
            num=num,
            den=den,
        )

    def finalize(acc: Acc, variables: Variables, shared: PyTree) -> Merged:
        del shared
        slots = acc.slots
        discount = late(jnp.maximum(acc.step - slots.version, 0)) if live else slots.discount
        p = jnp.where(slots.version >= 0, slots.weight * discount, 0.0)
        share = jnp.sum(jnp.where(acc.arrived, p, 0.0)) / jnp.maximum(jnp.sum(p), 1e-30)
        num, den, step = acc.num, acc.den, eta * share
        if buffered:
            kept = weighted_sums(slots, acc.booked, p, variables.params, masked=masked)
            (num, den), step = jax.tree.map(jnp.add, (num, den), kept), jnp.float32(eta)
        new = jax.tree.map(lambda old, n, d: moved(old, n, d, step), variables, num, den)
        return Merged(new, {"share_of_arrivals": share})

    def put(state: Any, kept: tuple[Slots, Importance] | None) -> Any:
        slots, importance = (None, None) if kept is None else kept
        return state._replace(slots=slots, importance=importance)

    kept = Buffers(lambda acc: (acc.slots, acc.importance), put)
    return Aggregator(init, add, finalize, kept)


def start_masked(mask: PyTree, variables: Variables) -> Variables:
    """The sub-model a client gets: pruned weights are zero in the forward pass, too."""
    return variables._replace(params=masks.apply(mask, variables.params))
