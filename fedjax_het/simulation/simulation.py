"""The loop: sample -> plan -> clock -> train -> merge -> record; resumable at every step."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.engine.engine import Engine
from fedjax_het.problem import Problem
from fedjax_het.report.audit import verify
from fedjax_het.report.records import RunRecord
from fedjax_het.runtime import processes
from fedjax_het.simulation.checkpoints import Checkpoints
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.journal import Journal, require_own
from fedjax_het.simulation.options import FREE, RunOptions
from fedjax_het.simulation.server import PendingRecords, Record, Server, require_available
from fedjax_het.simulation.sinks import tensorboard_writer

# Rounds of the longest block, and seconds that one should stay below: a block is shown and recorded
# only when it is over.
_BLOCK, _BLOCK_S = 32, 0.5


class Result(NamedTuple):
    """What a simulation returns.

    Attributes:
      variables: the final global model.
      state: the algorithm's final state.
      record: everything that was recorded.
      faults: violations of the event log's invariants (`report.audit.verify`); empty when sound.
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
    engine: Engine | None = None,
    evaluator: Evaluator | None = None,
    **options: Any,
) -> Result:
    """Runs a federated method on a fleet, on virtual time.

    Args:
      algorithm: the method, made for this problem.
      problem: model, data and fleet.
      config: what to record as the configuration; a resumed run must have the same one.
      engine: compiled programs of an earlier run of this algorithm object, to use again.
      evaluator: the same for the evaluation on this problem.
      **options: see `RunOptions`; `rounds` is required.

    Returns:
      The `Result`.

    Raises:
      InputError: options that cannot be used, or a work directory of another configuration.
    """
    parsed = RunOptions.parse(options)
    return Simulation(algorithm, problem, parsed, config or {}, engine, evaluator).run()


def simulate_seeds(
    algorithm: Algorithm, problem: Problem, seeds: Sequence[int], **options: Any
) -> list[Result]:
    """`simulate` with each of several seeds, compiling once.

    Args:
      algorithm: the method.
      problem: model, data and fleet.
      seeds: one run each.
      **options: see `RunOptions`; not `seed` and not `workdir`.

    Returns:
      The results in the order of the seeds.
    """
    runs = [RunOptions.parse({**options, "seed": seed, "workdir": None}) for seed in seeds]
    engine, evaluator = Engine(algorithm, runs[0].resources(problem)), Evaluator(problem)
    return [Simulation(algorithm, problem, run, {}, engine, evaluator).run() for run in runs]


