r"""The server's buffers: the weights of every client's sub-model, packed into pages.

A sub-model has the first weights of its ranking. Its upload is stored in the order of that ranking,
in pages of P weights at any positions of one pool. No mask is stored, and trained weights that are
zero count. A slot refers to its own ranking. A ranking is not overwritten while a slot or a task at
work refers to it; while all are in use no new ranking is made. With n clients, N prunable weights,
D other parameters and kept densities rho_i ::

    bytes = 4 (sum_i (rho_i N rounded up to whole pages) + n D + RANKINGS N)

P is at most N / 64, so rounding up costs about N / 128 per client. The pool has a fixed size. Pages
are assigned on the host when tasks are dispatched. An upload without pages is merged on arrival and
not stored.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms.prfl.ranking import Network, flat, join, never_pruned
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Unlimited
from fedjax_het.common.options import check_types
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables

RANKINGS = 4  # number of rankings to which uploads may refer at a time
_MOST_PAGE, _PARTS = 4096, 64


@dataclass(frozen=True)
class Memory:
    """Options of the buffers' memory.

    Attributes:
      buffer_density: mean density for which there are pages, which recovery may exceed; None for 1,
        or the largest density that fits.
      limit_bytes: limit of the server's memory in bytes, buffers included, results excluded.
    """

    buffer_density: float | None = None
    limit_bytes: Unlimited = 16e9

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
    """Shape of the pool.

    Attributes:
      weights: number of prunable weights, N.
      page: number of weights in a page, P.
      pages: number of pages in the pool.
    """

    weights: int
    page: int
    pages: int

    @property
    def per_model(self) -> int:
        """Number of pages of a whole model, J."""
        return -(-self.weights // self.page)

    def needed(self, count: np.ndarray) -> np.ndarray:
        """Number of pages of sub-models with `count` weights."""
        return -(-np.asarray(count, np.int64) // self.page)


def page_size(weights: int) -> int:
    """Number of weights in a page, P, a power of two."""
    return int(np.clip(2 ** int(np.log2(max(weights // _PARTS, 1))), 1, _MOST_PAGE))


def pool_layout(net: Network, counts: np.ndarray, memory: Memory, *, copies: int) -> Layout:
    """The largest pool within the limits; the module states its size.

    Args:
      net: sizes of the model.
      counts: number of weights of the first sub-models, int64[n].
      memory: options of the buffers' memory.
      copies: number of copies of the buffers; 0 for no pool.

    Raises:
      InputError: if the first sub-models or `buffer_density` do not fit.
    """
    density, limit_bytes = memory.buffer_density, memory.limit_bytes
    n, parameters = len(counts), net.weights + net.dense
    layout = Layout(net.weights, page_size(net.weights), 0)
    if copies == 0:
        return layout
    # Rankings, importances, sums, and the positions of each client's pages.
    fixed = 4 * (20 * parameters + n * layout.per_model + copies * n * net.dense)
    each = 4 * copies * layout.page
    first, most = int(np.sum(layout.needed(counts))), n * layout.per_model
    capacity = limit_bytes - fixed
    wanted = most if density is None else int(np.ceil(density * most))
    require(
        density is None or wanted >= first,
        f"buffer_density = {density}",
        f"is below the mean density {first / most:.3g} of the first sub-models",
        "raise it, or lower densities",
    )
    least = first if density is None else wanted
    require(
        least * each <= capacity,
        f"buffers of {n} clients and {parameters} parameters: {least * each + fixed:.4g} bytes",
        f"exceed limit_bytes = {limit_bytes:.4g}",
        "raise it if there is as much, set roll_back = False, or take smaller densities",
    )
    return layout._replace(pages=int(min(wanted, capacity // each)))


class Booked(NamedTuple):
    """Pages that are reserved for the next upload of each client, on the host.

    The latest upload is in the first of these pages, as the next upload will be.

    Attributes:
      pages: int32[n, J], positions in the pool by rank; the pool's size for entries without a page.
      size: int32[n], number of weights of the task that was dispatched last.
      ranking: int32[n], ranking of that task; -1 if its upload will not be stored.
    """

    pages: np.ndarray
    size: np.ndarray
    ranking: np.ndarray


def no_bookings(layout: Layout, clients: int) -> Booked:
    """Bookings before the first dispatch."""
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
    """Reserves pages for dispatched tasks, small sub-models first, while pages are free.

    Args:
      booked: bookings so far.
      layout: shape of the pool.
      clients: ids of the clients, int64[k].
      count: number of weights of their sub-models, int64[k].
      ranking: index of their ranking, int64[k] or one value; -1 stores nothing.
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
    """Releases the pages that the stored uploads of these clients do not need."""
    pages = booked.pages.copy()
    kept = booked.ranking[clients] >= 0
    need = np.where(kept, layout.needed(booked.size[clients]), 0)
    beyond = np.arange(layout.per_model) >= need[:, None]
    pages[clients] = np.where(beyond, layout.pages, pages[clients])
    return booked._replace(pages=pages)


