"""Links whose rate changes over time: recorded traces and exact transfer times."""

from dataclasses import dataclass, field

import numpy as np

from fedjax_het.common.arrays import require_unmasked
from fedjax_het.common.errors import require
from fedjax_het.fleet.segments import searchsorted_runs


@dataclass(frozen=True, eq=False)
class BandwidthTraces:
    """Piecewise-constant rates that repeat without end.

    Point j of a trace gives the rate from `time_s[j]` until the next point. The last point lasts as
    long as the median step of its trace (1 s for a trace of one point); then the trace starts
    again.

    Attributes:
      time_s: float64[p], times of the points of all traces, one trace after the other; each trace
        starts at 0 and its times increase strictly.
      bytes_per_s: float64[p], rates, >= 0; every trace has a positive rate.
      offsets: int64[m + 1], bounds; trace i has the points `offsets[i]..offsets[i + 1] - 1`.
      sets: names of the collections, for `choose`.
      set_of_trace: int64[m], index into `sets`.
      period_s: float64[m], length of each trace (derived).
      sent_bytes: float64[p], bytes that a trace transfers before each of its points (derived).
      cycle_bytes: float64[m], bytes that one pass of a trace transfers (derived).
    """

    time_s: np.ndarray
    bytes_per_s: np.ndarray
    offsets: np.ndarray
    sets: tuple[str, ...]
    set_of_trace: np.ndarray
    period_s: np.ndarray = field(init=False)
    sent_bytes: np.ndarray = field(init=False)
    cycle_bytes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        time_s, rate, offsets = self.time_s, self.bytes_per_s, self.offsets
        for name in ("time_s", "bytes_per_s", "offsets", "set_of_trace"):
            require_unmasked(getattr(self, name), name)
        require(
            offsets.size >= 2
            and offsets[0] == 0
            and bool((np.diff(offsets) > 0).all())
            and time_s.shape == rate.shape == (offsets[-1],)
            and self.set_of_trace.shape == (offsets.size - 1,),
            f"{time_s.size} times, {rate.size} rates, {offsets.size - 1} traces of "
            f"{int(offsets[-1])} points",
            "must agree, with at least one point a trace",
            "check the trace lengths",
        )
        first = np.zeros(time_s.size, bool)
        first[offsets[:-1]] = True
        step_s = np.diff(time_s, append=np.inf)
        inner = ~np.append(first[1:], True)  # points followed by another one of the same trace
        bad = np.flatnonzero(
            (first & (time_s != 0)) | (inner & ~(step_s > 0)) | ~np.isfinite(time_s)
        )
        require(
            bad.size == 0,
            f"trace time {time_s[bad[:1]]} at point {bad[:1]}",
            "times must start at 0 and increase strictly within a trace",
            "sort the points and subtract the first time",
        )
        bad = np.flatnonzero(~np.isfinite(rate) | (rate < 0))
        require(
            bad.size == 0,
            f"trace rate {rate[bad[:1]]} bytes/s at point {bad[:1]}",
            "must be a finite number >= 0",
            "drop or repair the point",
        )
        for i in range(offsets.size - 1):
            last = offsets[i + 1] - 1
            steps = step_s[offsets[i] : last]
            step_s[last] = np.median(steps) if steps.size else 1.0
        # Differences of one prefix sum increase within a trace and are exactly 0 at its start.
        total = np.append(0.0, np.cumsum(rate * step_s))
        start = total[offsets[:-1]]
        cycle = total[offsets[1:]] - start
        dead = np.flatnonzero(cycle <= 0)
        require(
            dead.size == 0,
            f"trace {dead[:1]} carries no bytes",
            "every trace needs a positive rate somewhere",
            "leave it out",
        )
        lengths = np.diff(offsets)
        object.__setattr__(self, "period_s", (time_s + step_s)[offsets[1:] - 1])
        object.__setattr__(self, "sent_bytes", total[:-1] - np.repeat(start, lengths))
        object.__setattr__(self, "cycle_bytes", cycle)

    @property
    def num_traces(self) -> int:
        """m, the number of traces."""
        return self.offsets.size - 1

    def mean_bytes_per_s(self) -> np.ndarray:
        """float64[m], average rate of each trace."""
        return self.cycle_bytes / self.period_s


@dataclass(frozen=True, eq=False)
class TraceLink:
    """One trace per device, with a start position (phase) per device.

    Attributes:
      traces: traces that the devices follow.
      trace_of_device: int64[n], index of the trace of each device.
      phase_s: float64[n], position of each device in its trace at virtual time 0; different phases
        keep the rates of devices that share a trace from changing at the same times.
    """

    traces: BandwidthTraces
    trace_of_device: np.ndarray
    phase_s: np.ndarray

    def __post_init__(self) -> None:
        index = self.trace_of_device
        for name in ("trace_of_device", "phase_s"):
            require_unmasked(getattr(self, name), name)
        require(
            index.ndim == 1
            and index.shape == self.phase_s.shape
            and bool(((index >= 0) & (index < self.traces.num_traces)).all())
            and bool(np.isfinite(self.phase_s).all()),
            f"{index.size} trace indices and {self.phase_s.size} phases",
            f"need one finite phase per index, and indices in 0..{self.traces.num_traces - 1}",
            "give one trace and one phase per device",
        )

    @property
    def num_devices(self) -> int:
        """n, the number of devices."""
        return self.trace_of_device.size

    def mean_bytes_per_s(self) -> np.ndarray:
        """float64[n], average rate of each device's link."""
        return self.traces.mean_bytes_per_s()[self.trace_of_device]

    def transfer_s(
        self, clients: np.ndarray, transfer_bytes: np.ndarray, start_s: np.ndarray
    ) -> np.ndarray:
        """The exact duration d: the integral of the rate over d seconds is `transfer_bytes`.

        Args:
          clients: int64[k], ids of devices.
          transfer_bytes: int64[k], bytes of each transfer, >= 0.
          start_s: float64[k], virtual time at which each transfer starts, >= 0.

        Returns:
          Durations in seconds, float64[k]; 0 for transfers without bytes.
        """
        traces, trace = self.traces, self.trace_of_device[clients]
        begin, end = traces.offsets[trace], traces.offsets[trace + 1]
        period_s, cycle = traces.period_s[trace], traces.cycle_bytes[trace]
        local_s = np.mod(start_s + self.phase_s[clients], period_s)
        i = searchsorted_runs(traces.time_s, begin, end, local_s, "right") - 1
        sent = traces.sent_bytes[i] + traces.bytes_per_s[i] * (local_s - traces.time_s[i])
        target = sent + transfer_bytes
        cycles = np.floor(target / cycle)
        rest = target - cycles * cycle
        # A transfer that ends with a pass ends inside it, before zero rates that start the next
        # pass.
        wraps = (rest <= 0) & (cycles > 0)
        cycles, rest = cycles - wraps, rest + wraps * cycle
        # The last point with sent < rest has a positive rate, so there is no division by zero.
        j = np.maximum(searchsorted_runs(traces.sent_bytes, begin, end, rest, "left") - 1, begin)
        moving = transfer_bytes > 0
        rate = np.where(moving, traces.bytes_per_s[j], 1.0)
        finish_s = traces.time_s[j] + (rest - traces.sent_bytes[j]) / rate
        return np.where(moving, cycles * period_s + finish_s - local_s, 0.0)
