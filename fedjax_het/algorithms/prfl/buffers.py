r"""The server's buffers: of every client the weights of its sub-model, packed into pages.

A sub-model is the beginning of the ranking that it was made with. Its upload is kept in the order
of that ranking, cut into pages of P weights that lie anywhere in one pool; so no mask is stored,
and weights that happen to be zero count. A slot refers to its own ranking: one is not overwritten
while a slot, or a task at work, has it, and while all are taken the newest stays in use. With n
clients, N weights that can be pruned, D parameters that cannot, and kept densities rho_i ::

    bytes = 4 (sum_i (rho_i N rounded up to whole pages) + n D + RANKINGS N)

P is N / 64 or less, so that rounding up costs N / 128 a client. The pool has a fixed size; pages
are given out on the host when tasks are sent out, and an upload that finds no room is merged when
it arrives and not kept.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms.prfl.ranking import Network, flat, join, never_pruned
from fedjax_het.common.errors import require
from fedjax_het.common.options import check_types
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables

RANKINGS = 4  # that uploads may refer to at a time
_MOST_PAGE, _PARTS = 4096, 64


@dataclass(frozen=True)
class Memory:
    """How much room the buffers have.

    Attributes:
      buffer_density: mean density that there is room for, which recovery may exceed; None for 1, or
        for what fits.
      limit_bytes: limit for the buffers and all else that the server keeps but the results.
    """

    buffer_density: float | None = None
    limit_bytes: float = 16e9

    def __post_init__(self) -> None:
        check_types(vars(self), "memory option", type(self))
        density = self.buffer_density
        require(
            density is None or 0 < density <= 1,
            f"buffer_density = {density}",
            "must lie in (0, 1]",
            "leave it out for as much as fits",
        )


class Layout(NamedTuple):
    """The shape of the pool.

    Attributes:
      weights: weights that can be pruned, N.
      page: weights in a page, P.
      pages: number of pages in the pool.
    """

    weights: int
    page: int
    pages: int

    @property
    def per_model(self) -> int:
        """Pages of a whole model, J."""
        return -(-self.weights // self.page)

    def needed(self, count: np.ndarray) -> np.ndarray:
        """Pages of sub-models with so many weights."""
        return -(-np.asarray(count, np.int64) // self.page)


def page_size(weights: int) -> int:
    """P: a power of two."""
    return int(np.clip(2 ** int(np.log2(max(weights // _PARTS, 1))), 1, _MOST_PAGE))


def pool_layout(net: Network, counts: np.ndarray, memory: Memory, *, copies: int) -> Layout:
    """The pool that fits; see `buffers` for what it takes.

    Args:
      net: sizes of the model.
      counts: int64[n], weights of the first sub-models.
      memory: the room there is.
      copies: copies of the buffers; 0 keeps nothing.

    Raises:
      InputError: the first sub-models do not fit, or more is asked for than fits.
    """
    density, limit_bytes = memory.buffer_density, memory.limit_bytes
    n, parameters = len(counts), net.weights + net.dense
    layout = Layout(net.weights, page_size(net.weights), 0)
    if copies == 0:
        return layout
    # Rankings, importances, sums, and where the pages of each client are.
    fixed = 4 * (20 * parameters + n * layout.per_model)
    each = 4 * copies * layout.page
    first, most = int(np.sum(layout.needed(counts))), n * layout.per_model
    room = limit_bytes - fixed - 4 * copies * n * net.dense
    wanted = most if density is None else int(np.ceil(density * most))
    require(
        density is None or wanted >= first,
        f"buffer_density = {density}",
        f"is below the mean density {first / most:.3g} of the first sub-models",
        "raise it, or lower densities",
    )
    least = first if density is None else wanted
    need = least * each + limit_bytes - room
    require(
        least * each <= room,
        f"buffers of {n} clients and a model of {parameters} parameters: {need:.4g} bytes",
        f"exceed limit_bytes = {limit_bytes:.4g}",
        "raise it if there is as much, set roll_back = False, or take smaller densities",
    )
    return layout._replace(pages=min(wanted, int(room // each)))


class Booked(NamedTuple):
    """What is set aside for the next upload of each client, on the host.

    Its latest upload lies in the first of these pages; the next one will, too.

    Attributes:
      pages: int32[n, J], places in the pool in the order of the ranking; the size of the pool where
        there is none.
      size: int32[n], weights of the task that was sent out last.
      ranking: int32[n], its ranking; -1 if its upload will not be kept.
    """

    pages: np.ndarray
    size: np.ndarray
    ranking: np.ndarray


def no_bookings(layout: Layout, clients: int) -> Booked:
    """Before anything is sent out."""
    return Booked(
        np.full((clients, layout.per_model), layout.pages, np.int32),
        np.zeros(clients, np.int32),
        np.full(clients, -1, np.int32),
    )


def book(
    booked: Booked,
    layout: Layout,
    clients: np.ndarray,
    count: np.ndarray,
    ranking: np.ndarray | int,
) -> Booked:
    """Sets pages aside for tasks that are sent out, small sub-models first, while there are any.

    Args:
      booked: bookings so far.
      layout: shape of the pool.
      clients: int64[k].
      count: int64[k], weights of their sub-models.
      ranking: int64[k] or one value, the place of their ranking; -1 keeps nothing.
    """
    pages, counts, rankings = (a.copy() for a in booked)
    ranking = np.broadcast_to(ranking, clients.shape)
    free = np.ones(layout.pages + 1, bool)
    free[pages] = False
    places = np.flatnonzero(free[:-1])
    held = np.sum(pages[clients] < layout.pages, axis=1)
    more = np.where(ranking >= 0, np.maximum(layout.needed(count) - held, 0), 0)
    order = np.argsort(more, kind="stable")
    fits = np.empty(clients.shape, bool)
    fits[order] = np.cumsum(more[order]) <= places.size
    more = np.where(fits, more, 0)
    before = np.cumsum(more) - more
    column = np.arange(np.sum(more)) - np.repeat(before - held, more)
    pages[np.repeat(clients, more), column] = places[: np.sum(more)]
    counts[clients] = count
    rankings[clients] = np.where(fits, ranking, -1)
    return Booked(pages, counts, rankings)


def release(booked: Booked, layout: Layout, clients: np.ndarray) -> Booked:
    """Gives back the pages that the uploads of these clients, now in place, do not need."""
    pages = booked.pages.copy()
    kept = booked.ranking[clients] >= 0
    need = np.where(kept, layout.needed(booked.size[clients]), 0)
    beyond = np.arange(layout.per_model) >= need[:, None]
    pages[clients] = np.where(beyond, layout.pages, pages[clients])
    return booked._replace(pages=pages)


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
    nothing: Any = ()
    slots = Slots(
        pool=nothing,
        size=jnp.zeros(clients, jnp.int32),
        ranking=jnp.zeros(clients, jnp.int32),
        ranks=nothing,
        rest=[],
        stats=nothing,
        version=jnp.full(clients, -1, jnp.int32),
        weight=jnp.zeros(clients, jnp.float32),
        discount=jnp.zeros(clients, jnp.float32),
    )
    if not layout.pages:
        return slots

    def room(leaf: jax.Array) -> jax.Array:
        return jnp.zeros((clients, *leaf.shape), leaf.dtype)

    return slots._replace(
        pool=jnp.zeros((layout.pages, layout.page), jnp.float32),
        ranks=jnp.tile(jnp.arange(layout.weights, dtype=jnp.int32), (RANKINGS, 1)),
        rest=[room(leaf) for leaf in never_pruned(variables.params)],
        stats=jax.tree.map(room, variables.stats),
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
      slots: buffers so far.
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
      booked: places of the uploads.
      client: int32[].
      like: structure and shapes of the parameters.
    """
    values, there = by_rank(slots, booked, client)
    weights = jnp.where(there, values, 0.0)[slots.ranks[slots.ranking[client]]]
    rest, stats = jax.tree.map(lambda every: every[client], (slots.rest, slots.stats))
    return Variables(join(like, weights, rest), stats)


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
      slots: buffers of then.
      booked: bookings of then.
      now: the slots of now, for their rankings.
      tasks: the bookings of now, for the tasks.
      place: place of the newest ranking among those of now.
      layout: shape of the pool.

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
