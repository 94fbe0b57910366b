"""One run, step by step: select -> plan -> train -> merge -> record; resumes from checkpoints."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np
from absl import logging

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.engine.engine import Engine
from fedjax_het.engine.sampling import require_selectable
from fedjax_het.models.saving import BEST_FILE, MODEL_FILE
from fedjax_het.problem import Problem
from fedjax_het.report.records import RunRecord
from fedjax_het.runtime import processes
from fedjax_het.simulation.assessment import Assessment
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.identity import identify, warn_of_changes
from fedjax_het.simulation.journal import PendingRecords, Record
from fedjax_het.simulation.opening import open_records
from fedjax_het.simulation.options import RunKeywords, RunOptions
from fedjax_het.simulation.personal import LocalTraining
from fedjax_het.simulation.saved import save_model
from fedjax_het.simulation.server import Server
from fedjax_het.simulation.start import find_start
from fedjax_het.simulation.stopwatch import LONGEST, Batching, Stopwatch
from fedjax_het.transforms.sending import attached


class Simulation:
    """A run of a federated method on a fleet, in virtual time, step by step; see `simulate`.

    A new simulation starts from the newest checkpoint of its work directory. If there is none, it
    starts from the beginning with an evaluation of the initial model::

        with fh.Simulation(method, problem, rounds=100, eval_every=10) as run:
            while not run.done:
                row = run.step()
                print(row["step"], row["virtual_s"], row.get("accuracy"))
        result = run.record

    Args:
      algorithm: method to run, made for this problem.
      problem: model, data and fleet.
      config: configuration to record; a resumed run must have the same one.
      engine: engine of an earlier run of this algorithm object, whose programs are used again.
      evaluator: evaluator of an earlier run on this problem, whose program is used again.
      **options: fields of `RunOptions`; `rounds` is required.

    Raises:
      InputError: for options that cannot be used, or a work directory of another configuration.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        problem: Problem,
        *,
        config: Mapping[str, Any] | None = None,
        engine: Engine | None = None,
        evaluator: Evaluator | None = None,
        **options: Unpack[RunKeywords],
    ):
        self.options = chosen = RunOptions.parse(options)
        require(
            engine is None or engine.holds(algorithm),
            "engine of another algorithm",
            f"must have been made for this {algorithm.name}, whose steps are in its programs",
            "leave it out, or make it with `make_engine(algorithm, problem)`",
        )
        algorithm = attached(algorithm, problem)
        self._algorithm, self._problem = algorithm, problem
        self._assessment = Assessment(algorithm, problem, chosen)
        self._pending: tuple[PendingRecords, dict[str, Any]] | None = None
        self._row, self._client_rows = {}, []  # type: dict[str, Any], list[dict[str, Any]]
        self._batching = Batching()
        start = find_start(chosen.initial, problem.model, chosen.workdir)
        self._identity = identify(algorithm, problem, chosen, config or {}, start.digest)
        # Checks come first, because even copying the data to the device compiles a program.
        require_selectable(algorithm, problem)
        self._workdir = None if chosen.workdir is None else Path(chosen.workdir)
        self._records = open_records(
            self._workdir, self._identity, chosen, config or {}, problem.fleet
        )
        assessed = self._assessment.metric, self._assessment.targets
        self._records.journal.describe(problem, self.name, algorithm.name, chosen.seed, *assessed)
        try:
            self._engine = engine or Engine(algorithm, chosen.resources(problem))
            self._evaluate = evaluator or Evaluator(problem)
            longest = LONGEST if chosen.eval_every_s is not None else chosen.eval_every
            if self._engine.resources.stream:
                longest = 1  # as the samples of a round are all that must fit
            parts = (algorithm, problem, self._engine, chosen.seed)
            self._server = Server(*parts, min(longest, LONGEST), start.variables)
            self._trained: Callable[[np.ndarray], Iterator[Variables]] | None = None
            if chosen.personal:
                local = LocalTraining(*parts)
                self._trained = lambda clients: local.models(
                    self.state, self.variables, self.rounds_done, self.now_s, clients
                )
            self._watch = Stopwatch((self._engine.resources.compiler, self._evaluate.compiler))
            if not self._resume():
                start.require_found()
                with self._records.writing():
                    self._records.journal.begin({})
                first = Record(0, 0.0, {}, [])
                self._write(lambda: [first], self._measure(evaluate=True))
            self._server.look_ahead(self._ends, self._stops)
        except BaseException:
            self.close()
            raise

    # ---- public interface --------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Label in records and plots."""
        return self.options.name or self._algorithm.name

    @property
    def rounds_done(self) -> int:
        """Number of server steps so far."""
        return self._server.step

    @property
    def now_s(self) -> float:
        """Virtual time in seconds."""
        return self._server.now_s

    @property
    def variables(self) -> Variables:
        """The current global model, as it is evaluated and saved (`Algorithm.calibrate`)."""
        calibrate, variables = self._algorithm.calibrate, self._server.variables
        return variables if calibrate is None else calibrate(variables)

    @property
    def state(self) -> PyTree:
        """The current state of the algorithm."""
        return self._server.state

    @property
    def best(self) -> Variables | None:
        """The model of the best evaluation so far; None without patience."""
        return self._assessment.best

    @property
    def done(self) -> bool:
        """Whether the run is over; see `ended`."""
        return self.ended is not None

    @property
    def ended(self) -> str | None:
        """Why the run is over; None while it is not.

        It has reached the `"target"`, or lost `"patience"`, or reached the `"rounds"` or the
        `"max_virtual_s"` of its options, or there are `"no clients"` left that will ever be
        available. A run takes a step even if its first model has reached the target.
        """
        if self._server.step > 0 and self._assessment.over is not None:
            return self._assessment.over
        if self._server.step >= self.options.rounds:
            return "rounds"
        if self._ends(self._server.step, self._server.now_s):
            return "max_virtual_s"
        return "no clients" if self._server.exhausted else None

    def step(self) -> dict[str, Any]:
        """Runs one server step; evaluates and writes a checkpoint if they are due.

        Returns:
          The row of metrics of the step, as in `RunRecord.metrics`.
        """
        self._take(1)
        self._write_pending()
        return self._row

    def advance(self) -> int:
        """Runs one or several server steps; adapts their number to the time that they take.

        Their rows may be written in the next call; `record` and `close` write them too.

        Returns:
          The number of steps.
        """
        taken = self._take(self._batching.most)
        self._batching.adapt()
        return taken

    @property
    def record(self) -> RunRecord:
        """The record of the run so far; if the run is done, this also writes its summary."""
        self._write_pending()
        if not self._records.writes:
            assert self._workdir is not None
            processes.meet("finished")
            return RunRecord.load(self._workdir)
        with self._records.writing():
            record = self._records.journal.record(ended=self.ended)
        if self._workdir is not None:
            processes.meet("finished")
        return record

    def close(self) -> None:
        """Writes pending records and closes the work directory, also after a failure."""
        try:
            self._write_pending()
        finally:
            self._records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- the loop ----------------------------------------------------------------------------

    def _take(self, most: int) -> int:
        """Runs up to `most` steps; writes the records of the steps before meanwhile."""
        self._batching.begin()
        taken, records = self._server.advance(most, self._stops)
        self._write_pending()
        self._pending = records, self._measure(evaluate=False)
        self._server.look_ahead(self._ends, self._stops)
        self._server.wait()
        # Without evaluation and checkpoint, which do not depend on the number of steps.
        self._batching.end()
        self._pending = records, self._measure(evaluate=False)
        step, now_s = self._server.step, self._server.now_s
        if self._assessment.comes_due(step, now_s) or self._is_last():
            self._pending = records, self._measure(evaluate=True)
        if self.ended == "no clients":
            logging.warning("%s ends after %d steps: no client is ever on again", self.name, step)
        if self.done or step % self.options.checkpoint_every == 0:
            self._write_pending()
            self._save()
        return taken

    def _ends(self, step: int, now_s: float) -> bool:
        """Whether the run ends with a step, unless an evaluation reaches the target earlier."""
        limit_s = self.options.max_virtual_s
        return step >= self.options.rounds or (limit_s is not None and now_s >= limit_s)

    def _is_last(self) -> bool:
        """Whether the run ends with the newest step, whatever an evaluation shows."""
        return self._ends(self.rounds_done, self.now_s) or self._server.exhausted

    def _stops(self, step: int, now_s: float) -> bool:
        """Whether an evaluation or a checkpoint follows a step."""
        at_checkpoint = step % self.options.checkpoint_every == 0
        return at_checkpoint or self._ends(step, now_s) or self._assessment.is_due(step, now_s)

    # ---- records, evaluation, checkpoints ----------------------------------------------------

    def _measure(self, *, evaluate: bool) -> dict[str, Any]:
        """The measurements of the newest step: times, number of programs, and the evaluation."""
        server = self._server
        measured: dict[str, Any] = {}
        if evaluate:
            model = server.state, self.variables
            measured, rows = self._assessment.evaluate(
                self._evaluate, *model, self._trained, last=self._is_last()
            )
            server.unseen.score = self._assessment.score
            if server.selection.scored:
                server.selection.score(self._assessment.scores(self._evaluate, *model))
            now = {"step": server.step, "virtual_s": server.now_s}
            self._client_rows = [{**now, **row} for row in rows]
        return {**self._watch.read(), "compiled_programs": self._engine.programs, **measured}

    def _write_pending(self) -> None:
        """Writes the pending records, if there are any."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._write(*pending)

    def _write(self, records: PendingRecords, measured: dict[str, Any]) -> None:
        """Writes the rows of the newest steps; an evaluation belongs to the last of them."""
        if not self._records.writes:
            return
        *earlier, last = records()
        now = {name: measured[name] for name in ("wall_s", "compile_s", "compiled_programs")}
        with self._records.writing():
            for record, more in [*((one, now) for one in earlier), (last, measured)]:
                metrics = {"step": record.step, "virtual_s": record.now_s, **record.metrics, **more}
                self._records.journal.write(metrics, record.clients)
                self._row = metrics
            self._records.journal.write_evaluations(self._client_rows)
        self._client_rows = []

    def _save(self) -> None:
        journal, checkpoints = self._records.journal, self._records.checkpoints
        if checkpoints is None or not self._records.writes:
            return
        with self._records.writing():
            if self.done and self._workdir is not None:
                # Before the checkpoint, after which a resumed run has nothing left to do.
                save_model(self._workdir / MODEL_FILE, self._problem, self.variables)
                if self.best is not None:
                    save_model(self._workdir / BEST_FILE, self._problem, self.best)
            arrays, meta = self._server.saved()
            tuner = self._engine.resources.tuner
            meta |= {
                "progress": self._assessment.saved(),
                "offsets": journal.offsets(),
                "totals": journal.totals,
                "lowerings": None if tuner is None else tuner.used,
                "identity": self._identity,
                **self._watch.read(),
            }
            checkpoints.save(self._server.step, (arrays, self._assessment.best), meta)

    def _resume(self) -> bool:
        """Restores the newest complete checkpoint; returns False if there is none."""
        if self._records.checkpoints is None:
            return False

        def template(meta: Mapping[str, Any]) -> PyTree:
            best = self._server.variables if meta["progress"]["kept"] else None
            return self._server.template(meta), best

        with self._records.checkpoints.taken_up():
            found = self._records.checkpoints.restore(template, self._identity)
            if found is None:
                return False
            (arrays, best), meta = found
            warn_of_changes(self._algorithm, meta, self._identity)
            self._server.restore(arrays, meta)
            self._assessment.restore(meta["progress"], best)
            if (tuner := self._engine.resources.tuner) is not None:
                tuner.used.update(meta["lowerings"] or {})
            self._watch.resume(meta)
        with self._records.writing():
            self._records.journal.begin(meta["offsets"], meta["totals"])
        return True
