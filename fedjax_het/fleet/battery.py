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


def runs_out_after(joules: np.ndarray, timing: Timing, left_joules: np.ndarray) -> np.ndarray:
    """Seconds of work after which the charge is spent, float64[k]; inf if it is enough.

    The joules of each part are spread evenly over its seconds.

    Args:
      joules: joules of the parts, float64[3, k].
      timing: prices of the tasks.
      left_joules: charge at dispatch, float64[k].
    """
    works_s = np.full(len(left_joules), np.inf)
    parts_s = np.stack([timing.download_s, timing.compute_s, timing.upload_s])
    before_j, before_s = np.cumsum(joules, axis=0) - joules, np.cumsum(parts_s, axis=0) - parts_s
    # From the last part to the first, so that the first part that is not covered decides.
    for part in (2, 1, 0):
        short = left_joules < before_j[part] + joules[part]
        share = (left_joules - before_j[part]) / np.where(joules[part] > 0, joules[part], 1.0)
        at_s = before_s[part] + np.clip(share, 0.0, 1.0) * parts_s[part]
        works_s = np.where(short, at_s, works_s)
    return works_s


def joules_until(joules: np.ndarray, timing: Timing, works_s: np.ndarray) -> np.ndarray:
    """Joules of the first `works_s` seconds of each task, float64[k].

    Args:
      joules: joules of the parts, float64[3, k].
      timing: prices of the tasks.
      works_s: seconds of work, float64[k].
    """
    total = np.zeros(len(works_s))
    for part_j, part_s in zip(
        joules, (timing.download_s, timing.compute_s, timing.upload_s), strict=True
    ):
        share = np.divide(works_s, part_s, out=(works_s >= 0) * 1.0, where=part_s > 0)
        total += part_j * np.clip(share, 0.0, 1.0)
        works_s = works_s - part_s
    return total
