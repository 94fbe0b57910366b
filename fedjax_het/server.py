"""The server: the model, the method's state, and the step that changes both.

::

    sample -> plan -> clock -> train -> merge -> update
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_het.algorithm import Algorithm, Plan, Report, Timing
from fedjax_het.clock import Closing, Status, dispatch
from fedjax_het.cohort import Cohort
from fedjax_het.group import Outputs
from fedjax_het.inflight import InFlight
from fedjax_het.journal import client_rows, step_row
from fedjax_het.masks import Route
from fedjax_het.problem import Problem
from fedjax_het.sampling import Sampler

PyTree = Any


class Server:
    """What a run changes from step to step.

    Args:
      algorithm: the method.
      problem: model, data and fleet.
      cohort: the engine.
      seed: of everything random.

    Attributes:
      step: server steps so far.
      now_s: virtual time.
      variables: the global model.
      state: the algorithm's.
      news: the accuracy of an evaluation that no plan has seen yet, or None.
    """

    def __init__(self, algorithm: Algorithm, problem: Problem, cohort: Cohort, seed: int):
        keys = _keys(seed)
        self._algorithm, self._cohort, self._round_key = algorithm, cohort, keys["round"]
        self._last = problem.model.num_blocks - 1
        self._sampler = Sampler(algorithm, problem, seed, keys["plan"])
        self._flight: InFlight | None = None
        if algorithm.pace.waits:
            # While a refilling pace waits, those that are back lie beside those at work.
            most = algorithm.cohort_size * (2 if algorithm.pace.refills else 1)
            self._flight = InFlight(cohort, self._round_key, most)
        cohort.routes = []
        self.step, self.now_s, self.news = 0, 0.0, None
        self.variables = problem.model.init(keys["model"])
        self.state = algorithm.init(self.variables, keys["state"])

    def advance(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One server step; returns what there is to record of it, and of its tasks."""
        table = self._flight
        rows, info = self._barrier_round() if table is None else self._overlapping_round(table)
        self.step += 1
        metrics = {**step_row(rows), "info": info}
        if table is not None:
            metrics["in_flight"] = table.size
        return metrics, rows

    def _barrier_round(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """A round at whose end nobody is at work; returns the rows of its tasks."""
        clients, start_s = self._sampler.draw(self.step, self.now_s)
        plan, self.state = self._sampler.plan(
            self.state, self.variables, self.step, clients, start_s, accuracy=self.news
        )
        self.news = None
        flight = dispatch(plan, start_s, self.step)
        closing = self._algorithm.pace.close(flight)
        key = jax.random.fold_in(self._round_key, self.step)
        outcome, info = self._train(plan, closing, key)
        self.now_s = closing.at_s
        return client_rows(self.step + 1, flight, closing, plan, self._last, outcome), info

    def _overlapping_round(self, table: InFlight) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """A merge of some tasks while others are at work; returns the rows of those merged."""
        closing, self.state = table.advance(
            self._sampler, self.state, self.variables, self.step, self.now_s
        )
        tasks, closing, acc, plan = table.merge(closing, self.state, self.variables, self.step)
        out = Outputs(tasks.loss, tasks.samples, tasks.finite, None)
        info = self._update(acc, plan, out, self.step - tasks.flight.version)
        self.now_s = closing.at_s
        rows = client_rows(self.step + 1, tasks.flight, closing, plan, self._last, out._asdict())
        return rows, info

    def _train(
        self, plan: Plan, closing: Closing, key: jax.Array
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Trains and merges the tasks that count; the model is unchanged if there are none."""
        k = len(plan.clients)
        outcome: dict[str, np.ndarray] = {
            "loss": np.full(k, np.nan, np.float32),
            "samples": np.zeros(k, np.int64),
            "finite": np.ones(k, bool),
        }
        ran = np.flatnonzero([status is not Status.DROPPED for status in closing.status])
        if ran.size == 0:
            return outcome, {}
        executed = _take(plan, ran, closing.steps)
        acc, out = self._cohort.train(self.state, self.variables, executed, key)
        info = self._update(acc, executed, out, np.zeros(ran.size, np.int64))
        for name, column in outcome.items():
            column[ran] = getattr(out, name)
        return outcome, info

    def _update(
        self, acc: PyTree, plan: Plan, out: Outputs, staleness: np.ndarray
    ) -> dict[str, Any]:
        """The server's step; returns what it has to say."""
        merged, info = self._cohort.finalize(acc, self.variables, plan.shared)
        report = Report(
            round=self.step,
            plan=plan,
            loss=out.loss,
            samples=out.samples.astype(np.int64),
            merged=out.finite,
            nonfinite=plan.clients[~out.finite],
            aux=out.aux,
            info=info,
            staleness=staleness,
            acc=acc,
        )
        self.state, self.variables, extra = self._algorithm.update(
            self.state, self.variables, merged, report
        )
        return {**jax.device_get(info), **extra}

    # ---- checkpoints -------------------------------------------------------------------------

    def saved(self) -> tuple[tuple[PyTree, ...], dict[str, Any]]:
        """What a checkpoint keeps, as arrays and as JSON."""
        meta: dict[str, Any] = {
            "step": self.step,
            "now_s": self.now_s,
            "news": self.news,
            "routes": self._cohort.routes,
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
        self._cohort.routes = [Route(*route) for route in meta["routes"]]


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
