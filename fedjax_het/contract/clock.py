"""Virtual time: it determines merge events from task durations, and never from wall time.

Durations are known at dispatch, so asynchrony needs no loop over clients. The tasks in flight are
in one table. A *pace* decides, from this table only, when the server merges and which status every
task gets. Barrier and deadline close all tasks. A window or a count of arrivals closes some tasks
and leaves the others `WAITING` for a later merge.
"""

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.contract.plan import Plan, Timing


class Status(Enum):
    """The status of a task at a merge."""

    MERGED = "merged"  # finished in time
    PARTIAL = "partial"  # stopped at the deadline with some local steps done
    DROPPED = "dropped"  # not finished in time; its work is lost
    WAITING = "waiting"  # not merged yet; left for a later merge


class Flight(NamedTuple):
    """The tasks in flight, one row each.

    Attributes:
      client: client ids, int64[m].
      version: number of server steps before the model from which each task started, int64[m].
      dispatched_s: virtual time of dispatch, float64[m].
      deadline_s: virtual time at which a deadline pace stops the task, float64[m]; inf for none.
      steps: local steps, int64[m].
      timing: prices of the tasks, arrays of length m.
    """

    client: np.ndarray
    version: np.ndarray
    dispatched_s: np.ndarray
    deadline_s: np.ndarray
    steps: np.ndarray
    timing: Timing

    @property
    def arrives_s(self) -> np.ndarray:
        """Virtual time at which the result of the whole task would arrive, float64[m]."""
        return self.dispatched_s + self.timing.total_s


class Closing(NamedTuple):
    """A merge event.

    Attributes:
      at_s: virtual time of the merge.
      status: `Status` of every task, length m.
      steps: local steps that count, int64[m]; fewer than planned for PARTIAL tasks.
    """

    at_s: float
    status: list[Status]
    steps: np.ndarray

    @property
    def merges(self) -> np.ndarray:
        """Whether work of each task is merged, bool[m]."""
        return np.asarray([s in (Status.MERGED, Status.PARTIAL) for s in self.status], bool)


class Pace(NamedTuple):
    """The rule that decides when the server merges.

    Attributes:
      name: name in records.
      close: function `(flight) -> Closing`.
      may_wait: whether it may leave tasks `WAITING`. Tasks then overlap, and idle clients are
        dispatched after every merge.
      refills: whether a client that has arrived is replaced at once, with the current model.
      max_staleness: largest number of server steps between the model from which a task started and
        the one that it is merged into, for tasks that overlap. A task that would be later is given
        up at the merge that makes it too late, see `staleness.give_up`; None for no limit.
    """

    name: str
    close: Callable[[Flight], Closing]
    may_wait: bool = False
    refills: bool = False
    max_staleness: int | None = None


def dispatch(plan: Plan, now_s: float, version: int) -> Flight:
    """The plan's tasks in flight, dispatched at `now_s` with the model of number `version`.

    Raises:
      InputError: if a duration is not positive and finite; the message names the client.
    """
    total_s = np.asarray(plan.timing.total_s, np.float64)
    parts = np.stack([plan.timing.download_s, plan.timing.compute_s, plan.timing.upload_s])
    bad = np.flatnonzero(~(np.isfinite(total_s) & (total_s > 0)) | np.any(parts < 0, axis=0))
    require(
        bad.size == 0,
        lambda: f"client {plan.clients[bad[:1]]} with a task of {total_s[bad[:1]]} s",
        "must take a positive, finite time",
        "give its device a positive speed and its task at least one step",
    )
    k = len(plan.clients)
    return Flight(
        client=np.asarray(plan.clients, np.int64),
        version=np.full(k, version, np.int64),
        dispatched_s=np.full(k, now_s, np.float64),
        deadline_s=np.full(k, now_s + plan.deadline_s, np.float64),
        steps=np.asarray(plan.steps, np.int64),
        timing=plan.timing,
    )


def barrier() -> Pace:
    """The server waits for all clients: a round lasts as long as its slowest task."""

    def close(flight: Flight) -> Closing:
        at_s = float(np.max(flight.arrives_s))
        return Closing(at_s, [Status.MERGED] * len(flight.client), flight.steps)

    return Pace("barrier", close)


