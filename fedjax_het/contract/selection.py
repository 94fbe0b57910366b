"""Who takes part: a selection draws the next cohort from the clients that are available."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Candidates(NamedTuple):
    """What a selection may look at.

    Attributes:
      round: server step about to start, from 0.
      now_s: virtual time of the dispatch.
      clients: int64[m], ids of the clients that are available and idle, ascending.
      wanted: clients to select, at most m.
      rng: NumPy generator of this draw.
    """

    round: int
    now_s: float
    clients: np.ndarray
    wanted: int
    rng: np.random.Generator


# From candidates to the ids of those who take part, int64[wanted], without repetition.
Select = Callable[[Candidates], np.ndarray]


def uniform(candidates: Candidates) -> np.ndarray:
    """All candidates with the same probability, without replacement."""
    return candidates.rng.choice(candidates.clients, candidates.wanted, replace=False)
