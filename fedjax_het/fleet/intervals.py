"""Devices that are on in recorded or drawn intervals, which repeat or happen once."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_het.fleet.segments import searchsorted_runs

# A wait this short is the rounding of `now + wait`: the device counts as on, so that a query at
# the returned time returns the same time.
_ROUNDING_S = 1e-6


@dataclass(frozen=True, eq=False)
class Intervals:
    """Devices that switch on and off in separate cycles; see `availability.from_intervals`.

    Attributes:
      start_s: float64[m], starts of the on-intervals of all devices, one device after the other.
      end_s: float64[m], ends of the on-intervals; a device is on in `[start, end)`.
      offsets: int64[n + 1], bounds; device k has the intervals `offsets[k]..offsets[k + 1] - 1`.
      period_s: float64[n], length of each device's cycle; inf if its intervals do not repeat.
      phase_s: float64[n], position of each device in its cycle at virtual time 0.
    """

    start_s: np.ndarray
    end_s: np.ndarray
    offsets: np.ndarray
    period_s: np.ndarray
    phase_s: np.ndarray

    @property
    def num_devices(self) -> int | None:
        """n, the number of devices."""
        return self.period_s.size

    def next_available(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """Earliest time >= `now_s` at which each client is on; see `Availability`."""
        now = np.broadcast_to(np.asarray(now_s, np.float64), np.shape(clients))
        start_s, _ = self._next(clients, now)
        return now + np.where(start_s > _ROUNDING_S, start_s, 0.0)

    def on_until(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """Time until which each client stays on; see `Availability`."""
        now = np.broadcast_to(np.asarray(now_s, np.float64), np.shape(clients))
        return now + self._next(clients, now)[1]

    def _next(self, clients: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Seconds until the first interval that ends after `now` starts, and until it ends.

        An interval that lasts until the end of a cycle goes on with the next one.
        """
        period_s = self.period_s[clients]
        local_s = np.mod(now + self.phase_s[clients], period_s)
        first, stop = self.offsets[clients], self.offsets[clients + 1]
        i = searchsorted_runs(self.end_s, first, stop, local_s, "right")
        over = i == stop  # nothing left in this cycle: wait for the first interval of the next
        i, rest_s = np.where(over, first, i), np.where(over, period_s, 0.0)
        wraps = (self.start_s[first] == 0) & (self.end_s[i] == period_s)
        longer_s = np.where(i == first, np.inf, self.end_s[first])
        end_s = self.end_s[i] + np.where(wraps, longer_s, 0.0)
        return self.start_s[i] - local_s + rest_s, end_s - local_s + rest_s

    def on_between(
        self, clients: np.ndarray, start_s: float | np.ndarray, end_s: float | np.ndarray
    ) -> np.ndarray:
        """Seconds for which each client is on between two times; see `Availability`."""
        start_cycle, start_on_s = self._on_in_cycle(clients, start_s)
        end_cycle, end_on_s = self._on_in_cycle(clients, end_s)
        whole_s = (end_cycle - start_cycle) * self._on_s[self.offsets[clients + 1] - 1]
        return np.maximum(whole_s + end_on_s - start_on_s, 0.0)

    def spent_at(
        self, clients: np.ndarray, now_s: float | np.ndarray, on_s: float | np.ndarray
    ) -> np.ndarray:
        """Time at which each client has been on for so long; see `Availability`."""
        first, stop = self.offsets[clients], self.offsets[clients + 1]
        cycle, sought_s = self._on_in_cycle(clients, now_s)
        sought_s = sought_s + on_s
        total_s, period_s = self._on_s[stop - 1], self.period_s[clients]
        ahead = np.maximum(np.ceil(sought_s / total_s) - 1, 0)
        sought_s = np.minimum(sought_s - ahead * total_s, total_s)
        i = searchsorted_runs(self._on_s, first, stop, sought_s, "left")
        local_s = self.end_s[i] - (self._on_s[i] - sought_s)
        # Cycle 0 of a device whose intervals do not repeat starts at 0 as well.
        cycles = cycle + ahead
        begins_s = np.multiply(cycles, period_s, out=np.zeros_like(local_s), where=cycles != 0)
        return np.maximum(begins_s + local_s - self.phase_s[clients], now_s)

    def off_after(self, clients: np.ndarray) -> np.ndarray:
        """Time from which on each client is never on again; see `Availability`."""
        ends_s = self.end_s[self.offsets[clients + 1] - 1] - self.phase_s[clients]
        return np.where(np.isinf(self.period_s[clients]), ends_s, np.inf)

    @functools.cached_property
    def _on_s(self) -> np.ndarray:
        """Seconds on from the start of a cycle to the end of each of its intervals, float64[m]."""
        lengths = np.split(self.end_s - self.start_s, self.offsets[1:-1])
        return np.concatenate([np.cumsum(own) for own in lengths])

    def _on_in_cycle(
        self, clients: np.ndarray, now_s: float | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Number of each client's cycle, and its seconds on since the start of that cycle."""
        there_s = np.asarray(now_s, np.float64) + self.phase_s[clients]
        cycle, local_s = np.divmod(there_s, self.period_s[clients])
        first, stop = self.offsets[clients], self.offsets[clients + 1]
        i = searchsorted_runs(self.end_s, first, stop, local_s, "right")
        before_s = np.where(i > first, self._on_s[i - 1], 0.0)
        start_s = self.start_s[np.minimum(i, stop - 1)]
        return cycle, before_s + np.where(i < stop, np.maximum(local_s - start_s, 0.0), 0.0)

    def on_fraction(self) -> np.ndarray:
        """float64[n], share of the time for which each device is on."""
        on_s = np.add.reduceat(self.end_s - self.start_s, self.offsets[:-1])
        return on_s / self.period_s

    def describe(self) -> dict[str, Any]:
        """The description for a run's record."""
        starts = np.delete(self.start_s, self.offsets[:-1])
        gaps = starts - np.delete(self.end_s, self.offsets[1:] - 1)
        ending = int(np.sum(np.isinf(self.period_s)))
        return {
            "kind": "intervals",
            "on_fraction_median": float(np.median(self.on_fraction())),
            "on_median_s": float(np.median(self.end_s - self.start_s)),
            "off_median_s": float(np.median(gaps)) if gaps.size else None,
            **({"devices_that_end": ending} if ending else {}),
        }
