"""The loop: sample -> plan -> clock -> train -> merge -> record; resumable at every step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from fedjax_het.algorithm import Algorithm, Plan, Report, Timing, Variables
from fedjax_het.checkpoint import Checkpoints
from fedjax_het.clock import Closing, Status, dispatch, verify
from fedjax_het.cohort import Cohort
from fedjax_het.evaluation import Evaluator
from fedjax_het.group import Outputs
from fedjax_het.inflight import InFlight
from fedjax_het.journal import Journal, client_rows, require_own, step_row
from fedjax_het.masks import Route
from fedjax_het.problem import Problem
from fedjax_het.report.records import RunRecord
from fedjax_het.sampling import Sampler
from fedjax_het.settings import FREE, Options
from fedjax_het.tracking import tensorboard_writer

PyTree = Any


class Result(NamedTuple):
    """What a simulation returns.

    Attributes:
      variables: the final global model.
      state: the algorithm's final state.
      record: everything that was recorded.
      faults: violations of the event log's invariants (`clock.verify`); empty when sound.
    """

    variables: Variables
    state: PyTree
    record: RunRecord
    faults: list[str]


def simulate(
    algorithm: Algorithm,
    problem: Problem,
    *,
    config: Mapping[str, Any] | None = None,
    cohort: Cohort | None = None,
    evaluator: Evaluator | None = None,
    **options: Any,
) -> Result:
    """Runs a federated method on a fleet, on virtual time.

    Args:
      algorithm: the method, made for this problem.
      problem: model, data and fleet.
      config: what to record as the configuration; a resumed run must have the same one.
      cohort: compiled programs of an earlier run of this algorithm object, to use again.
      evaluator: the same for the evaluation on this problem.
      **options: see `Options`; `rounds` is required.

    Returns:
      The `Result`.

    Raises:
      InputError: options that cannot be used, or a work directory of another configuration.
    """
    parsed = Options.parse(options)
    return Simulation(algorithm, problem, parsed, config or {}, cohort, evaluator).run()


def simulate_seeds(
    algorithm: Algorithm, problem: Problem, seeds: Sequence[int], **options: Any
) -> list[Result]:
    """`simulate` with each of several seeds, compiling once.

    Args:
      algorithm: the method.
      problem: model, data and fleet.
      seeds: one run each.
      **options: see `Options`; not `seed` and not `workdir`.

    Returns:
      The results in the order of the seeds.
    """
    runs = [Options.parse({**options, "seed": seed, "workdir": None}) for seed in seeds]
    cohort, evaluator = make_cohort(algorithm, problem, runs[0]), Evaluator(problem)
    return [Simulation(algorithm, problem, run, {}, cohort, evaluator).run() for run in runs]


def make_cohort(algorithm: Algorithm, problem: Problem, options: Options) -> Cohort:
    """The engine that the options ask for."""
    return Cohort(
        algorithm,
        problem,
        execution=options.execution,
        chunk=options.chunk,
        max_routes=options.max_routes,
        devices=options.devices,
    )


class Simulation:
    """One run; see `simulate`."""

    def __init__(
        self,
        algorithm: Algorithm,
        problem: Problem,
        options: Options,
        config: Mapping[str, Any],
        cohort: Cohort | None = None,
        evaluator: Evaluator | None = None,
    ):
        self._algorithm, self._problem, self._options = algorithm, problem, options
        self._step, self._now_s, self._next_eval_s = 0, 0.0, 0.0
        self._accuracy = 0.0
        self._earlier = {"wall_s": 0.0, "compile_s": 0.0}
        self._identity = self._identify(config)
        # What can be found wrong is found wrong first: even copying the data compiles something.
        sampler = Sampler(algorithm, problem, options.seed)
        sampler.draw(0, 0.0, least=1 if algorithm.pace.waits else None)
        workdir = None if options.workdir is None else Path(options.workdir)
        if workdir is not None:
            require_own(workdir, self._identity)
        self._checkpoints = None if workdir is None else Checkpoints(workdir / "checkpoints")
        if self._checkpoints is not None:
            self._checkpoints.newest(self._identity)
        self._journal = Journal(workdir, {**config, "identity": self._identity})
        self._tensorboard = tensorboard_writer(workdir) if options.tensorboard else None
        self._cohort = cohort or make_cohort(algorithm, problem, options)
        self._evaluate = evaluator or Evaluator(problem)
        self._compiled_before_s = self._compile_s()
        keys = jax.random.split(jax.random.key(options.seed), 4)
        init_key, state_key, self._round_key, plan_key = keys
        self._sampler = sampler._replace(key=plan_key)
        self._flight: InFlight | None = None
        if algorithm.pace.waits:
            # While a refilling pace waits, those that are back lie beside those at work.
            most = algorithm.cohort_size * (2 if algorithm.pace.refills else 1)
            self._flight = InFlight(self._cohort, self._round_key, most)
        self._trainer = self._cohort if self._flight is None else self._flight.engine.trainer
        self._last = problem.model.num_blocks - 1
        self._variables = problem.model.init(init_key)
        self._state = algorithm.init(self._variables, state_key)

    def _identify(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint: all but how long to go on."""
        options = asdict(self._options)
        settings = {name: part for name, part in config.items() if name != "run"}
        if "data" in settings:
            # Where the files lie does not matter; what is in them is the fingerprint's business.
            settings["data"] = {k: v for k, v in settings["data"].items() if k != "data_dir"}
        return {
            "settings": settings,
            "run": {name: value for name, value in options.items() if name not in FREE},
            "algorithm": self._algorithm.name,
            "model": self._problem.model.name,
            "parameters": self._problem.cost.param_count,
            "data": self._problem.data.fingerprint(),
            "fleet": self._problem.fleet.describe(),
        }

    def run(self) -> Result:
        """Runs to the end, from the newest checkpoint if there is one."""
        try:
            record = self._run()
        finally:
            self._journal.close()
            if self._tensorboard is not None:
                self._tensorboard.close()
        faults = verify(record.clients, record.metrics)
        for fault in faults:
            logging.error("event log: %s", fault)
        return Result(self._variables, self._state, record, faults)

    def _run(self) -> RunRecord:
        options = self._options
        self._began = time.perf_counter()
        self._trainer.routes = []
        if not self._resume():
            self._journal.begin({})
            self._record({"step": 0}, [], evaluate=True)
        with tqdm(
            total=options.rounds, initial=self._step, disable=None, unit="round", desc=self._name
        ) as bar:
            while not self._done():
                self._round()
                if self._done() or self._step % options.checkpoint_every == 0:
                    self._save()
                bar.update()
        targets = sorted({*options.targets, *([] if options.target is None else [options.target])})
        return self._journal.finish(
            self._problem, self._name, self._algorithm.name, options.seed, targets
        )

    @property
    def _name(self) -> str:
        return self._options.name or self._algorithm.name

    # ---- one server step ---------------------------------------------------------------------

    def _done(self) -> bool:
        options = self._options
        reached = options.target is not None and self._accuracy >= options.target
        return reached or self._out_of_time()

    def _out_of_time(self) -> bool:
        limit_s = self._options.max_virtual_s
        return self._step >= self._options.rounds or (
            limit_s is not None and self._now_s >= limit_s
        )

    def _round(self) -> None:
        table = self._flight
        rows, info = self._barrier_round() if table is None else self._overlapping_round(table)
        self._step += 1
        metrics = {"step": self._step, **step_row(rows), "info": info}
        if table is not None:
            metrics["in_flight"] = table.size
        self._record(metrics, rows, evaluate=self._due() or self._out_of_time())

    def _barrier_round(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """A round at whose end nobody is at work; returns the rows of its tasks."""
        clients, start_s = self._sampler.draw(self._step, self._now_s)
        plan, self._state = self._sampler.plan(
            self._state, self._variables, self._step, clients, start_s
        )
        flight = dispatch(plan, start_s, self._step)
        closing = self._algorithm.pace.close(flight)
        key = jax.random.fold_in(self._round_key, self._step)
        outcome, info = self._train(plan, closing, key)
        self._now_s = closing.at_s
        return client_rows(self._step + 1, flight, closing, plan, self._last, outcome), info

    def _overlapping_round(self, table: InFlight) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """A merge of some tasks while others are at work; returns the rows of those merged."""
        closing, self._state = table.advance(
            self._sampler, self._state, self._variables, self._step, self._now_s
        )
        tasks, closing, acc, plan = table.merge(closing, self._state, self._variables, self._step)
        out = Outputs(tasks.loss, tasks.samples, tasks.finite, None)
        info = self._update(acc, plan, out, self._step - tasks.flight.version)
        self._now_s = closing.at_s
        rows = client_rows(self._step + 1, tasks.flight, closing, plan, self._last, out._asdict())
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
        acc, out = self._cohort.train(self._state, self._variables, executed, key)
        info = self._update(acc, executed, out, np.zeros(ran.size, np.int64))
        for name, column in outcome.items():
            column[ran] = getattr(out, name)
        return outcome, info

    def _update(
        self, acc: PyTree, plan: Plan, out: Outputs, staleness: np.ndarray
    ) -> dict[str, Any]:
        """The server's step; returns what it has to say."""
        merged, info = self._cohort.finalize(acc, self._variables, plan.shared)
        report = Report(
            round=self._step,
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
        self._state, self._variables, extra = self._algorithm.update(
            self._state, self._variables, merged, report
        )
        return {**jax.device_get(info), **extra}

    # ---- records, evaluation, checkpoints ----------------------------------------------------

    def _due(self) -> bool:
        options = self._options
        if options.eval_every_s is None:
            return self._step % options.eval_every == 0
        if self._now_s < self._next_eval_s:
            return False
        passed = np.floor(self._now_s / options.eval_every_s)
        self._next_eval_s = float((passed + 1) * options.eval_every_s)
        return True

    def _record(
        self, row: dict[str, Any], clients: list[dict[str, Any]], *, evaluate: bool
    ) -> None:
        """Evaluates if it is time, and writes the step's rows."""
        measured = {}
        if evaluate:
            measured = self._evaluate(self._variables)
            self._accuracy = measured["accuracy"]
        metrics = {
            "step": row["step"],
            "virtual_s": self._now_s,
            **self._walls(),
            **{name: value for name, value in row.items() if name != "step"},
            "compiled_programs": self._cohort.programs,
            **measured,
        }
        self._journal.write(metrics, clients)
        if self._tensorboard is not None:
            self._tensorboard.write(metrics)

    def _walls(self) -> dict[str, float]:
        """Wall seconds so far, compilation apart."""
        compile_s = self._compile_s() - self._compiled_before_s
        wall_s = time.perf_counter() - self._began - compile_s
        return {
            "wall_s": self._earlier["wall_s"] + wall_s,
            "compile_s": self._earlier["compile_s"] + compile_s,
        }

    def _compile_s(self) -> float:
        return self._cohort.compiler.seconds + self._evaluate.compiler.seconds

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        meta = {
            "step": self._step,
            "now_s": self._now_s,
            "next_eval_s": self._next_eval_s,
            "accuracy": self._accuracy,
            "offsets": self._journal.offsets(),
            "totals": self._journal.totals,
            "routes": self._trainer.routes,
            "identity": self._identity,
            **self._walls(),
        }
        arrays: tuple[PyTree, ...] = (self._variables, self._state)
        if self._flight is not None:
            waiting, meta["flight"] = self._flight.saved()
            arrays = (*arrays, waiting)
        self._checkpoints.save(self._step, arrays, meta)

    def _template(self, meta: Mapping[str, Any]) -> PyTree:
        """The arrays of a checkpoint with this `meta`, with other values."""
        arrays = self._variables, self._state
        if self._flight is None:
            return arrays
        clients = np.arange(self._algorithm.cohort_size)
        plan, _ = self._sampler.plan(self._state, self._variables, 0, clients, 0.0)
        return *arrays, self._flight.template(meta["flight"], plan, self._variables)

    def _resume(self) -> bool:
        """Takes up the newest whole checkpoint; False if there is none."""
        if self._checkpoints is None:
            return False
        found = self._checkpoints.restore(self._template, self._identity)
        if found is None:
            return False
        (self._variables, self._state, *waiting), meta = found
        if self._flight is not None:
            self._flight.restore(waiting[0], meta["flight"])
        self._step, self._now_s = meta["step"], meta["now_s"]
        self._next_eval_s, self._accuracy = meta["next_eval_s"], meta["accuracy"]
        self._earlier = {name: meta[name] for name in self._earlier}
        self._trainer.routes = [Route(*route) for route in meta["routes"]]
        self._journal.begin(meta["offsets"], meta["totals"])
        return True


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
