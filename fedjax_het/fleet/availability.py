"""Availability of devices as a function of virtual time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.optimize import brentq

from fedjax_het.common.errors import require
from fedjax_het.fleet.segments import searchsorted_runs

# A wait this short is the rounding of `now + wait`: the device counts as on, so that a query at
# the returned time returns the same time.
_ROUNDING_S = 1e-6


class Availability(Protocol):
    """Source of the times at which devices are on; pure and deterministic."""

    @property
    def num_devices(self) -> int | None:
        """Number of devices it describes, or None if it holds for any device."""

    def next_available(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """Earliest time >= `now_s` at which each client is on.

        Args:
          clients: int64[k], ids of devices.
          now_s: virtual time, a number or float64[k], >= 0.

        Returns:
          float64[k], equal to `now_s` for the clients that are on.
        """

    def describe(self) -> dict[str, Any]:
        """The description for a run's record."""


class Always:
    """Every device is on all the time."""

    num_devices: int | None = None

    def next_available(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """`now_s` for every client; see `Availability`."""
        return np.array(np.broadcast_to(np.asarray(now_s, np.float64), np.shape(clients)))

    def describe(self) -> dict[str, Any]:
        """The description for a run's record."""
        return {"kind": "always"}


def always() -> Availability:
    """Every device is on all the time."""
    return Always()


@dataclass(frozen=True, eq=False)
class Intervals:
    """Devices that switch on and off in separate cycles; see `from_intervals` and `synthetic`.

    Attributes:
      start_s: float64[m], starts of the on-intervals of all devices, one device after the other.
      end_s: float64[m], ends of the on-intervals; a device is on in `[start, end)`.
      offsets: int64[n + 1], bounds; device k has the intervals `offsets[k]..offsets[k + 1] - 1`.
      period_s: float64[n], length of each device's cycle.
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
        period_s = self.period_s[clients]
        local_s = np.mod(now + self.phase_s[clients], period_s)
        first, stop = self.offsets[clients], self.offsets[clients + 1]
        i = searchsorted_runs(self.end_s, first, stop, local_s, "right")
        over = i == stop  # nothing left in this cycle: wait for the first interval of the next
        wait_s = self.start_s[np.where(over, first, i)] - local_s + np.where(over, period_s, 0.0)
        return now + np.where(wait_s > _ROUNDING_S, wait_s, 0.0)

    def on_fraction(self) -> np.ndarray:
        """float64[n], share of the time for which each device is on."""
        on_s = np.add.reduceat(self.end_s - self.start_s, self.offsets[:-1])
        return on_s / self.period_s

    def describe(self) -> dict[str, Any]:
        """The description for a run's record."""
        starts = np.delete(self.start_s, self.offsets[:-1])
        gaps = starts - np.delete(self.end_s, self.offsets[1:] - 1)
        return {
            "kind": "intervals",
            "on_fraction_median": float(np.median(self.on_fraction())),
            "on_median_s": float(np.median(self.end_s - self.start_s)),
            "off_median_s": float(np.median(gaps)) if gaps.size else None,
        }


def from_intervals(
    on_s: Sequence[np.ndarray],
    period_s: Sequence[float] | np.ndarray,
    phase_s: Sequence[float] | np.ndarray | None = None,
) -> Intervals:
    """Availability from recorded on-intervals that repeat without end.

    Args:
      on_s: intervals (start, end), one float array `[m_k, 2]` per device, in seconds from the start
        of its cycle, sorted and disjoint, within `[0, period_s[k]]`. Intervals of length 0 are
        dropped.
      period_s: length of each device's cycle.
      phase_s: position of each device in its cycle at virtual time 0; 0 if None.

    Returns:
      The availability.

    Raises:
      InputError: if intervals overlap or leave the cycle, or a device is never on.
    """
    n = len(on_s)
    period = np.asarray(period_s, np.float64)
    phase = np.zeros(n) if phase_s is None else np.asarray(phase_s, np.float64)
    require(
        n > 0 and period.shape == phase.shape == (n,),
        f"{n} devices, {period.size} periods, {phase.size} phases",
        "must be equal in number and at least one",
        "give one list of intervals and one period per device",
    )
    kept = []
    for k, intervals in enumerate(on_s):
        pairs = np.asarray(intervals, np.float64).reshape(-1, 2)
        flat = pairs.ravel()
        require(
            bool(np.isfinite(period[k]) and period[k] > 0 and np.isfinite(phase[k])),
            f"device {k}: period {period[k]} s, phase {phase[k]} s",
            "must be finite, and the period positive",
            "use the length of its record",
        )
        require(
            bool((np.diff(flat) >= 0).all() and (flat >= 0).all() and (flat <= period[k]).all()),
            f"on-intervals of device {k}",
            f"must be sorted, disjoint and within 0..{period[k]} s",
            "subtract the start of the record and merge what overlaps",
        )
        pairs = pairs[pairs[:, 1] > pairs[:, 0]]
        require(
            len(pairs) > 0,
            f"device {k} is never on",
            "needs an on-interval of positive length, or the run would wait for ever",
            "leave the device out",
        )
        kept.append(pairs)
    stacked = np.concatenate(kept)
    offsets = np.append(0, np.cumsum([len(pairs) for pairs in kept]))
    return Intervals(stacked[:, 0].copy(), stacked[:, 1].copy(), offsets, period, phase)


def synthetic(
    num_devices: int,
    seed: int,
    *,
    on_median_s: float = 138.0,
    off_median_s: float = 476.0,
    on_fraction: float = 0.055,
    on_log_std: float = 1.5,
    intervals_per_device: int = 64,
) -> Intervals:
    """Availability drawn from published statistics of phones, with log-normal intervals.

    On-intervals are `LogNormal(ln on_median_s, on_log_std)`, gaps `LogNormal(ln off_median_s, s)`.
    With the medians alone a phone would be on for 22 % of the time; `s` is chosen so that the
    median device is on for `on_fraction` of its cycle.

    Args:
      num_devices: number of devices, n.
      seed: seed of the draw.
      on_median_s: median on-interval (138 s in the traces of FLASH, 710 phones).
      off_median_s: median gap (476 s there).
      on_fraction: share of its time for which the median device is on (5.5 % there).
      on_log_std: log-std of the on-intervals (2.6 there, which gives many intervals of 1 or 2 s;
        1.5 gives intervals that are long enough for a task).
      intervals_per_device: number of on-intervals before a device's cycle repeats.

    Returns:
      The availability; every device starts at a uniformly drawn position in its cycle.
    """
    require(
        num_devices >= 1, f"num_devices = {num_devices}", "must be >= 1", "use the clients' number"
    )
    require(
        on_median_s > 0 and off_median_s > 0 and on_log_std >= 0 and intervals_per_device >= 1,
        f"on_median_s = {on_median_s}, off_median_s = {off_median_s}, on_log_std = {on_log_std}, "
        f"intervals_per_device = {intervals_per_device}",
        "medians must be positive, the log-std >= 0, the number of intervals >= 1",
        "use the defaults",
    )
    require(0 < on_fraction < 1, f"on_fraction = {on_fraction}", "must be in (0, 1)", "use 0.055")
    off_log_std = _solve_off_log_std(
        on_median_s / off_median_s, on_fraction, on_log_std, intervals_per_device
    )
    rng = np.random.default_rng(seed)
    shape = (num_devices, intervals_per_device)
    on = on_median_s * np.exp(on_log_std * rng.standard_normal(shape))
    off = off_median_s * np.exp(off_log_std * rng.standard_normal(shape))
    end = np.cumsum(on + off, axis=1)
    start = end - on
    period = end[:, -1]
    offsets = np.arange(num_devices + 1) * intervals_per_device
    phase = rng.uniform(0.0, period)
    return Intervals(start.ravel(), end.ravel(), offsets, period, phase)


def _solve_off_log_std(
    ratio: float, on_fraction: float, on_log_std: float, intervals: int
) -> float:
    """Log-std of the gaps for which the median device of a fixed sample is on `on_fraction`."""
    rng = np.random.default_rng(0)
    on = ratio * np.exp(on_log_std * rng.standard_normal((512, intervals))).sum(axis=1)
    z = rng.standard_normal((512, intervals))

    def excess(log_std: float) -> float:
        off = np.exp(log_std * z).sum(axis=1)
        return float(np.median(on / (on + off))) - on_fraction

    steady, wild = 0.0, 20.0
    require(
        excess(steady) > 0 > excess(wild),
        f"on_fraction = {on_fraction}",
        f"must lie below {excess(steady) + on_fraction:.3g} with these medians and this on_log_std",
        "lower it, lower off_median_s, or raise on_median_s",
    )
    return float(brentq(excess, steady, wild, xtol=1e-6))
