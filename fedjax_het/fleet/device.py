"""A fleet of unequal devices: speeds, links, memory and availability."""

import functools
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.contract.plan import Timing
from fedjax_het.fleet import jitter
from fedjax_het.fleet.amounts import (
    client_ids,
    device_column,
    device_groups,
    device_names,
    span,
    task_amount,
)
from fedjax_het.fleet.availability import Always, Availability, always
from fedjax_het.fleet.bandwidth import TraceLink
from fedjax_het.fleet.columns import COLUMNS, PRICES, USUAL
from fedjax_het.fleet.consistency import OnInterrupt, require_consistent
from fedjax_het.fleet.membership import Membership
from fedjax_het.fleet.redraw import Redraw
from fedjax_het.fleet.speed import SpeedTrace

# Fields given as a number or an array, and stored as arrays of length n.
PerDevice = Any

# Longest task: 30,000 years. Virtual time still resolves milliseconds then.
_LONGEST_S = 1e12


@dataclass(frozen=True, eq=False)
class Fleet:
    """A fleet of n devices; device k belongs to client k.

    A number in place of an array holds for every device. A task of F FLOPs, D bytes down and U
    bytes up takes `latency + D / downlink`, then `F / flops_per_s`, then `latency + U / uplink`
    seconds. Each of the three durations is multiplied by jitter: a random factor of mean one, drawn
    for every task, which spreads the durations without changing their mean.

    Attributes:
      flops_per_s: float64[n], sustained training speed.
      downlink_bytes_per_s: float64[n], download rate; inf makes downloads take no time (their bytes
        still count).
      uplink_bytes_per_s: float64[n], upload rate; inf as above.
      memory_bytes: float64[n], memory; inf for no limit.
      latency_s: float64[n], seconds added to every transfer that has bytes.
      compute_distribution: distribution of the jitter of compute times. `"lognormal"`: factor
        `exp(s z - s^2 / 2)` with `s = compute_jitter`. `"exponential"`: mean of `compute_stages`
        exponentials, for a task of that many equal stages with exponential times (ADEL-FL's
        layers).
      compute_jitter: float64[n], log-std of compute times; 0 for constant times.
      compute_stages: number of stages of an exponential compute time, >= 1.
      speed_trace: factor on `flops_per_s` that changes over virtual time; None for constant speeds.
      link_jitter: float64[n], log-std of transfer times, drawn separately down and up.
      downlink_trace: recorded rates that replace `downlink_bytes_per_s` in `timing`.
      uplink_trace: recorded rates that replace `uplink_bytes_per_s` in `timing`.
      joules_per_flop: float64[n], energy of one FLOP; 0, as for the other prices of energy, for a
        price that is not known. `energy.task_joules` has the formula.
      joules_per_byte_up: float64[n], energy of one byte sent.
      joules_per_byte_down: float64[n], energy of one byte received.
      idle_watts: float64[n], power of a device that has delivered its result and waits for the
        merge.
      battery_joules: float64[n], usable charge at the start, which is never renewed; inf for no
        limit. A task for which too little is left fails when it is spent, and a device without
        charge is never available again. It needs prices of energy.
      availability: times at which devices are on.
      on_interrupt: treatment of a task whose device goes off. `"finish"`: it goes on all the same.
        `"lose"`: it fails at that moment. `"pause"`: it goes on when the device is on again, and
        fails if that is never.
      failure_rate: float64[n], probability in [0, 1) that a task fails for another reason, at a
        moment drawn uniformly from the seconds for which the device works on it.
      joins_s: float64[n], virtual time from which on each client takes part.
      leaves_s: float64[n], virtual time at which it leaves for good, and its task fails; inf for
        never.
      redraw: schedule by which clients change their device profiles between rounds; see `at`. None
        for a constant fleet. The arrays above are those of round 0.
      groups: int64[n], class of each device, for plots.
      group_names: names of the classes, or () for numbers.
      device_names: text[n], names of the devices in records and plots; None for numbers.
      name: name of the fleet in records.
      source: digest of the files that the fleet was read from; empty for none.
    """

    flops_per_s: np.ndarray
    downlink_bytes_per_s: PerDevice = np.inf
    uplink_bytes_per_s: PerDevice = np.inf
    memory_bytes: PerDevice = np.inf
    latency_s: PerDevice = 0.0
    compute_distribution: Literal["lognormal", "exponential"] = "lognormal"
    compute_jitter: PerDevice = 0.0
    compute_stages: int = 1
    speed_trace: SpeedTrace | None = None
    link_jitter: PerDevice = 0.0
    downlink_trace: TraceLink | None = None
    uplink_trace: TraceLink | None = None
    joules_per_flop: PerDevice = 0.0
    joules_per_byte_up: PerDevice = 0.0
    joules_per_byte_down: PerDevice = 0.0
    idle_watts: PerDevice = 0.0
    battery_joules: PerDevice = np.inf
    availability: Availability = field(default_factory=always)
    on_interrupt: OnInterrupt = "finish"
    failure_rate: PerDevice = 0.0
    joins_s: PerDevice = 0.0
    leaves_s: PerDevice = np.inf
    redraw: Redraw | None = None
    groups: PerDevice = 0
    group_names: tuple[str, ...] = ()
    device_names: np.ndarray | None = None
    name: str = "custom"
    source: str = ""

    def __post_init__(self) -> None:
        n = np.size(self.flops_per_s)
        require(
            np.ndim(self.flops_per_s) == 1 and n >= 1,
            f"flops_per_s of shape {np.shape(self.flops_per_s)}",
            "must be one number per device",
            "pass an array of length n >= 1",
        )
        for name, limits in COLUMNS.items():
            column = device_column(name, getattr(self, name), n, **limits)
            object.__setattr__(self, name, column)
        groups = device_groups(self.groups, self.group_names, n)
        object.__setattr__(self, "groups", groups)
        if self.device_names is not None:
            object.__setattr__(self, "device_names", device_names(self.device_names, n))
        require_consistent(self)

    @property
    def num_devices(self) -> int:
        """n, the number of devices."""
        return self.flops_per_s.size

    @functools.cached_property
    def prices_energy(self) -> bool:
        """Whether any device has a price of energy."""
        return any(getattr(self, name).any() for name in PRICES)

    @functools.cached_property
    def presence(self) -> Availability:
        """Times at which devices are on and take part."""
        if not self.joins_s.any() and np.isinf(self.leaves_s).all():
            return self.availability
        return Membership(self.availability, self.joins_s, self.leaves_s)

    @functools.cached_property
    def has_batteries(self) -> bool:
        """Whether the charge of any device is limited."""
        return bool(np.isfinite(self.battery_joules).any())

    @property
    def always_on(self) -> bool:
        """Whether every device takes part at all times."""
        return isinstance(self.presence, Always) and not self.has_batteries

    @functools.cached_property
    def interrupts(self) -> bool:
        """Whether a task may fail or pause."""
        fails = np.isfinite(self.leaves_s).any() or self.failure_rate.any() or self.has_batteries
        return bool(self.on_interrupt != "finish" or fails)

    def at(self, round: int) -> "Fleet":
        """The fleet in a round; this object, unless devices are re-drawn."""
        if self.redraw is None:
            return self
        place = self.redraw.profiles(round)
        rate = self.redraw.bytes_per_s[place]
        return replace(
            self,
            flops_per_s=self.redraw.flops_per_s[place],
            downlink_bytes_per_s=rate,
            uplink_bytes_per_s=rate,
            groups=place,
            **{name: column[place] for name, column in self.redraw.prices.items()},
        )

    def timing(
        self,
        clients: np.ndarray,
        flops: Any,
        bytes_down: Any,
        bytes_up: Any,
        now_s: float | np.ndarray,
        rng: np.random.Generator | None,
        *,
        compute_s: np.ndarray | None = None,
    ) -> Timing:
        """Durations of one task per client: download, then compute, then upload.

        Args:
          clients: ids of the clients, int64[k].
          flops: FLOPs of each task, float or float64[k].
          bytes_down: bytes of each download, int or int64[k].
          bytes_up: bytes of each upload, int or int64[k].
          now_s: virtual time of dispatch in seconds, a number or float64[k]; traces are read from
            there.
          rng: generator that draws the jitter; None for expected durations (traces hold in both
            cases).
          compute_s: compute times that are already known, float64[k]; None draws them.

        Returns:
          The timing. Tasks are independent, as other clients and the server's link slow none.

        Raises:
          InputError: if a client is unknown, an amount negative, or a task of no or endless time.
        """
        clients = client_ids(clients, self.num_devices)
        k = clients.size
        work = task_amount("flops", flops, k)
        down = task_amount("bytes_down", bytes_down, k, whole=True)
        up = task_amount("bytes_up", bytes_up, k, whole=True)
        start_s = task_amount("now_s", now_s, k)
        if compute_s is None:
            factor = self._compute_factor(clients, rng)
            compute_s = work / self.speed(clients, start_s) * factor
        compute_s = task_amount("compute_s", compute_s, k)
        download_s = self._transfer_s("down", clients, down, start_s, rng)
        upload_s = self._transfer_s("up", clients, up, start_s + download_s + compute_s, rng)
        total_s = download_s + compute_s + upload_s
        bad = np.flatnonzero(~((total_s > 0) & (total_s <= _LONGEST_S)))
        require(
            bad.size == 0,
            lambda: f"task of client {clients[bad[:1]]} takes {total_s[bad[:1]]} s",
            f"every task must take more than 0 s, and at most {_LONGEST_S:g} s",
            "give it FLOPs, or bytes and a finite link; or a faster device or link",
        )
        return Timing(
            download_s,
            compute_s,
            upload_s,
            down.astype(np.int64),
            up.astype(np.int64),
            work,
            self.latency_s[clients],
        )

    def speed(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """Speed in FLOP/s of each client for a task that is dispatched at `now_s`, float64[k]."""
        clients = client_ids(clients, self.num_devices)
        drift = 1.0 if self.speed_trace is None else self.speed_trace.at(clients, now_s)
        return self.flops_per_s[clients] * drift

    def stage_times(
        self,
        clients: np.ndarray,
        flops: Any,
        stages: int,
        now_s: float | np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Times at which the equal parts of a computation end, for work that may be cut short.

        Args:
          clients: ids of the clients, int64[k].
          flops: FLOPs of the whole work, float or float64[k].
          stages: number of equal, consecutive parts, L. With exponential compute times each part
            has an exponential time; otherwise one factor holds for the whole task.
          now_s: virtual time of dispatch in seconds.
          rng: generator that draws the jitter.

        Returns:
          Seconds since the start of the computation, float64[k, L], increasing along the last axis.

        Raises:
          InputError: if the fleet's exponential times have another number of stages.
        """
        speed = self.speed(clients, now_s)
        part_s = task_amount("flops", flops, speed.size) / stages / speed
        if self.compute_distribution == "exponential":
            require(
                self.compute_stages == stages,
                f"compute_stages = {self.compute_stages}",
                f"must be the {stages} parts that the work is divided into",
                f"build the fleet with stages = {stages}",
            )
            each = jitter.exponentials(clients.size, stages, rng)
        else:
            factor = np.asarray(jitter.lognormal(self.compute_jitter[clients], rng))
            each = np.broadcast_to(factor.reshape(-1, 1), (clients.size, stages))
        return np.cumsum(part_s[:, None] * each, axis=1)

    def next_available(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """Earliest time >= `now_s` at which each client is on, float64[k]; see `Availability`."""
        return self.presence.next_available(client_ids(clients, self.num_devices), now_s)

    def describe(self) -> dict[str, Any]:
        """Statistics of the fleet for a run's record; values for JSON, with None for unlimited."""
        counts = np.bincount(self.groups)
        labels = self.group_names or tuple(str(g) for g in range(counts.size))
        return {
            "name": self.name,
            "num_devices": self.num_devices,
            **({"source": self.source} if self.source else {}),
            **{
                f"{name} (min, median, max)": span(getattr(self, name))
                for name in COLUMNS
                if name not in USUAL or (getattr(self, name) != USUAL[name]).any()
            },
            **({} if self.on_interrupt == "finish" else {"on_interrupt": self.on_interrupt}),
            "compute_distribution": self.compute_distribution,
            "compute_stages": self.compute_stages,
            "speed_trace": self.speed_trace is not None,
            "downlink_trace": self.downlink_trace is not None,
            "uplink_trace": self.uplink_trace is not None,
            "redraw_every_rounds": None if self.redraw is None else self.redraw.every_rounds,
            "availability": self.availability.describe(),
            "groups": {label: int(count) for label, count in zip(labels, counts)},
        }

    def _compute_factor(
        self, clients: np.ndarray, rng: np.random.Generator | None
    ) -> np.ndarray | float:
        if self.compute_distribution == "exponential":
            return jitter.mean_of_stages(self.compute_stages, clients.size, rng)
        return jitter.lognormal(self.compute_jitter[clients], rng)

    def _transfer_s(
        self,
        way: Literal["down", "up"],
        clients: np.ndarray,
        transfer_bytes: np.ndarray,
        start_s: np.ndarray,
        rng: np.random.Generator | None,
    ) -> np.ndarray:
        trace, rate = (
            (self.downlink_trace, self.downlink_bytes_per_s)
            if way == "down"
            else (self.uplink_trace, self.uplink_bytes_per_s)
        )
        latency_s = np.where(transfer_bytes > 0, self.latency_s[clients], 0.0)
        if trace is not None:
            return latency_s + trace.transfer_s(clients, transfer_bytes, start_s + latency_s)
        factor = jitter.lognormal(self.link_jitter[clients], rng)
        return latency_s + transfer_bytes / rate[clients] * factor