class Slots(NamedTuple):
    """The latest uploads of the n clients.

    Attributes:
      pool: float32[pages, P], weights of the uploads; see `Booked.pages`. Without pages `pool`,
        `ranks`, `rest` and `stats` are ().
      size: int32[n], number of stored weights; 0 if no upload is stored.
      ranking: int32[n], index of each upload's ranking.
      ranks: int32[RANKINGS, N], rankings in use.
      rest: leaves that are never pruned, leading axis n each.
      stats: running statistics, leading axis n.
      version: int32[n], server step of the model from which each upload started; -1 before the
        first.
      weight: float32[n], aggregation weight n_i of each upload.
      discount: float32[n], staleness weight of each upload at its arrival.
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
    """Slots before the first upload; without pages there are no arrays."""
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

    def empty(leaf: jax.Array) -> jax.Array:
        return jnp.zeros((clients, *leaf.shape), leaf.dtype)

    return slots._replace(
        pool=jnp.zeros((layout.pages, layout.page), jnp.float32),
        ranks=jnp.tile(jnp.arange(layout.weights, dtype=jnp.int32), (RANKINGS, 1)),
        rest=[empty(leaf) for leaf in never_pruned(variables.params)],
        stats=jax.tree.map(empty, variables.stats),
    )


def store(
    slots: Slots,
    booked: Booked,
    client: jax.Array,
    keep: jax.Array,
    uploads: Variables,
    order: jax.Array,
) -> Slots:
    """Replaces the earlier uploads of the clients; traced.

    Args:
      slots: buffers so far.
      booked: bookings, on the device.
      client: ids of the clients, int32[c].
      keep: mask of the complete uploads, bool[c]. Those without a ranking are not stored.
      uploads: variables of the uploads, leading axis c.
      order: weights by rank, int32[c, N].
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
        length = places.shape[1] * page
        packed = jnp.pad(packed, ((0, 0), (0, length - packed.shape[1])))
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
    """A client's weights in the order of its ranking, float32[J P], and their mask; traced."""
    values = slots.pool[booked.pages[client]].reshape(-1)
    return values, jnp.arange(values.size) < slots.size[client]


def unpack(slots: Slots, booked: Booked, client: jax.Array, like: PyTree) -> Variables:
    """The latest upload of a client, with zeros for pruned weights; traced.

    Args:
      slots: buffers.
      booked: positions of the uploads.
      client: id of the client, int32[].
      like: structure and shapes of the parameters.
    """
    values, there = by_rank(slots, booked, client)
    weights = jnp.where(there, values, 0.0)[slots.ranks[slots.ranking[client]]]
    rest, stats = jax.tree.map(lambda every: every[client], (slots.rest, slots.stats))
    return Variables(join(like, weights, rest), stats)


def free_ranking(slots: Slots, booked: Booked) -> int | None:
    """Index of a ranking to which no slot and no task refers, or None."""
    held = np.asarray(slots.ranking)[np.asarray(slots.size) > 0]
    free = np.setdiff1d(np.arange(slots.ranks.shape[0]), [*held, *booked.ranking])
    return int(free[0]) if free.size else None


def rolled_back(
    slots: Slots, booked: Booked, now: Slots, tasks: Booked, place: int, layout: Layout
) -> tuple[Slots, Booked, int]:
    """Earlier buffers, with bookings for the tasks that are at work now.

    Args:
      slots: earlier buffers.
      booked: earlier bookings.
      now: current slots, for their rankings.
      tasks: current bookings, for the tasks.
      place: index of the newest ranking among the current rankings.
      layout: shape of the pool.

    Returns:
      The slots, the bookings, and the index of the newest ranking. Uploads of a ranking or task
      that does not fit are not stored.
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
