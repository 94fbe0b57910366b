"""Virtual time: it determines merge events from task durations, and never from wall time.

Durations are known at dispatch, so asynchrony needs no loop over clients. The tasks in flight are
in one table. A *pace* decides, from this table only, when the server merges and which status every
task gets. Barrier and deadline close all tasks. A window or a count of arrivals closes some tasks
and leaves the others `WAITING` for a later merge.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.contract.plan import Plan, Timing


class Status(Enum):
    """The status of a task at a merge."""

    MERGED = "merged"  # finished in time
    PARTIAL = "partial"  # stopped at the deadline with some local steps done
    DROPPED = "dropped"  # not finished in time; its work is lost
    FAILED = "failed"  # given up by its device; its work until then is lost
    WAITING = "waiting"  # not merged yet; left for a later merge


class Interruptions(NamedTuple):
    """What goes wrong with the tasks of a plan, known at dispatch; `fleet.interruption` draws it.

    Attributes:
      fails_s: virtual time at which the device gives the task up, float64[k]; inf if it arrives.
      paused_s: seconds between dispatch and the end of the task, arrival or failure, for which it
        is suspended, float64[k].
      usable_s: seconds between dispatch and the plan's deadline for which it is not suspended,
        float64[k]; inf without a deadline.
      done: share of download, computation and upload that is done by the end of the task,
        float64[k, 3]; ones for tasks that arrive.
      left_joules: charge of the device at dispatch, float64[k]; inf without a limit.
    """

    fails_s: np.ndarray
    paused_s: np.ndarray
    usable_s: np.ndarray
    done: np.ndarray
    left_joules: np.ndarray


class Flight(NamedTuple):
    """The tasks in flight, one row each.

    Attributes:
      client: client ids, int64[m].
      version: number of server steps before the model from which each task started, int64[m].
      dispatched_s: virtual time of dispatch, float64[m].
      deadline_s: virtual time at which a deadline pace stops the task, float64[m]; inf for none.
      steps: local steps, int64[m].
      timing: prices of the whole tasks, arrays of length m.
      interruptions: failures and pauses; None if nothing is interrupted.
    """

    client: np.ndarray
    version: np.ndarray
    dispatched_s: np.ndarray
    deadline_s: np.ndarray
    steps: np.ndarray
    timing: Timing
    interruptions: Interruptions | None = None

    @property
    def failed(self) -> np.ndarray:
        """Whether the device gives the whole task up, bool[m]."""
        if self.interruptions is None:
            return np.zeros(len(self.client), bool)
        return np.isfinite(self.interruptions.fails_s)

    @property
    def arrives_s(self) -> np.ndarray:
        """Virtual time at which the result of the whole task arrives, float64[m]; inf for never."""
        arrives_s = self.dispatched_s + self.timing.total_s
        if self.interruptions is None:
            return arrives_s
        return np.where(self.failed, np.inf, arrives_s + self.interruptions.paused_s)

    @property
    def ends_s(self) -> np.ndarray:
        """Virtual time at which the whole task arrives or fails, float64[m]."""
        if self.interruptions is None:
            return self.arrives_s
        return np.minimum(self.arrives_s, self.interruptions.fails_s)

    @property
    def usable_s(self) -> np.ndarray:
        """Seconds for which the device can work on the task until the deadline, float64[m]."""
        if self.interruptions is None:
            return self.deadline_s - self.dispatched_s
        return self.interruptions.usable_s


class Closing(NamedTuple):
    """A merge event.

    Attributes:
      at_s: virtual time of the merge.
      status: `Status` of every task, length m.
      steps: local steps that count, int64[m]; fewer than planned for PARTIAL tasks.
      short: whether so many tasks failed that the pace would wait for more, if more were at work.
    """

    at_s: float
    status: list[Status]
    steps: np.ndarray
    short: bool = False

    @property
    def merges(self) -> np.ndarray:
        """Whether work of each task is merged, bool[m]."""
        merged, partial = Status.MERGED, Status.PARTIAL
        return np.asarray([s is merged or s is partial for s in self.status], bool)

    @property
    def fails(self) -> np.ndarray:
        """Whether each task failed before the merge, bool[m]."""
        failed = Status.FAILED
        return np.asarray([s is failed for s in self.status], bool)


class Pace(NamedTuple):
    """The rule that decides when the server merges.

    Attributes:
      name: name in records.
      close: function `(flight) -> Closing`.
      may_wait: whether it may leave tasks `WAITING`. Tasks then overlap, and idle clients are
        dispatched after every merge.
      refills: whether a client that has arrived or failed is replaced at once, with the current
        model.
      max_staleness: largest number of server steps between the model from which a task started and
        the one that it is merged into, for tasks that overlap. A task that would be later is given
        up at the merge that makes it too late, see `staleness.give_up`; None for no limit.
      most: largest number of tasks that it merges at once; None for all that are in flight.
      discount: function from the staleness of updates, int32[c], to the factors float32[c] by which
        they are multiplied before the merge, whatever the merge, see `staleness.scaled`; None for
        no factor.
    """

    name: str
    close: Callable[[Flight], Closing]
    may_wait: bool = False
    refills: bool = False
    max_staleness: int | None = None
    most: int | None = None
    discount: Callable[[Any], Any] | None = None


def dispatch(
    plan: Plan, now_s: float | np.ndarray, version: int, interruptions: Interruptions | None = None
) -> Flight:
    """The plan's tasks in flight.

    Args:
      plan: tasks with their prices.
      now_s: virtual time of dispatch in seconds, or that of each task, float64[k].
      version: number of server steps before the model from which they start.
      interruptions: failures and pauses; None if nothing is interrupted.

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
        interruptions=interruptions,
    )


