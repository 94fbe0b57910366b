"""The best of many clients by values of which bounds are known."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_het.contract.selection import Pool
from fedjax_het.transforms.select.parts import nth

# Clients whose values are compared at a time.
_BLOCK = 1 << 15


class Front(NamedTuple):
    """The best of all eligible clients, from which the best of most of them follow.

    Attributes:
      clients: ids, ascending, int64[m].
      value: their values, float64[m].
      whole: whether no other client is eligible.
    """

    clients: np.ndarray
    value: np.ndarray
    whole: bool

    def best(self, pool: Pool, count: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The result of `best_of` for the clients of a pool; None if it may need others."""
        there = np.flatnonzero(pool.has(self.clients))
        if len(there) < count and not self.whole:
            return None
        there = there[largest(self.value[there], count)]
        return self.clients[there], self.value[there]


def front_of(
    eligible: np.ndarray,
    most: np.ndarray,
    share: Callable[[np.ndarray], np.ndarray],
    count: int,
) -> Front:
    """The `Front` of `count` clients; the arguments are those of `best_of`."""
    clients, value = best_of(eligible, most, share, count)
    order = np.argsort(clients)
    return Front(clients[order], value[order], len(clients) < count)


def best_of(
    eligible: np.ndarray,
    most: np.ndarray,
    share: Callable[[np.ndarray], np.ndarray],
    count: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The eligible clients with the `count` largest values, or all, and these values.

    Of equal values the first count; see `largest`. Only shares of clients whose most exceeds
    `count` values before them are computed.

    Args:
      eligible: whether each client may be taken, bool[n].
      most: largest possible value of every client, [n].
      share: function from ids to the shares of it that are their values, in [0, 1], float64.
      count: number of clients.
    """
    kept, value, floor = np.zeros(0, np.int64), np.zeros(0), -np.inf
    for start in range(0, len(eligible) if count else 0, _BLOCK):
        block = slice(start, start + _BLOCK)
        some = start + np.flatnonzero(eligible[block] & (most[block] > floor))
        if not some.size:
            continue
        kept, value = np.append(kept, some), np.append(value, most[some] * share(some))
        if len(kept) > 2 * count:
            # One more, so that those that are chosen at the end have the order of `largest`.
            best = np.sort(largest(value, count + 1))
            kept, value = kept[best], value[best]
            floor = float(np.min(value))
    best = largest(value, count)
    return kept[best], value[best]


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest values, or all, int64; of equal ones the first."""
    if count >= len(values):
        return np.arange(len(values))
    if not count:
        return np.zeros(0, np.int64)
    # Many devices are as fast as is preferred; to sort indices takes five times as long then.
    least = nth(values, len(values) - count)
    above = np.flatnonzero(values > least)
    return np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]])
