"""Bisection inside many sorted runs at once: one run per device, all in one flat array."""

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

    One shared array plus an offset per device would need `device * period + time` as the key, whose
    rounding can move an event by a microsecond; comparing inside the run is exact.

    Args:
      values: float64[m], sorted within every run.
      starts: int64[k], first index of each run.
      ends: int64[k], one past the last index of each run.
      x: float64[k], what to look for.
      side: `"left"` for the first element >= x, `"right"` for the first element > x.

    Returns:
      int64[k], an index in `starts[k]..ends[k]`.
    """
    low, high = np.array(starts), np.array(ends)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        at = values[np.minimum(middle, values.size - 1)]
        before = (at <= x) if side == "right" else (at < x)
        low = np.where(open_ & before, middle + 1, low)
        high = np.where(open_ & ~before, middle, high)
    return low
