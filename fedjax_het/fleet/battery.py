"""Charge of batteries: what the parts of a task take, and when it runs out."""

import numpy as np

from fedjax_het.contract.plan import Timing
from fedjax_het.fleet.device import Fleet

# A battery with less than this share of its charge left is empty; it is the rounding of sums.
_EMPTY = 1e-9


def is_empty(capacity_joules: np.ndarray, spent_joules: np.ndarray) -> np.ndarray:
    """Whether each battery is empty, bool[n]; one without limit (inf) never is."""
    return spent_joules >= capacity_joules * (1 - _EMPTY)


def part_joules(fleet: Fleet, clients: np.ndarray, timing: Timing) -> np.ndarray:
    """Joules of download, computation and upload of whole tasks, float64[3, k]."""
    return np.stack(
        [
            timing.bytes_down * fleet.joules_per_byte_down[clients],
            timing.flops * fleet.joules_per_flop[clients],
            timing.bytes_up * fleet.joules_per_byte_up[clients],
        ]
    )


def covered(joules: np.ndarray, left_joules: np.ndarray) -> np.ndarray:
    """Share of each part of a task for which the charge is enough, float64[3, k].

    Args:
      joules: joules of download, computation and upload, float64[3, k].
      left_joules: charge at dispatch, float64[k].
    """
    until_j = np.cumsum(joules, axis=0)
    before_j = np.concatenate([np.zeros((1, joules.shape[1])), until_j[:-1]])
    enough = left_joules >= until_j
    # A part without a price for which the charge is not enough comes after one that spent it.
    short = ~enough & (joules > 0)
    share = np.divide(left_joules - before_j, joules, out=np.zeros_like(joules), where=short)
    return np.where(enough, 1.0, np.maximum(share, 0.0))
