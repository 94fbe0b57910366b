"""Selections, which draw the next cohort from the clients that are available."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Candidates(NamedTuple):
    """The input of a selection.

    Attributes:
      round: number of the server step about to start, from 0.
      now_s: virtual time of the dispatch in seconds.
      clients: ids of the clients that are available and idle, ascending, int64[m].
      wanted: number of clients to select, at most m.
      rng: NumPy generator of this draw.
    """

    round: int
    now_s: float
    clients: np.ndarray
    wanted: int
    rng: np.random.Generator


# A function from the candidates to the ids of the cohort, int64[wanted], without repetition.
Select = Callable[[Candidates], np.ndarray]


def uniform(candidates: Candidates) -> np.ndarray:
    """Selects all candidates with equal probability, without replacement."""
    return candidates.rng.choice(candidates.clients, candidates.wanted, replace=False)
