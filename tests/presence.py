"""On-intervals of devices in plain Python, against which the vectorised ones are compared."""

import numpy as np


class Listed:
    """All on-intervals of one device, one after the other.

    Args:
      on: pairs (start, end) within a cycle.
      period: length of the cycle; inf if the intervals do not repeat.
      phase: position in the cycle at time 0.
      joins, leaves: bounds outside which the device is off.
      cycles: number of cycles to list.
    """

    def __init__(self, on, period, phase=0.0, joins=0.0, leaves=np.inf, cycles=200):
        shift = lambda cycle: (cycle * period if cycle else 0.0) - phase
        of = range(-1, cycles) if np.isfinite(period) else [0]
        every = [(a + shift(c), b + shift(c)) for c in of for a, b in on]
        # Intervals that touch are one, across cycles as well.
        whole = [every[0]]
        for a, b in every[1:]:
            if a == whole[-1][1]:
                whole[-1] = whole[-1][0], b
            else:
                whole.append((a, b))
        if len(whole) == 1 < len(every) and on[-1][1] - on[0][0] == period:
            whole = [(whole[0][0], np.inf)]
        every = [(max(a, joins), min(b, leaves)) for a, b in whole]
        self.on = [(a, b) for a, b in every if b > max(a, 0.0)]

    def next(self, now):
        """Earliest time from now on at which it is on."""
        return next((max(now, a) for a, b in self.on if b > now), np.inf)

    def until(self, now):
        """End of the first time on that ends later; None if there is none."""
        return next((b for _, b in self.on if b > now), None)

    def between(self, start, end):
        """Seconds on between two times."""
        return sum(max(min(b, end) - max(a, start), 0.0) for a, b in self.on)

    def spent(self, now, on_s):
        """Time at which it has been on for so long since now."""
        for a, b in self.on:
            here = max(b - max(a, now), 0.0)
            if here > 0 and on_s <= here:
                return max(a, now) + on_s
            on_s -= here
        return np.inf
