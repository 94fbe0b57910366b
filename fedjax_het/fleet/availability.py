"""Availability of devices as a function of virtual time."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import scipy

from fedjax_het.common.arrays import require_unmasked
from fedjax_het.common.errors import require
from fedjax_het.fleet.intervals import Intervals


class Availability(Protocol):
    """Source of the times at which devices are on; pure and deterministic.

    In every function `clients` are ids of devices, int64[k], and times are virtual seconds >= 0,
    numbers or float64[k].
    """

    @property
    def num_devices(self) -> int | None:
        """Number of devices it describes, or None if it holds for any device."""

    def next_available(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """Earliest time >= `now_s` at which each client is on.

        Returns:
          float64[k], equal to `now_s` for the clients that are on; inf for those that are never on
          again.
        """

    def on_until(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """Time until which each client stays on, float64[k]; inf if it has no end.

        For a client that is off, it is the end of the next time for which it is on.
        """

    def on_between(
        self, clients: np.ndarray, start_s: float | np.ndarray, end_s: float | np.ndarray
    ) -> np.ndarray:
        """Seconds for which each client is on between two finite times, float64[k]."""

    def spent_at(
        self, clients: np.ndarray, now_s: float | np.ndarray, on_s: float | np.ndarray
    ) -> np.ndarray:
        """Time at which each client has been on for `on_s` seconds since `now_s`, float64[k].

        It is the earliest such time, and inf for a client that is never on for so long.
        """

    def off_after(self, clients: np.ndarray) -> np.ndarray:
        """Time from which on each client is never on again, float64[k]; inf for none."""

    def describe(self) -> dict[str, Any]:
        """The description for a run's record."""


class Always:
    """Every device is on all the time."""

    num_devices: int | None = None

    def next_available(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """`now_s` for every client; see `Availability`."""
        return np.array(np.broadcast_to(np.asarray(now_s, np.float64), np.shape(clients)))

    def on_until(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """No end for any client; see `Availability`."""
        del now_s
        return np.full(np.shape(clients), np.inf)

    def on_between(
        self, clients: np.ndarray, start_s: float | np.ndarray, end_s: float | np.ndarray
    ) -> np.ndarray:
        """The difference of the times; see `Availability`."""
        return self.next_available(clients, np.asarray(end_s) - start_s)

    def spent_at(
        self, clients: np.ndarray, now_s: float | np.ndarray, on_s: float | np.ndarray
    ) -> np.ndarray:
        """The sum of the arguments; see `Availability`."""
        return self.next_available(clients, np.asarray(now_s) + on_s)

    def off_after(self, clients: np.ndarray) -> np.ndarray:
        """No such time for any client; see `Availability`."""
        return np.full(np.shape(clients), np.inf)

    def describe(self) -> dict[str, Any]:
        """The description for a run's record."""
        return {"kind": "always"}


def always() -> Availability:
    """Every device is on all the time."""
    return Always()


def from_intervals(
    on_s: Sequence[np.ndarray],
    period_s: Sequence[float] | np.ndarray,
    phase_s: Sequence[float] | np.ndarray | None = None,
) -> Intervals:
    """Availability from recorded on-intervals, which repeat without end or happen once.

    Args:
      on_s: intervals (start, end), one float array `[m_k, 2]` per device, in seconds from the start
        of its cycle, sorted and disjoint, within `[0, period_s[k]]`. Intervals of length 0 are
        dropped. Intervals that touch are one, at the ends of a cycle that repeats as well.
      period_s: length of each device's cycle; inf if it is never on again after its intervals.
      phase_s: position of each device in its cycle at virtual time 0; 0 if None.

    Returns:
      The availability.

    Raises:
      InputError: if intervals overlap or leave the cycle, or a device is never on.
    """
    n = len(on_s)
    for name, given in (("on_s", on_s), ("period_s", period_s), ("phase_s", phase_s)):
        require_unmasked(given, name)
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
            bool(period[k] > 0 and np.isfinite(phase[k]) and (phase[k] >= 0 or period[k] < np.inf)),
            f"device {k}: period {period[k]} s, phase {phase[k]} s",
            "must be a positive period, inf for no repetition, and a finite phase, then >= 0",
            "use the length of its record",
        )
        require(
            bool((np.diff(flat) >= 0).all() and (flat >= 0).all() and (flat <= period[k]).all())
            and bool((flat < np.inf).all()),
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
        apart = pairs[1:, 0] > pairs[:-1, 1]
        starts, ends = np.append(True, apart), np.append(apart, True)
        kept.append(np.stack([pairs[starts, 0], pairs[ends, 1]], axis=1))
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
    return float(scipy.optimize.brentq(excess, steady, wild, xtol=1e-6))