def deadline(late: str = "drop") -> Pace:
    """The server waits until the plan's deadline, or until all clients have arrived if earlier.

    Args:
      late: treatment of a task that would miss the deadline. "drop" drops the task. "partial" keeps
        the local steps that leave time for the upload (all steps are assumed to last equally long),
        and drops a task that cannot finish one step.
    """
    require(
        late in ("drop", "partial"),
        f"late = {late!r}",
        "must be 'drop' or 'partial'",
        "use 'partial' to keep the steps that slow devices finish (as FedProx does)",
    )

    def close(flight: Flight) -> Closing:
        timing = flight.timing
        in_time = flight.arrives_s <= flight.deadline_s
        if late == "partial":
            allowed_s = (
                flight.deadline_s - flight.dispatched_s - timing.download_s - timing.upload_s
            )
            step_s = timing.compute_s / flight.steps
            possible = np.floor(np.clip(allowed_s / step_s, 0, flight.steps)).astype(np.int64)
            steps = np.where(in_time, flight.steps, possible)
        else:
            steps = np.where(in_time, flight.steps, 0)
        status = [
            Status.MERGED if whole else (Status.PARTIAL if n else Status.DROPPED)
            for whole, n in zip(in_time, steps, strict=True)
        ]
        at_s = float(np.max(np.where(in_time, flight.arrives_s, flight.deadline_s)))
        return Closing(at_s, status, steps)

    return Pace(f"deadline({late})", close)


def first(count: int) -> Pace:
    """Over-selection: the server merges the first `count` arrivals of a round and drops the others.

    A dropped client is told to stop at that moment. If fewer tasks are in flight, all are merged.
    Ties are broken by the client's id.

    Args:
      count: number of arrivals that end the round.
    """
    require(count >= 1, f"count = {count}", "must be at least 1 arrival", "use 10 of 13 clients")

    def close(flight: Flight) -> Closing:
        order = arrival_order(flight)
        kept = np.isin(np.arange(len(order)), order[:count])
        status = [Status.MERGED if merged else Status.DROPPED for merged in kept]
        at_s = float(np.max(flight.arrives_s[kept]))
        return Closing(at_s, status, np.where(kept, flight.steps, 0))

    return Pace(f"first({count})", close)


def arrivals(count: int, *, refill: bool = False) -> Pace:
    """The server merges at every `count`-th arrival; ties are broken by the client's id.

    Args:
      count: number K of arrivals per merge.
      refill: whether a client that has arrived is replaced at once, with the current model, and not
        only after the merge, so that the number of clients at work stays constant.
    """
    require(count >= 1, f"count = {count}", "must be at least 1 arrival", "use 1 or 10")

    def close(flight: Flight) -> Closing:
        first = arrival_order(flight)[:count]
        return take(flight, first, float(flight.arrives_s[first[-1]]))

    return Pace(f"arrivals({count})", close, may_wait=True, refills=refill)


def window(interval_s: float) -> Pace:
    """The server merges all tasks that have arrived, if any, at every multiple of `interval_s`."""
    require(
        np.isfinite(interval_s) and interval_s > 0,
        f"interval_s = {interval_s}",
        "must be a positive number of seconds",
        "take the time of a middling task",
    )

    def close(flight: Flight) -> Closing:
        soonest_s = float(np.min(flight.arrives_s))
        # An arrival that is late only because of rounding counts as in time.
        ticks = np.ceil(soonest_s / interval_s - 1e-9)
        at_s = max(float(ticks * interval_s), soonest_s)
        return take(flight, np.flatnonzero(flight.arrives_s <= at_s * (1 + 1e-12)), at_s)

    return Pace(f"window({interval_s:g} s)", close, may_wait=True)


def arrival_order(flight: Flight) -> np.ndarray:
    """Indices of the tasks in order of arrival, int64[m]; ties are broken by the client's id."""
    return np.lexsort((flight.client, flight.arrives_s))


def take(flight: Flight, chosen: np.ndarray, at_s: float) -> Closing:
    """The closing that merges the chosen tasks completely and leaves the others waiting."""
    status = [Status.WAITING] * len(flight.client)
    for i in chosen:
        status[i] = Status.MERGED
    return Closing(max(at_s, float(np.max(flight.arrives_s[chosen]))), status, flight.steps)
