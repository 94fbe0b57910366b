r"""The server's buffers: of every client the weights of its sub-model, packed into pages.

A sub-model is the beginning of the ranking that it was made with. Its upload is kept in the order
of that ranking, cut into pages that lie anywhere in one pool (`pages.py`); so no mask is stored,
and weights that happen to be zero count. A slot refers to its own ranking: one is not overwritten
while a slot, or a task at work, has it, and while all are taken the newest stays in use. With n
clients, N weights that can be pruned, D parameters that cannot, and kept densities rho_i ::

    bytes = 4 (sum_i (rho_i N rounded up to whole pages) + n D + RANKINGS N)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms.prfl.pages import RANKINGS, Booked, Layout, book
from fedjax_het.algorithms.prfl.ranking import flat, join, never_pruned
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables


class Slots(NamedTuple):
    """What the server has of its clients (n of them).

    Attributes:
      pool: float32[pages, P], weights of the latest uploads; see `Booked.pages`. It is (), as are
        `ranks`, `rest` and `stats`, where nothing is kept.
      size: int32[n], how many of each; 0 before the first, and where it was not kept.
      ranking: int32[n], in the order of which ranking.
      ranks: int32[RANKINGS, N], the rankings in use.
      rest: the leaves that are never pruned, leading axis n each.
      stats: running statistics, leading axis n.
      version: int32[n], server step behind the model each upload started from; -1 before the first.
      weight: float32[n], aggregation weight n_i of each upload.
      discount: float32[n], its staleness weight when it arrived.
    """

    pool: jax.Array
    size: jax.Array
    ranking: jax.Array
    ranks: jax.Array
    rest: list[jax.Array]
    stats: PyTree
    version: jax.Array
    weight: jax.Array
    discount: jax.Array


def no_slots(variables: Variables, layout: Layout, clients: int) -> Slots:
    """Before the first upload; without pages, where nothing is ever kept, there are no arrays."""

    def room(leaf: jax.Array) -> jax.Array:
        return jnp.zeros((clients, *leaf.shape), leaf.dtype)

    pool: Any = ()
    ranks: Any = ()
    rest: list[jax.Array] = []
    stats: PyTree = ()
    if layout.pages:
        pool = jnp.zeros((layout.pages, layout.page), jnp.float32)
        ranks = jnp.tile(jnp.arange(layout.weights, dtype=jnp.int32), (RANKINGS, 1))
        rest = [room(leaf) for leaf in never_pruned(variables.params)]
        stats = jax.tree.map(room, variables.stats)
    return Slots(
        pool,
        jnp.zeros(clients, jnp.int32),
        jnp.zeros(clients, jnp.int32),
        ranks,
        rest,
        stats,
        jnp.full(clients, -1, jnp.int32),
        jnp.zeros(clients, jnp.float32),
        jnp.zeros(clients, jnp.float32),
    )


def store(
    slots: Slots,
    booked: Booked,
    client: jax.Array,
    keep: jax.Array,
    uploads: Variables,
    order: jax.Array,
) -> Slots:
    """Puts uploads in place of the earlier ones of their clients; traced.

    Args:
      slots: so far.
      booked: `Booked`, on the device.
      client: int32[c].
      keep: bool[c], which of them have arrived whole. Of those without a ranking nothing stays.
      uploads: leading axis c.
      order: int32[c, N], weights by rank.
    """
    nowhere = slots.size.shape[0]
    kept = keep & (booked.ranking[client] >= 0)
    at, there = jnp.where(keep, client, nowhere), jnp.where(kept, client, nowhere)

    def put(every: jax.Array, new: jax.Array, where: jax.Array = there) -> jax.Array:
        return every.at[where].set(new.astype(every.dtype), mode="drop")

    pool, rest, stats = slots.pool, slots.rest, slots.stats
    if jax.tree.leaves(pool):
        pages, page = pool.shape
        packed = jnp.take_along_axis(jax.vmap(flat)(uploads.params), order, axis=1)
        places = jnp.where(kept[:, None], booked.pages[client], pages)
        room = places.shape[1] * page
        packed = jnp.pad(packed, ((0, 0), (0, room - packed.shape[1])))
        pool = pool.at[places.reshape(-1)].set(packed.reshape(-1, page), mode="drop")
        rest = jax.tree.map(put, rest, jax.vmap(never_pruned)(uploads.params))
        stats = jax.tree.map(put, stats, uploads.stats)
    return slots._replace(
        pool=pool,
        size=put(slots.size, jnp.where(kept, booked.size[client], 0), at),
        ranking=put(slots.ranking, booked.ranking[client]),
        rest=rest,
        stats=stats,
    )


def by_rank(slots: Slots, booked: Booked, client: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A client's weights in the order of its ranking, float32[J P], and which there are; traced."""
    values = slots.pool[booked.pages[client]].reshape(-1)
    return values, jnp.arange(values.size) < slots.size[client]


