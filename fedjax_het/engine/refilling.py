"""Dispatch of idle clients until the next merge, under a pace that leaves tasks waiting.

A pace that refills replaces every client as soon as it has arrived, one after the other. Who comes
next depends on who is at work, but a plan may take many clients: if nothing but the ends of tasks
decides when clients are replaced, replacements are drawn in the order of the arrivals and planned
together. Those that come after the end of another replacement were drawn without regard to it, and
are drawn again.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.clock import Closing, Flight, next_end_s
from fedjax_het.contract.plan import Plan, Schedule
from fedjax_het.contract.selection import Pool, Selector
from fedjax_het.contract.staleness import give_up
from fedjax_het.engine.sampling import Sampler

# A step waits no longer for enough results when this many tasks per client at work have failed.
_MOST_FAILURES = 10
# Arrivals that are replaced together at first; then twice as many as the last time.
_TOGETHER = 16


class Table(Protocol):
    """The table of tasks that clients are sent from, see `DispatchTable`."""

    @property
    def flight(self) -> Flight | None:
        """The tasks that were dispatched and are not merged yet; None if there are none."""

    def send(self, plan: Plan, flight: Flight, version: int, variables: Variables) -> None:
        """Adds the tasks of a plan, as dispatched, to the table."""


class Sending(NamedTuple):
    """The dispatch of one server step.

    Attributes:
      table: tasks in flight.
      sampler: sampler that draws the clients and asks the algorithm for their plan.
      variables: model of the server.
      step: number of the server step, from 0.
      key: key of the plans of the step.
    """

    table: Table
    sampler: Sampler
    variables: Variables
    step: int
    key: jax.Array

    def until_merge(self, state: PyTree, now_s: float) -> tuple[Closing, PyTree]:
        """Dispatches idle clients, until the next merge.

        A pace that refills replaces clients whose tasks fail as well. If ten times as many tasks
        failed as clients are at work, the step goes on with the results that there are.

        Args:
          state: state of the algorithm.
          now_s: virtual time in seconds.

        Returns:
          The `Closing` of the table at the next merge, and the algorithm's state.
        """
        algorithm = self.sampler.algorithm
        pace, together = algorithm.pace, _TOGETHER if self._apart else 1
        _, state = self._send(state, [now_s], 0)
        turn = 1
        while True:
            flight = self.table.flight
            assert flight is not None
            closing = pace.close(flight)
            now_s = max(now_s, float(np.min(flight.dispatched_s)))
            next_s = next_end_s(flight, closing, now_s, _MOST_FAILURES * algorithm.cohort_size)
            if not pace.refills or next_s == np.inf:
                return give_up(pace, flight, closing, self.step), state
            times_s = [next_s]
            if together > 1:
                ends_s = flight.ends_s
                ends_s = np.unique(ends_s[(ends_s >= next_s) & (ends_s < closing.at_s)])
                times_s = ends_s[:together].tolist()
            done, state = self._send(state, times_s, turn)
            turn, now_s = turn + done, times_s[done - 1]
            together = 2 * done if together > 1 else 1

    @property
    def _apart(self) -> bool:
        """Whether the clients that follow several arrivals may be planned together.

        Their plans must not depend on one another, nor the draws on what is learned or priced, and
        no client may keep another time than that of its task.
        """
        plan, fleet = self.sampler.algorithm.plan, self.sampler.problem.fleet
        apart = isinstance(plan, Schedule) and plan.apart
        learns = isinstance(self.sampler.algorithm.select, Selector)
        return apart and not learns and fleet.always_on and not fleet.interrupts

    def _send(self, state: PyTree, times_s: Sequence[float], turn: int) -> tuple[int, PyTree]:
        """Dispatches idle clients at these times, until `cohort_size` are at work each time.

        A client is dispatched again with the same version of the model only if its task failed,
        because a second result would be equal to the first.

        Args:
          state: state of the algorithm.
          times_s: different virtual times in ascending order, in seconds; several only if clients
            are planned `_apart`.
          turn: number of the first time within the step.

        Returns:
          The number of times for which clients were dispatched, at least one, and the algorithm's
          state.
        """
        crew, counts, starts_s = _Crew(self.table.flight, self.step), [], []
        for i, now_s in enumerate(times_s):
            hired, begins_s = self._draw(state, crew, now_s, turn + i)
            crew.hired = np.concatenate([crew.hired, hired])
            counts.append(hired.size)
            starts_s.append(begins_s)
        clients = crew.hired
        if not clients.size:
            return len(times_s), state
        event = np.repeat(np.arange(len(times_s)), counts)
        alone = len(times_s) == 1
        start_s: float | np.ndarray = starts_s[0] if alone else np.asarray(starts_s)[event]
        plan, state = self.sampler.plan(
            state, self.variables, self.step, clients, start_s, turn=turn, key=self.key
        )
        flight = self.sampler.dispatch(plan, self.step, start_s, turn=turn)
        done = 1 if alone else undisturbed(np.asarray(times_s), flight.ends_s, event)
        if done < len(times_s):
            kept = np.flatnonzero(event < done)
            plan, flight = plan.take(kept), jax.tree.map(lambda column: column[kept], flight)
        if self.sampler.batteries is not None:
            self.sampler.batteries.dispatched(flight)
        self.table.send(plan, flight, self.step, self.variables)
        return done, state

    def _draw(
        self, state: PyTree, crew: "_Crew", now_s: float, turn: int
    ) -> tuple[np.ndarray, float]:
        """The clients that start at a time, int64[k], perhaps none, and when their tasks begin."""
        sampler = self.sampler
        working, busy = crew.at(now_s, whole=turn == 0)
        idle = Pool(population=sampler.problem.num_clients, absent=busy)
        size, pace = sampler.algorithm.cohort_size - working, sampler.algorithm.pace
        if size <= 0 or not len(idle):
            return np.zeros(0, np.int64), now_s
        least = 1 if pace.may_wait else sampler.algorithm.cohort_size
        return sampler.draw(
            state,
            self.variables,
            self.step,
            now_s,
            pool=idle,
            size=size,
            least=0 if crew.size else least,
            turn=turn,
        )


class _Crew:
    """Who is at work, during the dispatches of a server step.

    Args:
      flight: tasks in flight; None for none.
      step: number of the server step.

    Attributes:
      size: number of these tasks.
      hired: clients that were drawn since, int64[h], which are at work at all later times.
    """

    def __init__(self, flight: Flight | None, step: int):
        none = np.zeros(0, np.int64)
        self.size = 0 if flight is None else len(flight.client)
        self._client = none if flight is None else flight.client
        self._ends_s = none if flight is None else flight.ends_s
        self._same = none > 0 if flight is None else (flight.version == step) & ~flight.failed
        self.hired = none

    def at(self, now_s: float, *, whole: bool) -> tuple[int, np.ndarray]:
        """The number of clients at work, and the ids of those that may not be sent out, different.

        Args:
          now_s: virtual time in seconds.
          whole: whether clients that have arrived or failed count as at work, as they do at a
            merge, but not between two.
        """
        held = np.ones(self.size, bool) if whole else self._ends_s > now_s
        busy = self._client[held | self._same]
        # Only a client that has arrived, but is not merged, may be at work a second time.
        busy = np.concatenate([np.unique(busy) if whole else busy, self.hired])
        return int(np.count_nonzero(held)) + self.hired.size, busy


def undisturbed(times_s: np.ndarray, ends_s: np.ndarray, event: np.ndarray) -> int:
    """The number of events before the first one at which a task of an earlier event has ended.

    Args:
      times_s: times of the events in ascending order, float64[e].
      ends_s: ends of the tasks that were dispatched, float64[k].
      event: number of the event at which each of them was, int64[k], ascending.

    Returns:
      The number, from 1 to e.
    """
    soonest_s = np.full(len(times_s), np.inf)
    np.minimum.at(soonest_s, event, ends_s)
    disturbed = np.minimum.accumulate(soonest_s)[:-1] <= times_s[1:]
    return 1 + int(np.argmax(disturbed)) if disturbed.any() else len(times_s)
