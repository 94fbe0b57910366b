"""Vectorised bisection inside many sorted runs: one run per device, in one flat array."""

from typing import Literal

import numpy as np


def searchsorted_runs(
    values: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    x: np.ndarray,
    side: Literal["left", "right"],
) -> np.ndarray:
    """`numpy.searchsorted(values[starts[k]:ends[k]], x[k], side) + starts[k]` for every k.

    A single search over the keys `device * period + time` would round the times by up to a
    microsecond; a search inside the run is exact.

    Args:
      values: elements of all runs, float64[m], sorted within every run.
      starts: first index of each run, int64[k].
      ends: index after the last of each run, int64[k].
      x: value to search for in each run, float64[k].
      side: position to return: `"left"`, the first element >= x, or `"right"`, the first > x.

    Returns:
      Indices in `starts[k]..ends[k]`, int64[k].
    """
    low, high = np.array(starts), np.array(ends)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        at = values[np.minimum(middle, values.size - 1)]
        before = (at <= x) if side == "right" else (at < x)
        low = np.where(open_ & before, middle + 1, low)
        high = np.where(open_ & ~before, middle, high)
    return low
