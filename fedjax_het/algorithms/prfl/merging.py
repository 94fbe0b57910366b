r"""MaskFedAvg: the mean of every coordinate over the uploads that contain it.

::

    num = sum_i p_i m_i W_i      den = sum_i p_i m_i      new = W + eta (num / den - W)   (den > 0)

The sums are over the buffers (`buffers.py`), which have one slot per client with its latest upload,
weighted by staleness, and over the arrivals that are not stored. An upload keeps its mask when the
ranking changes.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.algorithms.prfl.buffers import RANKINGS, Booked, Slots, by_rank, store
from fedjax_het.algorithms.prfl.ranking import Importance, join, observe
from fedjax_het.common.errors import require
from fedjax_het.common.options import check_types
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import zeros
from fedjax_het.contract.algorithm import Aggregator, Chunk, Merged, Variables
from fedjax_het.contract.memory import Buffers
from fedjax_het.contract.staleness import Discount, discount


@dataclass(frozen=True)
class Arrivals:
    """Options of stale uploads and of the server's step.

    Attributes:
      staleness: discount: "constant", "polynomial" or "hinge"; see `staleness.discount`.
      a: exponent or slope of the discount; the author's value is 0.6.
      b: largest staleness without a discount by the hinge; the author's value is 2.
      server_step: step size eta of the server.
    """

    staleness: str = "polynomial"
    a: float = 0.6
    b: float = 2.0
    server_step: float = 1.0

    def __post_init__(self) -> None:
        check_types(vars(self), "merge option", type(self))
        require(
            0 <= self.server_step <= 1,
            f"server_step = {self.server_step}",
            "must lie in [0, 1]",
            "leave it out",
        )
        self.late()  # refuses what is no discount

    def late(self) -> Discount:
        """The discount function s."""
        return discount(self.staleness, self.a, self.b)

    def alone(self) -> "Merge":
        """The merge of the asynchronous baselines: arrivals only, with the staleness at arrival."""
        return Merge(**vars(self), live=False, buffered=False)


@dataclass(frozen=True)
class Merge(Arrivals):
    r"""Options of PR-FL's merge and its ablations, beside those of `Arrivals`.

    Attributes:
      live: whether the weight of a slot follows its current staleness; False for the staleness at
        arrival (as in the code).
      buffered: whether all slots are merged; False averages only the arrivals and moves the model
        by their share $\alpha = \sum p_i$ of the weights of all clients, as the author's FedAsyn
        and FedFix do.
      masked: whether a coordinate counts only in uploads that trained it; False for the plain mean,
        in which a pruned coordinate is zero.
    """

    live: bool = True
    buffered: bool = True
    masked: bool = True


class Acc(NamedTuple):
    """Accumulator of one merge.

    Attributes:
      slots: buffers with the arrivals.
      booked: pages reserved for the uploads.
      importance: importances with those of the arrivals.
      arrived: bool[n], mask of the clients that have arrived.
      num, den: sums over the arrivals that are not stored, or over all arrivals without buffers.
      step: int32[], server step, from 0.
    """

    slots: Slots
    booked: Booked
    importance: Importance
    arrived: jax.Array
    num: PyTree
    den: PyTree
    step: jax.Array


def sums(
    weight: jax.Array, values: jax.Array, mask: jax.Array, masked: bool
) -> tuple[jax.Array, jax.Array]:
    """`sum_i p_i m_i W_i` and `sum_i p_i m_i`; NaN counts as pruned.

    Args:
      weight: weights p, float32[c].
      values: values W, float32[c, ...].
      mask: masks m, bool[c, ...], or bool[c] for whole tensors.
      masked: whether pruned coordinates are excluded; False counts them as zero.
    """

    def wide(each: jax.Array) -> jax.Array:
        missing = (1,) * (values.ndim - each.ndim)
        return jnp.broadcast_to(each.reshape(each.shape + missing), values.shape)

    p, there = wide(weight), wide(mask) & ~jnp.isnan(values)
    num = jnp.sum(jnp.where(there, p * values, 0.0), axis=0)
    return num, jnp.sum(jnp.where(there, p, 0.0) if masked else p, axis=0)


def weighted_sums(
    slots: Slots, booked: Booked, p: jax.Array, like: PyTree, *, masked: bool
) -> tuple[Variables, Variables]:
    """`sum_i p_i m_i W_i` and `sum_i p_i m_i` over the buffers, summed by rank; traced.

    Args:
      slots: buffers.
      booked: positions of the uploads.
      p: weights of the uploads, float32[n].
      like: structure and shapes of the parameters.
      masked: whether pruned coordinates are excluded; False counts them as zero.
    """
    p = jnp.where(slots.size > 0, p, 0.0)
    weights = slots.ranks.shape[1]
    length = booked.pages.shape[1] * slots.pool.shape[1]

    def one(client: jax.Array, total: jax.Array) -> jax.Array:
        values, there = by_rank(slots, booked, client)
        own = jnp.where(there, p[client] * values, 0.0)
        return total.at[slots.ranking[client]].add(own)

    by_place = jnp.zeros((RANKINGS, length), jnp.float32)
    by_place = jax.lax.fori_loop(0, slots.size.shape[0], one, by_place)

    def of_ranking(r: jax.Array, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        here = (slots.ranking == r) & (slots.size > 0)

        def add(_: Any, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            # Sub-models of more than k weights contain weight k.
            by_count = jnp.zeros(weights + 1, jnp.float32)
            by_count = by_count.at[slots.size].add(jnp.where(here, p, 0.0))
            more = jnp.cumsum(by_count[::-1])[::-1][1:]
            ranks = slots.ranks[r]
            return total[0] + by_place[r][ranks], total[1] + more[ranks]

        return jax.lax.fori_loop(0, jnp.any(here).astype(jnp.int32), add, total)

    nothing = jnp.zeros(weights, jnp.float32)
    num, den = jax.lax.fori_loop(0, RANKINGS, of_ranking, (nothing, nothing))
    everyone = jnp.sum(p)
    if not masked:
        den = jnp.full_like(den, everyone)
    rest, stats = jax.tree.map(
        lambda every: jnp.tensordot(p, every, axes=1, precision=jax.lax.Precision.HIGHEST),
        (slots.rest, slots.stats),
    )
    others, of_stats = jax.tree.map(lambda leaf: jnp.full_like(leaf, everyone), (rest, stats))
    return Variables(join(like, num, rest), stats), Variables(join(like, den, others), of_stats)


def moved(old: jax.Array, num: jax.Array, den: jax.Array, eta: jax.Array | float) -> jax.Array:
    """`old + eta (num / den - old)`; exactly `old` where den is 0."""
    there = den > 0
    mean = num / jnp.where(there, den, 1.0)
    return jnp.where(there, old + eta * (mean - old), old)


def mask_fed_avg(options: Merge) -> Aggregator:
    """The merge of PR-FL and of its ablations.

    Args:
      options: options of the merge.

    Returns:
      An `Aggregator` over a state with the fields `slots`, `booked`, `importance` and `step`.
    """
    late, buffered, masked = options.late(), options.buffered, options.masked

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
        s = late(chunk.staleness)
        uploads = jax.tree.map(jnp.add, chunk.start, Variables(chunk.delta, chunk.stats_delta))
        mask = jax.tree.map(lambda _: jnp.ones(keep.shape, bool), uploads)
        if chunk.mask is not None:
            mask = mask._replace(params=chunk.mask)

        def put(every: jax.Array, new: jax.Array) -> jax.Array:
            return every.at[at].set(new.astype(every.dtype), mode="drop")

        passing = keep & (acc.booked.ranking[chunk.client] < 0) if buffered else keep

        def pass_on(total: tuple[Variables, Variables]) -> tuple[Variables, Variables]:
            p = jnp.where(passing, chunk.weight * s, 0.0)
            both = jax.tree.map(lambda w, m: sums(p, w, m, masked), uploads, mask)
            num = jax.tree.map(lambda old, pair: old + pair[0], total[0], both)
            return num, jax.tree.map(lambda old, pair: old + pair[1], total[1], both)

        # A loop of one iteration or none: XLA's conditional crashed here (JAX 0.10.2, CPU, 2
        # devices).
        turns = jnp.any(passing).astype(jnp.int32) if buffered else 1
        num, den = jax.lax.fori_loop(0, turns, lambda _, total: pass_on(total), (acc.num, acc.den))
        slots = store(acc.slots, acc.booked, chunk.client, keep, uploads, chunk.shared["order"])
        slots = slots._replace(
            version=put(slots.version, acc.step - chunk.staleness),
            weight=put(slots.weight, chunk.weight),
            discount=put(slots.discount, s),
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
        s = late(jnp.maximum(acc.step - slots.version, 0)) if options.live else slots.discount
        p = jnp.where(slots.version >= 0, slots.weight * s, 0.0)
        share = jnp.sum(jnp.where(acc.arrived, p, 0.0)) / jnp.maximum(jnp.sum(p), 1e-30)
        num, den, step = acc.num, acc.den, options.server_step * share
        if buffered:
            kept = weighted_sums(slots, acc.booked, p, variables.params, masked=masked)
            num, den = jax.tree.map(jnp.add, (num, den), kept)
            step = jnp.float32(options.server_step)
        new = jax.tree.map(lambda old, n, d: moved(old, n, d, step), variables, num, den)
        return Merged(new, {"share_of_arrivals": share})

    def put(state: Any, kept: tuple[Slots, Importance] | None) -> Any:
        slots, importance = (None, None) if kept is None else kept
        return state._replace(slots=slots, importance=importance)

    kept = Buffers(lambda acc: (acc.slots, acc.importance), put)
    return Aggregator(init, add, finalize, kept)


def start_masked(mask: PyTree, variables: Variables) -> Variables:
    """The sub-model of a client: pruned weights are zero, also in the forward pass."""
    return variables._replace(params=masks.apply(mask, variables.params))
