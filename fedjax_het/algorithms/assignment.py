"""Who trains which level of a method with sub-models: the options that say it, and the result."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.contract.plan import Situation


class Assignment(NamedTuple):
    """Who trains which level.

    Attributes:
      of: function from a cohort and its round to the level of each client, int64[k].
      fixed: level of every client, int64[n]; None if it changes from round to round.
    """

    of: Callable[[Situation], np.ndarray]
    fixed: np.ndarray | None = None

    def __call__(self, situation: Situation) -> np.ndarray:
        """The level of each client of a cohort, int64[k]."""
        return self.of(situation)


def drawn(situation: Situation, clients: int, chances: np.ndarray) -> np.ndarray:
    """Indices of the levels that all clients draw in a round, int64[clients].

    They come from the key of the round, so that a price and the task itself are of one level.

    Args:
      situation: round.
      clients: number of clients.
      chances: chance of each level, float64[levels].
    """
    seed = np.asarray(jax.random.key_data(situation.key)).ravel()
    return np.random.default_rng(seed).choice(len(chances), size=clients, p=chances)


def given_levels(levels: Sequence[int], clients: int, count: int) -> np.ndarray:
    """The option `levels`, int64[clients]; `InputError` unless they are indices below `count`."""
    given = np.asarray(levels)
    require(
        given.shape == (clients,)
        and given.dtype.kind in "iu"
        and bool(((given >= 0) & (given < count)).all()),
        f"levels of shape {given.shape} from {given.min(initial=0)} to {given.max(initial=0)}",
        f"must be an index into the {count} rates for each of the {clients} clients",
        "use 0 for the first rate",
    )
    return given.astype(np.int64)


def given_shares(shares: Sequence[float] | None, count: int) -> np.ndarray:
    """The option `shares`, float64[count], equal by default; `InputError` unless their sum is 1."""
    given = np.full(count, 1 / count) if shares is None else np.asarray(shares)
    require(
        given.shape == (count,) and bool((given >= 0).all()) and abs(float(given.sum()) - 1) < 1e-6,
        f"shares = {shares}",
        f"must be {count} numbers >= 0 with the sum 1, one for each rate",
        "leave it out",
    )
    return given / given.sum()