def barrier() -> Pace:
    """The server waits until all tasks have ended: a round lasts as long as its slowest task."""

    def close(flight: Flight) -> Closing:
        status = [Status.MERGED] * len(flight.client)
        for i in np.flatnonzero(flight.failed):
            status[i] = Status.FAILED
        steps = np.where(flight.failed, 0, flight.steps)
        return Closing(float(np.max(flight.ends_s)), status, steps)

    return Pace("barrier", close)


def deadline(late: str = "drop") -> Pace:
    """The server waits until the plan's deadline, or until all tasks have ended if earlier.

    A task that fails before the deadline leaves nothing.

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
        ended = flight.ends_s <= flight.deadline_s
        failed = flight.failed & ended
        steps = np.where(ended, flight.steps, 0)
        if late == "partial":
            allowed_s = flight.usable_s - timing.download_s - timing.upload_s
            step_s = timing.compute_s / flight.steps
            possible = np.floor(np.clip(allowed_s / step_s, 0, flight.steps)).astype(np.int64)
            steps = np.where(ended, flight.steps, possible)
        steps = np.where(failed, 0, steps)

        def status_of(ended: bool, failed: bool, steps: int) -> Status:
            if ended:
                return Status.FAILED if failed else Status.MERGED
            return Status.PARTIAL if steps else Status.DROPPED

        status = [status_of(*row) for row in zip(ended, failed, steps, strict=True)]
        at_s = float(np.max(np.minimum(flight.ends_s, flight.deadline_s)))
        return Closing(at_s, status, steps)

    return Pace(f"deadline({late})", close)


def first(count: int) -> Pace:
    """Over-selection: the server merges the first `count` arrivals of a round and drops the others.

    A dropped client is told to stop at that moment. If fewer arrive, because too many failed, the
    round ends with the last task. Ties are broken by the client's id.

    Args:
      count: number of arrivals that end the round.
    """
    require(count >= 1, f"count = {count}", "must be at least 1 arrival", "use 10 of 13 clients")

    def close(flight: Flight) -> Closing:
        order = arrival_order(flight)
        merged = order[~flight.failed[order]][:count]
        last = merged[-1] if len(merged) == count else order[-1]
        closing = take(flight, merged, float(flight.ends_s[last]))
        waits = Status.WAITING
        status = [Status.DROPPED if s is waits else s for s in closing.status]
        return Closing(closing.at_s, status, np.where(closing.merges, flight.steps, 0))

    return Pace(f"first({count})", close, most=count)


def arrivals(count: int, *, refill: bool = False) -> Pace:
    """The server merges at every `count`-th arrival; ties are broken by the client's id.

    Failed tasks do not count. If fewer arrive, because too many failed, the server merges those
    when the last task has ended.

    Args:
      count: number K of arrivals per merge.
      refill: whether a client that has arrived or failed is replaced at once, with the current
        model, and not only after the merge, so that the number of clients at work stays constant.
    """
    require(count >= 1, f"count = {count}", "must be at least 1 arrival", "use 1 or 10")

    def close(flight: Flight) -> Closing:
        order = arrival_order(flight)
        first = order[~flight.failed[order]][:count]
        short = len(first) < count and bool(np.any(flight.failed))
        last = order[-1] if len(first) < count else first[-1]
        return take(flight, first, float(flight.ends_s[last]))._replace(short=short)

    return Pace(f"arrivals({count})", close, may_wait=True, refills=refill, most=count)


def window(interval_s: float) -> Pace:
    """The server merges all that has arrived at multiples of `interval_s`, if any task ended."""
    require(
        np.isfinite(interval_s) and interval_s > 0,
        f"interval_s = {interval_s}",
        "must be a positive number of seconds",
        "take the time of a middling task",
    )

    def close(flight: Flight) -> Closing:
        soonest_s = float(np.min(flight.ends_s))
        # An arrival that is late only because of rounding counts as in time.
        ticks = np.ceil(soonest_s / interval_s - 1e-9)
        at_s = max(float(ticks * interval_s), soonest_s)
        return take(flight, np.flatnonzero(flight.arrives_s <= at_s * (1 + 1e-12)), at_s)

    return Pace(f"window({interval_s:g} s)", close, may_wait=True)


def next_end_s(flight: Flight, closing: Closing, now_s: float, patience: int) -> float:
    """Time of the next end of a task at which a pace that refills goes on; inf before the merge.

    Args:
      flight: tasks in flight.
      closing: decision of the pace on these tasks.
      now_s: virtual time in seconds.
      patience: number of failed tasks, the last of them not replaced, that end the waiting.
    """
    next_s = float(np.min(flight.ends_s[flight.ends_s > now_s], initial=np.inf))
    waits = next_s < closing.at_s
    if closing.short:
        failed = np.sum(flight.failed & (flight.ends_s <= next_s))
        waits = next_s <= closing.at_s and bool(failed < patience)
    return next_s if waits else np.inf


def arrival_order(flight: Flight) -> np.ndarray:
    """Indices of the tasks in the order of their ends, int64[m]; ties are broken by the id."""
    return np.lexsort((flight.client, flight.ends_s))


def take(flight: Flight, chosen: np.ndarray, at_s: float) -> Closing:
    """The closing that merges the chosen tasks completely.

    Tasks that have failed by then leave with them, and the others wait.

    Args:
      flight: tasks in flight.
      chosen: indices of tasks that do not fail, int64[c].
      at_s: earliest virtual time of the merge.
    """
    at_s = max(at_s, float(np.max(flight.arrives_s[chosen], initial=-np.inf)))
    status = [Status.WAITING] * len(flight.client)
    for i in chosen:
        status[i] = Status.MERGED
    failed = flight.failed & (flight.ends_s <= at_s)
    for i in np.flatnonzero(failed):
        status[i] = Status.FAILED
    return Closing(at_s, status, np.where(failed, 0, flight.steps))