def unpack(slots: Slots, booked: Booked, client: jax.Array, like: PyTree) -> Variables:
    """The latest upload of a client, with zeros for the weights that it has not; traced.

    Args:
      slots: the buffers.
      booked: where they are.
      client: int32[].
      like: structure and shapes of the parameters.
    """
    values, there = by_rank(slots, booked, client)
    weights = jnp.where(there, values, 0.0)[slots.ranks[slots.ranking[client]]]
    rest, stats = jax.tree.map(lambda every: every[client], (slots.rest, slots.stats))
    return Variables(join(like, weights, rest), stats)


def weighted_sums(
    slots: Slots, booked: Booked, p: jax.Array, like: PyTree, *, masked: bool
) -> tuple[Variables, Variables]:
    """`sum_i p_i m_i W_i` and `sum_i p_i m_i` over what is kept, summed by rank.

    Args:
      slots: the buffers.
      booked: where they are.
      p: float32[n], weights.
      like: structure and shapes of the parameters.
      masked: False counts a pruned coordinate as a zero.
    """
    p = jnp.where(slots.size > 0, p, 0.0)
    weights = slots.ranks.shape[1]
    room = booked.pages.shape[1] * slots.pool.shape[1]

    def one(client: jax.Array, total: jax.Array) -> jax.Array:
        values, there = by_rank(slots, booked, client)
        own = jnp.where(there, p[client] * values, 0.0)
        return total.at[slots.ranking[client]].add(own)

    sums = jnp.zeros((RANKINGS, room), jnp.float32)
    sums = jax.lax.fori_loop(0, slots.size.shape[0], one, sums)

    def of_ranking(r: jax.Array, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        here = (slots.ranking == r) & (slots.size > 0)

        def add(_: Any, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            # Weight k counts for the sub-models that have more than k weights.
            by_count = jnp.zeros(weights + 1, jnp.float32)
            by_count = by_count.at[slots.size].add(jnp.where(here, p, 0.0))
            more = jnp.cumsum(by_count[::-1])[::-1][1:]
            ranks = slots.ranks[r]
            return total[0] + sums[r][ranks], total[1] + more[ranks]

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


def free_ranking(slots: Slots, booked: Booked) -> int | None:
    """The place of a ranking that nothing refers to, or None."""
    held = np.asarray(slots.ranking)[np.asarray(slots.size) > 0]
    free = np.setdiff1d(np.arange(slots.ranks.shape[0]), [*held, *booked.ranking])
    return int(free[0]) if free.size else None


def rolled_back(
    slots: Slots, booked: Booked, now: Slots, tasks: Booked, place: int, layout: Layout
) -> tuple[Slots, Booked, int]:
    """Earlier buffers, with room for what is at work now.

    Args:
      slots: of then.
      booked: of then.
      now: the slots of now, for their rankings.
      tasks: the bookings of now, for the tasks.
      place: of the newest ranking among those of now.
      layout: of the pool.

    Returns:
      The slots, the bookings, and the place of the newest ranking. Where there is no room for a
      ranking or a task, its uploads are not kept.
    """
    held = np.asarray(slots.ranking)[np.asarray(slots.size) > 0]
    free = np.setdiff1d(np.arange(slots.ranks.shape[0]), held)
    wanted = np.setdiff1d([place, *tasks.ranking], [-1])
    moved = np.full(slots.ranks.shape[0] + 1, -1, np.int64)  # the last one for -1
    moved[wanted[: free.size]] = free[: wanted.size]
    ranks = slots.ranks
    for old, new in zip(wanted, free, strict=False):
        ranks = ranks.at[int(new)].set(now.ranks[int(old)])
    clients = np.arange(len(tasks.size))
    booked = book(booked, layout, clients, tasks.size, moved[tasks.ranking])
    return slots._replace(ranks=ranks), booked, int(moved[place])
