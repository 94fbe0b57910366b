"""The server: the model, the method's state, and the steps that change both.

::

    sample -> plan -> clock -> train -> merge -> update

Where the plans look at nothing learned (`Schedule`), several rounds are planned first and then
run as one block on the device.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.common.errors import InputError
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Plan, Report, Schedule, ServerStep, Timing
from fedjax_het.contract.clock import Closing, Flight, Status, dispatch
from fedjax_het.contract.masks import Route
from fedjax_het.engine.dispatch import InFlight, Merged
from fedjax_het.engine.engine import Engine
from fedjax_het.engine.packing import Dealt, unstack
from fedjax_het.engine.programs import Outputs
from fedjax_het.engine.rounds import BlockOutputs
from fedjax_het.engine.sampling import Sampler, fold_in
from fedjax_het.problem import Problem
from fedjax_het.simulation.journal import client_rows, step_row

# Rounds that lie planned, so that programs are compiled for their routes too.
_AHEAD = 32


class Record(NamedTuple):
    """What there is to record of a server step.

    Attributes:
      step: from 1.
      now_s: virtual time at its end.
      metrics: of the step.
      clients: rows of its tasks.
    """

    step: int
    now_s: float
    metrics: dict[str, Any]
    clients: list[dict[str, Any]]


class _Round(NamedTuple):
    """A round whose end is known and whose training is not done.

    Attributes:
      step: server steps before it.
      plan: who was to do what.
      flight: the tasks.
      closing: what becomes of them.
      ran: int64[r], those whose work counts.
    """

    step: int
    plan: Plan
    flight: Flight
    closing: Closing
    ran: np.ndarray

    @property
    def executed(self) -> Plan:
        """The tasks whose work counts, with the steps that count."""
        return _take(self.plan, self.ran, self.closing.steps)


# What a step leaves; calling it waits for the device.
Records = Callable[[], list[Record]]
# `(step, now_s) -> bool`, of a step from 1 and its end.
Ends = Callable[[int, float], bool]


class Server:
    """What a run changes from step to step.

    Args:
      algorithm: the method.
      problem: model, data and fleet.
      cohort: the engine.
      seed: of everything random.
      room: rounds of the longest block.

    Attributes:
      step: server steps so far.
      now_s: virtual time.
      variables: the global model.
      state: the algorithm's.
      news: the accuracy of an evaluation that no plan has seen yet, or None.
    """

    def __init__(
        self, algorithm: Algorithm, problem: Problem, engine: Engine, seed: int, room: int
    ):
        keys = _keys(seed)
        self._algorithm, self._engine, self._round_key = algorithm, engine, keys["round"]
        self._last = problem.model.num_blocks - 1
        self._sampler = Sampler(algorithm, problem, seed, keys["plan"])
        self._flight: InFlight | None = None
        if algorithm.pace.waits:
            # While a refilling pace waits, those that are back lie beside those at work.
            most = algorithm.cohort_size * (2 if algorithm.pace.refills else 1)
            self._flight = InFlight(engine, self._round_key, most)
        engine.routes = []
        self._room = room
        self._in_blocks = (
            isinstance(algorithm.plan, Schedule)
            and isinstance(algorithm.update, ServerStep)
            and self._flight is None
            and engine.execution != "debug"
        )
        self._planned: deque[_Round] = deque()
        self._closing: Closing | None = None
        self.step, self.now_s, self.news = 0, 0.0, None
        self.variables = problem.model.init(keys["model"])
        self.state = algorithm.init(self.variables, keys["state"])

    def look_ahead(self, ends: Ends, stops: Ends) -> None:
        """Plans what comes, while the device is at work, as far as that changes nothing.

        That is rounds to come, where plans look at nothing learned, and the next merge, where tasks
        overlap.

        Args:
          ends: whether the run ends with a step.
          stops: whether something comes between a step and the next that is to see the server as
            the step has left it.
        """
        # What cannot be planned is reported when its turn comes, if it comes.
        with contextlib.suppress(InputError):
            if self._flight is not None and not stops(self.step, self.now_s):
                self._closing = self._send_out(self._flight)
            while self._in_blocks and len(self._planned) < _AHEAD and not ends(*self._frontier):
                self._planned.append(self._plan_round(*self._frontier))

    @property
    def _frontier(self) -> tuple[int, float]:
        """Step and virtual time behind everything planned."""
        if self._planned:
            return self._planned[-1].step + 1, self._planned[-1].closing.at_s
        return self.step, self.now_s

    def advance(self, most: int, ends: Ends) -> tuple[int, Records]:
        """One or several server steps, without waiting for the device where that is possible.

        Args:
          most: steps to take at most; 1 is taken in any case.
          ends: whether nothing may come after a step before the caller has seen to it.

        Returns:
          How many steps, and what there is to record of them.
        """
        if self._in_blocks:
            return self._block(most, ends)
        table = self._flight
        return 1, self._barrier_round() if table is None else self._overlapping_round(table)

    def _plan_round(self, step: int, now_s: float) -> _Round:
        """The plan of a round at whose end nobody is at work, and its end."""
        clients, start_s = self._sampler.draw(step, now_s)
        plan, self.state = self._sampler.plan(
            self.state, self.variables, step, clients, start_s, accuracy=self.news
        )
        self.news = None
        flight = dispatch(plan, start_s, step)
        closing = self._algorithm.pace.close(flight)
        ran = np.flatnonzero([status is not Status.DROPPED for status in closing.status])
        return _Round(step, plan, flight, closing, ran)

    def _barrier_round(self) -> Records:
        """A round on its own; the model is unchanged if nobody's work counts."""
        one = self._plan_round(self.step, self.now_s)
        self.now_s, out, info = one.closing.at_s, None, {}
        if one.ran.size:
            plan = one.executed
            key = fold_in(self._round_key, self.step)
            acc, out = self._engine.train(self.state, self.variables, plan, key)
            merged = Merged(*self._engine.finalize(acc, self.variables, plan.shared), out, acc)
            info = jax.device_get(self._update(merged, plan, np.zeros(one.ran.size, np.int64)))
        self.step += 1
        record = self._record(one, out, info)
        return lambda: [record]

    def _block(self, most: int, ends: Ends) -> tuple[int, Records]:
        """Rounds planned ahead, as one program."""
        rounds: list[_Round] = []
        while True:
            if not self._planned:
                self._planned.append(self._plan_round(self.step, self.now_s))
            rounds.append(self._planned.popleft())
            self.step, self.now_s = rounds[-1].step + 1, rounds[-1].closing.at_s
            if len(rounds) == min(most, self._room) or ends(self.step, self.now_s):
                break
        ran = [one for one in rounds if one.ran.size]
        outputs: BlockOutputs | None = None
        dealt: list[list[Dealt]] = []
        if ran:
            self.state, self.variables, outputs, dealt = self._engine.train_block(
                self.state,
                self.variables,
                [one.step for one in ran],
                [one.executed for one in ran],
                self._round_key,
                room=self._room,
                ahead=[one.plan for one in self._planned],
            )

        def records() -> list[Record]:
            seen = iter([] if outputs is None else unstack(outputs, dealt))
            return [
                self._record(one, *(next(seen) if one.ran.size else (None, {}))) for one in rounds
            ]

        return len(rounds), records

    def _record(self, one: _Round, out: Outputs | None, info: dict[str, Any]) -> Record:
        rows = self._rows(one, out)
        metrics = {**step_row(rows), "info": {**info, **(one.plan.info or {})}}
        return Record(one.step + 1, one.closing.at_s, metrics, rows)

    def _rows(self, one: _Round, out: Outputs | None) -> list[dict[str, Any]]:
        """Rows of a round's tasks; `out` are the outputs of those whose work counts."""
        k = len(one.plan.clients)
        outcome: dict[str, np.ndarray] = {
            "loss": np.full(k, np.nan, np.float32),
            "samples": np.zeros(k, np.int64),
            "finite": np.ones(k, bool),
        }
        if out is not None:
            for name, column in outcome.items():
                column[one.ran] = getattr(out, name)
        return client_rows(one.step + 1, one.flight, one.closing, one.plan, self._last, outcome)

    def _send_out(self, table: InFlight) -> Closing:
        """Sends out idle clients; what becomes of the table at the next merge."""
        closing, self.state = table.advance(
            self._sampler, self.state, self.variables, self.step, self.now_s
        )
        return closing

    def _overlapping_round(self, table: InFlight) -> Records:
        """A merge of some tasks while others are at work."""
        closing, self._closing = self._closing or self._send_out(table), None
        tasks, closing, plan, merged = table.merge(closing, self.state, self.variables, self.step)
        info = self._update(merged, plan, self.step - tasks.flight.version)
        self.now_s = closing.at_s
        self.step += 1
        step, now_s, in_flight = self.step, self.now_s, table.size
        # Not `merged` itself: what waits to be written must not hold the accumulator.
        outputs = merged.outputs

        def records() -> list[Record]:
            out, said = jax.device_get((outputs, info))
            rows = client_rows(step, tasks.flight, closing, plan, self._last, out._asdict())
            metrics = {**step_row(rows), "info": said, "in_flight": in_flight}
            return [Record(step, now_s, metrics, rows)]

        return records

    def _update(self, merged: Merged, plan: Plan, staleness: np.ndarray) -> dict[str, Any]:
        """The server's step; returns what it has to say, some of it perhaps still to come."""
        update, out = self._algorithm.update, merged.outputs
        if isinstance(update, ServerStep):
            # Looks at no report, so that nobody waits for one.
            self.state, self.variables = update.step(self.state, self.variables, merged.variables)
            return merged.info
        report = Report(
            round=self.step,
            plan=plan,
            loss=out.loss,
            samples=out.samples.astype(np.int64),
            merged=out.finite,
            nonfinite=plan.clients[~out.finite],
            aux=out.aux,
            info=merged.info,
            staleness=staleness,
            acc=merged.acc,
        )
        self.state, self.variables, extra = update(
            self.state, self.variables, merged.variables, report
        )
        return {**merged.info, **extra}

    def wait(self) -> None:
        """Returns when the device has done all that `advance` asked of it."""
        jax.block_until_ready((self.variables, self.state))

    # ---- checkpoints -------------------------------------------------------------------------

    def saved(self) -> tuple[tuple[PyTree, ...], dict[str, Any]]:
        """What a checkpoint keeps, as arrays and as JSON."""
        meta: dict[str, Any] = {
            "step": self.step,
            "now_s": self.now_s,
            "news": self.news,
            "routes": self._engine.routes,
        }
        arrays: tuple[PyTree, ...] = (self.variables, self.state)
        if self._flight is not None:
            waiting, meta["flight"] = self._flight.saved()
            arrays = (*arrays, waiting)
        return arrays, meta

    def template(self, meta: Mapping[str, Any]) -> PyTree:
        """The arrays of a checkpoint with this `meta`, with other values."""
        arrays = self.variables, self.state
        if self._flight is None:
            return arrays
        clients = np.arange(self._algorithm.cohort_size)
        plan, _ = self._sampler.plan(self.state, self.variables, 0, clients, 0.0)
        return *arrays, self._flight.template(meta["flight"], plan, self.variables)

    def restore(self, arrays: PyTree, meta: Mapping[str, Any]) -> None:
        """Takes up what `saved` gave."""
        self.variables, self.state, *waiting = arrays
        if self._flight is not None:
            self._flight.restore(waiting[0], meta["flight"])
        self.step, self.now_s, self.news = meta["step"], meta["now_s"], meta["news"]
        self._engine.routes = [Route(*route) for route in meta["routes"]]


def require_available(algorithm: Algorithm, problem: Problem, seed: int) -> None:
    """Raises `InputError` if the first cohort can never be drawn."""
    least = 1 if algorithm.pace.waits else None
    Sampler(algorithm, problem, seed).draw(0, 0.0, least=least)


def _keys(seed: int) -> dict[str, jax.Array]:
    names = ("model", "state", "round", "plan")
    return dict(zip(names, jax.random.split(jax.random.key(seed), 4), strict=True))


def _take(plan: Plan, index: np.ndarray, steps: np.ndarray) -> Plan:
    """The rows of a plan that are executed, with the steps that count."""
    return plan._replace(
        clients=plan.clients[index],
        routes=[plan.routes[i] for i in index],
        steps=np.asarray(steps)[index],
        batch=plan.batch[index],
        weight=plan.weight[index],
        timing=Timing(*(np.asarray(part)[index] for part in plan.timing)),
        rows=jax.tree.map(lambda a: np.asarray(a)[index], plan.rows),
    )
