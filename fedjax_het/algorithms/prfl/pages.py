"""Room for uploads: a pool of pages on the device, given out on the host when tasks are sent out.

A page holds P weights, N / 64 or less, so that rounding sub-models up to whole pages costs N / 128
a client. The pool has a fixed size; an upload that finds no room is merged when it arrives and not
kept.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedjax_het.algorithms.prfl.ranking import Network
from fedjax_het.common.errors import require
from fedjax_het.common.options import check_types

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
      copies: of the buffers; 0 keeps nothing.

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
      booked: so far.
      layout: of the pool.
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
