"""The server: the model, the method's state, and the steps that change both.

::

    select -> plan -> pace -> train -> merge -> update -> observe

If the plans depend on nothing that is learned (`Algorithm.plans_ahead`), several rounds are planned
first and then run as one batch of rounds on the device.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_het.common.errors import InputError
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Report, Variables
from fedjax_het.contract.clock import Closing, Flight
from fedjax_het.contract.plan import Plan
from fedjax_het.engine.batteries import Batteries
from fedjax_het.engine.dispatch import DispatchTable
from fedjax_het.engine.engine import Engine
from fedjax_het.engine.packing import Packed, unstack
from fedjax_het.engine.probing import LossProbe
from fedjax_het.engine.rounds import RoundOutputs
from fedjax_het.engine.rows import Outputs
from fedjax_het.engine.sampling import Sampler, Unseen, fold_in
from fedjax_het.engine.selecting import Selection
from fedjax_het.engine.steps import Now
from fedjax_het.problem import Problem
from fedjax_het.simulation.clients import outcome_of, seen_of
from fedjax_het.simulation.journal import PendingRecords, Record
from fedjax_het.simulation.planned import PlannedRound
from fedjax_het.simulation.probes import probe_rows
from fedjax_het.simulation.rows import client_rows, round_record, step_row
from fedjax_het.simulation.start import run_keys

# Number of rounds that are planned ahead, so that their routes are compiled together.
_AHEAD = 32


# `(step, now_s) -> bool`, for the number of a step, from 1, and the virtual time of its end.
Ends = Callable[[int, float], bool]


class Server:
    """The part of a run that changes from step to step.

    Args:
      algorithm: method to run.
      problem: model, data and fleet.
      engine: engine of the method.
      seed: seed of everything random.
      capacity: number of rounds in the longest batch of rounds.
      initial: global model at the start; None draws it.

    Attributes:
      step: number of server steps so far.
      now_s: virtual time in seconds.
      variables: global model.
      state: state of the algorithm.
      selection: selection of the run.
      unseen: score of an evaluation that was not passed to a plan yet.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        problem: Problem,
        engine: Engine,
        seed: int,
        capacity: int,
        initial: Variables | None = None,
    ):
        keys = run_keys(seed)
        self._algorithm, self._engine, self._round_key = algorithm, engine, keys["round"]
        self._problem, fleet = problem, problem.fleet
        self.selection = Selection(algorithm, problem.data.sizes)
        self._batteries = charge = Batteries(fleet) if fleet.has_batteries else None
        losses = LossProbe(engine.resources, algorithm.calibrate)
        parts = (algorithm, problem, seed, keys["plan"], self.selection)
        self.unseen = Unseen()
        self._sampler = Sampler(*parts, losses, charge, self.unseen, engine.measure)
        self._capacity = capacity
        ends_s = fleet.presence.off_after(np.arange(problem.num_clients))
        self._may_end = bool(np.isfinite(np.minimum(ends_s, fleet.battery_joules)).all())
        self._in_batches = algorithm.plans_ahead and engine.batches
        self._begin()
        self._spent = None if self._batteries is None else self._batteries.spent
        self._planned: deque[PlannedRound] = deque()
        self._closing: Closing | None = None
        self.step, self.now_s = 0, 0.0
        self.variables = problem.model.init(keys["model"]) if initial is None else initial
        self.state = algorithm.init(self.variables, keys["state"])

    def _begin(self, saved: Mapping[str, Any] | None = None) -> None:
        """Starts with the routes of a checkpoint, if any, and without clients at work."""
        algorithm, widths = self._algorithm, self._algorithm.widths
        # A batch of rounds has one program for the routes of all the rounds that are planned ahead.
        rents, shares = not algorithm.plans_ahead, (1.0,) if widths is None else widths.shares
        self._routes = self._engine.resources.routes(rents=rents, shares=shares, saved=saved)
        self._table: DispatchTable | None = None
        if algorithm.overlaps:
            parts = (self._engine, self._routes, self._round_key)
            self._table = DispatchTable(*parts, algorithm.most_tasks, algorithm)

    def look_ahead(self, ends: Ends, stops: Ends) -> None:
        """Plans ahead while the device computes, as far as this does not change the results.

        It plans later rounds if plans depend on nothing that is learned, and it dispatches tasks
        until the next merge if tasks overlap.

        Args:
          ends: function that tells whether the run ends with a step.
          stops: function that tells whether an evaluation or a checkpoint follows a step, which
            needs the server as the step left it.
        """
        # An error of planning is raised later, when that round is run, if it is run.
        with contextlib.suppress(InputError):
            if self._table is not None and not stops(self.step, self.now_s):
                self._closing = self._send_out(self._table)
        # So is a fault of the method: a plan that depends on nothing has it again.
        with contextlib.suppress(Exception):
            while self._in_batches and len(self._planned) < _AHEAD and not ends(*self._frontier):
                self._planned.append(self._plan_round(*self._frontier))

    @property
    def exhausted(self) -> bool:
        """Whether no client is at work, and none is ever available again."""
        working = self._planned or (self._table is not None and self._table.size)
        return self._may_end and not working and not self._sampler.anyone_left(self.now_s)

    @property
    def _frontier(self) -> tuple[int, float]:
        """Step and virtual time after all planned rounds."""
        if self._planned:
            return self._planned[-1].step + 1, self._planned[-1].closing.at_s
        return self.step, self.now_s

    def advance(self, most: int, ends: Ends) -> tuple[int, PendingRecords]:
        """Runs one or several server steps, without waiting for the device if possible.

        Args:
          most: largest number of steps; at least one is run.
          ends: function that tells whether the caller must act after a step, so that no further
            step may run.

        Returns:
          The number of steps, and their pending records.
        """
        if self._in_batches:
            return self._batch(most, ends)
        table = self._table
        return 1, self._barrier_round() if table is None else self._overlapping_round(table)

    def _plan_round(self, step: int, now_s: float) -> PlannedRound:
        """Plans a round at whose end no client is at work, and closes it in virtual time."""
        clients, start_s = self._sampler.draw(self.state, self.variables, step, now_s)
        plan, self.state = self._sampler.plan(self.state, self.variables, step, clients, start_s)
        flight = self._sampler.dispatch(plan, step, start_s)
        closing = self._algorithm.pace.close(flight)
        spent = None if self._batteries is None else self._batteries.ran(flight, closing)
        return PlannedRound(step, plan, flight, closing, self.selection.probes, spent)

    def _barrier_round(self) -> PendingRecords:
        """Runs a single round; the model does not change if no client's work counts."""
        one = self._plan_round(self.step, self.now_s)
        self.now_s, self._spent, out = one.closing.at_s, one.spent, None
        info: Mapping[str, Any] = {}
        if one.ran.size:
            plan, key = one.executed, fold_in(self._round_key, self.step)
            routes = self._routes.execute(plan)
            acc, out = self._engine.train(self.state, self.variables, plan, key, routes)
            now = Now(np.int32(self.step), self._round_key)
            self.state, self.variables, info = self._engine.close(
                acc, self.state, self.variables, plan.shared, now
            )
            late = np.zeros(one.ran.size, np.int64)
            info = jax.device_get(self._observe(plan, out, late, info))
        outcome = outcome_of(one.ran, len(one.plan.clients), out)
        self._learn(one.flight, one.closing, lambda: outcome)
        self.step += 1
        record = round_record(one, self._problem, outcome, info)
        return lambda: [record]

    def _batch(self, most: int, ends: Ends) -> tuple[int, PendingRecords]:
        """Runs a batch of rounds, planned ahead, as one program.

        The batch ends before a round that cannot be planned. The rounds before it are run and
        recorded, and the error is raised when the batch that starts with this round is run.
        """
        rounds: list[PlannedRound] = []
        while True:
            if not self._planned:
                try:
                    self._planned.append(self._plan_round(self.step, self.now_s))
                except Exception:
                    if not rounds:
                        raise
                    break
            rounds.append(self._planned.popleft())
            self.step, self.now_s = rounds[-1].step + 1, rounds[-1].closing.at_s
            if len(rounds) == min(most, self._capacity) or ends(self.step, self.now_s):
                break
        self._spent = rounds[-1].spent
        ran = [one for one in rounds if one.ran.size]
        outputs: RoundOutputs | None = None
        packed: list[list[Packed]] = []
        if ran:
            self.state, self.variables, outputs, packed = self._engine.train_rounds(
                self.state,
                self.variables,
                [one.step for one in ran],
                [one.executed for one in ran],
                self._round_key,
                self._routes,
                capacity=self._capacity,
                ahead=[one.plan for one in self._planned],
            )

        def records() -> list[Record]:
            found = iter([] if outputs is None else unstack(outputs, packed))
            made = []
            for one in rounds:
                out, info = next(found) if one.ran.size else (None, {})
                outcome = outcome_of(one.ran, len(one.plan.clients), out)
                made.append(round_record(one, self._problem, outcome, info))
            return made

        return len(rounds), records

    def _learn(
        self, flight: Flight, closing: Closing, outcome: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Shows the tasks that a step settled to the selection."""
        told = (self.step, flight, closing)
        self.selection.observe(lambda: seen_of(*told, outcome(), self._problem))

    def _send_out(self, table: DispatchTable) -> Closing:
        """Dispatches idle clients; returns the `Closing` of the table at the next merge."""
        server = self.state, self.variables, self.step, self.now_s
        closing, self.state = table.advance(self._sampler, *server)
        return closing

    def _overlapping_round(self, table: DispatchTable) -> PendingRecords:
        """Merges some tasks while others are at work."""
        closing, self._closing = self._closing or self._send_out(table), None
        tasks, closing, plan, done = table.merge(closing, self.state, self.variables, self.step)
        self.state, self.variables, info, outputs = done
        flight, ran = tasks.flight, np.flatnonzero(closing.merges)
        if outputs is not None:
            own = plan if ran.size == tasks.size else plan.take(ran)
            info = self._observe(own, outputs, self.step - flight.version[ran], info)

        def outcome() -> Mapping[str, Any]:
            return outcome_of(ran, tasks.size, jax.device_get(outputs))

        self._learn(flight, closing, outcome)
        self.now_s = closing.at_s
        self.step += 1
        step, now_s, in_flight = self.step, self.now_s, table.size
        released, probes = self._algorithm.pace.refills, self.selection.probes
        if self._batteries is not None:
            self._batteries.settled(flight, closing, released)
            self._spent = self._batteries.spent

        def records() -> list[Record]:
            told = {**jax.device_get(info), **(plan.info or {})}
            rows = probe_rows(step, probes, self._problem)
            rows += client_rows(step, flight, closing, plan, self._problem, outcome(), released)
            metrics = {**step_row(rows), "info": told, "in_flight": in_flight}
            return [Record(step, now_s, metrics, rows)]

        return records

    def _observe(
        self, plan: Plan, out: Outputs, staleness: np.ndarray, info: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Calls the method's `observe`; returns the info to record, perhaps not computed yet."""
        if self._algorithm.observe is None:
            return info
        told = jax.device_get(info)
        report = Report(
            round=self.step,
            plan=plan,
            loss=out.loss,
            samples=out.samples.astype(np.int64),
            merged=out.finite,
            staleness=staleness,
            client_info=out.info,
            info=told,
        )
        self.state, self.variables, extra = self._algorithm.observe(
            self.state, self.variables, report
        )
        return {**told, **extra}

    def wait(self) -> None:
        """Waits until the device has computed everything that `advance` started."""
        jax.block_until_ready((self.variables, self.state))

    # ---- checkpoints -------------------------------------------------------------------------

    @property
    def _arrays(self) -> tuple[PyTree, ...]:
        """The content of a checkpoint apart from clients at work."""
        charge = () if self._spent is None else (self._spent,)
        return self.variables, self.state, *self.selection.saved, *charge

    def saved(self) -> tuple[tuple[PyTree, ...], dict[str, Any]]:
        """The content of a checkpoint: arrays, and metadata as JSON."""
        meta: dict[str, Any] = {
            "step": self.step,
            "now_s": self.now_s,
            "unseen_score": self.unseen.score,
            **self._routes.saved,
        }
        arrays = self._arrays
        if self._table is not None:
            waiting, meta["flight"] = self._table.saved()
            arrays = (*arrays, waiting)
        return arrays, meta

    def template(self, meta: Mapping[str, Any]) -> PyTree:
        """Arrays of the structure and shapes of a checkpoint with this metadata."""
        arrays = self._arrays
        if self._table is None:
            return arrays
        clients = np.arange(self._algorithm.cohort_size)
        plan, _ = self._sampler.plan(self.state, self.variables, 0, clients, 0.0)
        flight = self._sampler.dispatch(plan, 0, 0.0)
        return *arrays, self._table.template(meta["flight"], plan, flight, self.variables)

    def restore(self, arrays: PyTree, meta: Mapping[str, Any]) -> None:
        """Restores the server from the result of `saved`."""
        self._begin(meta)
        self.variables, self.state, *rest = arrays
        if self._table is not None:
            self._table.restore(rest.pop(), meta["flight"])
        if self._batteries is not None:
            self._batteries.spent = self._spent = rest.pop()
        self.selection.restore(tuple(rest))
        self.step, self.now_s = meta["step"], meta["now_s"]
        self.unseen.score = meta["unseen_score"]