class Simulation:
    """One run; see `simulate`."""

    def __init__(
        self,
        algorithm: Algorithm,
        problem: Problem,
        options: RunOptions,
        config: Mapping[str, Any],
        engine: Engine | None = None,
        evaluator: Evaluator | None = None,
    ):
        require(
            engine is None or engine.holds(algorithm),
            "engine of another algorithm",
            f"must have been made for this {algorithm.name}, whose steps are in its programs",
            "leave it out, or make it with `make_engine(algorithm, problem)`",
        )
        self._algorithm, self._problem, self._options = algorithm, problem, options
        self._next_eval_s, self._accuracy = 0.0, 0.0
        self._earlier = {"wall_s": 0.0, "compile_s": 0.0}
        self._pending: tuple[PendingRecords, dict[str, Any]] | None = None
        self._identity = self._identify(config)
        # What can be found wrong is found wrong first: even copying the data compiles something.
        require_available(algorithm, problem, options.seed)
        workdir = None if options.workdir is None else Path(options.workdir)
        if workdir is not None:
            require_own(workdir, self._identity)
        self._checkpoints = None if workdir is None else Checkpoints(workdir / "checkpoints")
        # Of several processes the first one writes; the others read what it has left in order.
        self._writes = processes.is_leader() or workdir is None
        if not self._writes:
            processes.meet("checkpoints")
        if self._checkpoints is not None:
            self._checkpoints.newest(self._identity)
        if self._writes and workdir is not None:
            processes.meet("checkpoints")
        self._workdir = workdir
        self._journal = Journal(
            workdir if self._writes else None, {**config, "identity": self._identity}
        )
        log = options.tensorboard and self._writes
        self._tensorboard = tensorboard_writer(workdir) if log else None
        self._engine = engine or Engine(algorithm, options.resources(problem))
        self._evaluate = evaluator or Evaluator(problem)
        self._compiled_before_s = self._compile_s()
        room = _BLOCK if options.eval_every_s is not None else min(options.eval_every, _BLOCK)
        self._server = Server(algorithm, problem, self._engine, options.seed, room)

    def _identify(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What a resumed run must share with its checkpoint: all but how long to go on."""
        options = asdict(self._options)
        settings = {name: part for name, part in config.items() if name != "run"}
        if "data" in settings:
            # Where the files lie does not matter; what is in them is the fingerprint's business.
            settings["data"] = {k: v for k, v in settings["data"].items() if k != "data_dir"}
        several = {"processes": processes.count()} if processes.count() > 1 else {}
        return {
            **several,
            "settings": settings,
            "run": {name: value for name, value in options.items() if name not in FREE},
            "algorithm": self._algorithm.name,
            "model": self._problem.model.name,
            "compute_dtype": self._problem.model.compute_dtype,
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
        return Result(self._server.variables, self._server.state, record, faults)

    def _run(self) -> RunRecord:
        options = self._options
        self._began = time.perf_counter()
        if not self._resume():
            self._journal.begin({})
            start = Record(0, 0.0, {}, [])
            self._write(lambda: [start], self._measure(evaluate=True))
        with tqdm(
            total=options.rounds,
            initial=self._server.step,
            disable=None if processes.is_leader() else True,
            unit="round",
            desc=self._name,
        ) as bar:
            try:
                self._rounds(bar)
            finally:
                # Also when something failed: what was computed before is kept.
                self._write_pending()
        if not self._writes:
            assert self._workdir is not None
            processes.meet("finished")
            return RunRecord.load(self._workdir)
        targets = sorted({*options.targets, *([] if options.target is None else [options.target])})
        record = self._journal.finish(
            self._problem, self._name, self._algorithm.name, options.seed, targets
        )
        if self._workdir is not None:
            processes.meet("finished")
        return record

    def _rounds(self, bar: tqdm) -> None:
        """Block after block; records of one are written while the next one runs."""
        most = 1
        self._server.look_ahead(self._ends, self._stops)
        while not self._done():
            began = time.perf_counter()
            taken, records = self._server.advance(most, self._stops)
            self._write_pending()
            self._pending = records, self._measure(evaluate=False)
            self._server.look_ahead(self._ends, self._stops)
            self._server.wait()
            block_s = processes.leaders(time.perf_counter() - began)
            most = min(2 * most, _BLOCK) if block_s < _BLOCK_S else max(most // 2, 1)
            self._pending = records, self._measure(evaluate=False)
            if self._due():
                self._pending = records, self._measure(evaluate=True)
            if self._done() or self._server.step % self._options.checkpoint_every == 0:
                self._write_pending()
                self._save()
            bar.update(taken)

    @property
    def _name(self) -> str:
        return self._options.name or self._algorithm.name

    def _done(self) -> bool:
        options = self._options
        reached = options.target is not None and self._accuracy >= options.target
        return reached or self._ends(self._server.step, self._server.now_s)

    def _ends(self, step: int, now_s: float) -> bool:
        """Whether the run ends with a step, unless an evaluation ends it before."""
        limit_s = self._options.max_virtual_s
        return step >= self._options.rounds or (limit_s is not None and now_s >= limit_s)

    def _stops(self, step: int, now_s: float) -> bool:
        """Whether there is an evaluation or a checkpoint between a step and the next."""
        at_checkpoint = step % self._options.checkpoint_every == 0
        return at_checkpoint or self._evaluates(step, now_s)

    # ---- records, evaluation, checkpoints ----------------------------------------------------

    def _evaluates(self, step: int, now_s: float) -> bool:
        if self._ends(step, now_s):
            return True
        if self._options.eval_every_s is None:
            return step % self._options.eval_every == 0
        return now_s >= self._next_eval_s

    def _due(self) -> bool:
        """Whether to evaluate the model as it is, once."""
        step, now_s = self._server.step, self._server.now_s
        due, every_s = self._evaluates(step, now_s), self._options.eval_every_s
        if every_s is not None and now_s >= self._next_eval_s:
            self._next_eval_s = float((np.floor(now_s / every_s) + 1) * every_s)
        return due

    def _measure(self, *, evaluate: bool) -> dict[str, Any]:
        """What is known now that the device has come back; evaluates if it is time."""
        server, measured = self._server, {}
        if evaluate:
            evaluated = self._algorithm.evaluated
            measured = (
                self._evaluate(server.variables)
                if evaluated is None
                else self._evaluate.mean(evaluated(server.state, server.variables))
            )
            self._accuracy = server.unseen_accuracy = measured["accuracy"]
        return {**self._walls(), "compiled_programs": self._engine.programs, **measured}

    def _write_pending(self) -> None:
        """Writes the records that wait, if any do."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._write(*pending)

    def _write(self, records: PendingRecords, measured: dict[str, Any]) -> None:
        """Writes the rows of the newest steps; what was measured belongs to the last of them."""
        if not self._writes:
            return
        *earlier, last = records()
        now = {name: measured[name] for name in ("wall_s", "compile_s", "compiled_programs")}
        for record, more in [*((one, now) for one in earlier), (last, measured)]:
            metrics = {"step": record.step, "virtual_s": record.now_s, **record.metrics, **more}
            self._journal.write(metrics, record.clients)
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
        return self._engine.resources.compiler.seconds + self._evaluate.compiler.seconds

    def _save(self) -> None:
        if self._checkpoints is None or not self._writes:
            return
        arrays, meta = self._server.saved()
        tuner = self._engine.resources.tuner
        meta |= {
            "next_eval_s": self._next_eval_s,
            "accuracy": self._accuracy,
            "offsets": self._journal.offsets(),
            "totals": self._journal.totals,
            "lowerings": None if tuner is None else tuner.used,
            "identity": self._identity,
            **self._walls(),
        }
        self._checkpoints.save(self._server.step, arrays, meta)

    def _resume(self) -> bool:
        """Takes up the newest whole checkpoint; False if there is none."""
        if self._checkpoints is None:
            return False
        found = self._checkpoints.restore(self._server.template, self._identity)
        if found is None:
            return False
        arrays, meta = found
        self._server.restore(arrays, meta)
        if (tuner := self._engine.resources.tuner) is not None:
            tuner.used.update(meta["lowerings"])
        self._next_eval_s, self._accuracy = meta["next_eval_s"], meta["accuracy"]
        self._earlier = {name: meta[name] for name in self._earlier}
        self._journal.begin(meta["offsets"], meta["totals"])
        return True
