"""Sweeps: trials that processes share, and that end when they cannot become the best."""

import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_het import algorithms
from fedjax_het.common.errors import require
from fedjax_het.common.jsonio import jsonable, read_json
from fedjax_het.common.writing import usable_path, write_json
from fedjax_het.config import build_problem, methods, named, plain, resolve, section, slug
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.engine.engine import Engine
from fedjax_het.problem import Problem
from fedjax_het.report.metric import MetricInfo
from fedjax_het.simulation.assessment import require_judgeable, target_metric
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.identity import differences
from fedjax_het.simulation.lock import locked, waited_for
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.sharing import share
from fedjax_het.simulation.simulate import audited
from fedjax_het.simulation.simulation import Simulation
from fedjax_het.sweeps.results import Sweep, Trial, rank
from fedjax_het.sweeps.space import SweepOptions, applied, corners, given, spaces
from fedjax_het.sweeps.store import Store, load_optuna

# Seconds after which the best of other processes is read again.
_NEWS_S = 1.0
# Sections that a run records, beside its algorithm and its options.
_PARTS = ("data", "model", "objective", "fleet")


def sweep(config: Any, workdir: str | Path) -> Sweep:
    """Tunes every method of a configuration, each with the same number of trials.

    A trial is a choice of options, run with every seed of the sweep. It is stopped when its mean
    time to the target can no longer be shorter than that of the best trial of its method, not even
    if its runs reached the target at once. So the best trial is that of a sweep without stopping.

    An interrupted sweep resumes, and processes that call this with the same directory at the same
    time share the trials. With the samplers "grid" and "random" the values of a trial depend on its
    number only, and the best trials do not depend on the processes; those that "tpe" draws depend
    on the trials that are over, and repeat only if one process works.

    Args:
      config: configuration with the section `sweep`, see `SweepOptions`; a ConfigDict or a mapping.
      workdir: directory of the sweep: `trials.log`, which optuna reads, `sweep.json`, and a
        directory for every run.

    Returns:
      The result; `print(result.table())` shows it, and `result.tuned` is the tuned configuration.

    Raises:
      InputError: for a configuration that cannot be swept, a directory of another sweep, or if
        optuna is missing (extra "sweep").
    """
    load_optuna()
    settings = plain(config)
    options = SweepOptions.parse(settings)
    space = spaces(settings, options)
    values = given(space, options)
    root = usable_path(workdir, "workdir")
    run = RunOptions.parse(_run_options(settings, options, root, options.seeds[0]))
    problem = build_problem(settings)
    for label, method in methods(settings).items():
        for corner in corners(space[label]):
            require_judgeable(_made(method, corner, problem), problem, run)
    metric = target_metric(problem, run)
    info = MetricInfo(metric.name, metric.higher_is_better, metric.share)
    maximize = options.target is None and metric.higher_is_better
    work = _Work(settings, options, root / "trials", problem, maximize)
    with waited_for(work.root):
        _claim(work.root, settings)
        work.store = Store(work.root, space, values, maximize, options.seed)
    done = share([[(label, n) for n in range(len(values[label]))] for label in space], work.take)
    trials = {label: [done[label, n] for n in range(len(values[label]))] for label in space}
    result = Sweep(trials, options.target, info, settings)
    with waited_for(root):
        write_json(root / "sweep.json", result.data())
    return result


def _claim(root: Path, settings: dict[str, Any]) -> None:
    """Writes `config.json`; raises `InputError` if the directory is that of another sweep."""
    place = root / "config.json"
    if place.exists():
        # Further trials may be added.
        old, new = (_without_count(s) for s in (read_json(place), jsonable(settings)))
        differing = differences(old, new)
        require(
            not differing,
            f"workdir = {str(root.parent)!r}",
            f"holds a sweep of another configuration ({differing})",
            "sweep with the configuration it was made with, or name another directory",
        )
    write_json(place, settings)


def _without_count(settings: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "sweep": {**settings["sweep"], "trials": None}}


class _Work:
    """The trials of a sweep, as jobs for `share`.

    Args:
      settings: plain configuration.
      options: options of the sweep.
      root: directory of the trials.
      problem: problem of the configuration.
      maximize: whether a larger value is better.

    Attributes:
      store: trials of all processes; set before the first job.
    """

    store: Store

    def __init__(
        self,
        settings: dict[str, Any],
        options: SweepOptions,
        root: Path,
        problem: Problem,
        maximize: bool,
    ):
        self.root, self._options, self._problem = root, options, problem
        self._maximize, self._settings = maximize, settings
        self._methods = methods(settings)
        self._resources = RunOptions.parse(section(settings, "run")).resources(problem)
        self._evaluator = Evaluator(problem)

    def take(self, job: tuple[str, int]) -> Trial:
        """Does a trial, or reads it; raises `InUseError` if another process works on it."""
        label, number = job
        if (found := self.store.trials(label)[number]) is not None:
            return found
        with locked(self.root / slug(label) / str(number)):
            # Another process may have ended it meanwhile.
            if self.store.trials(label)[number] is None:
                values = self.store.begin(label, number)
                self.store.end(label, number, *self._judged(label, number, values))
                # A sweep compiles more programs than the memory of a process can hold.
                jax.clear_caches()
        found = self.store.trials(label)[number]
        assert found is not None
        return found

    def _judged(
        self, label: str, number: int, values: dict[str, Any]
    ) -> tuple[float | None, bool, list[dict[str, Any]]]:
        """Value, whether the trial was stopped, and what was measured; see `Trial`."""
        algorithm = _made(self._methods[label], values, self._problem)
        engine = Engine(algorithm, self._resources)
        beaten = _Limit(self.store, label, number, len(self._options.seeds))
        parts = {name: self._settings[name] for name in _PARTS if name in self._settings}
        target, runs = self._options.target, []  # type: float | None, list[dict[str, Any]]
        for seed in self._options.seeds:
            place = self.root / slug(label) / str(number) / f"seed{seed}"
            run = {**_run_options(self._settings, self._options, place, seed), "name": label}
            method = applied(self._methods[label], values)
            with Simulation(
                algorithm,
                self._problem,
                config=resolve({**parts, "algorithm": method, "run": run}, self._problem),
                engine=engine,
                evaluator=self._evaluator,
                **run,
            ) as simulation:
                while not simulation.done:
                    simulation.advance()
                    if target is not None and beaten(runs, simulation.now_s):
                        return None, True, runs
                record = simulation.record
            audited(record)
            measured: dict[str, Any] = {"seed": seed, "final": record.final}
            if target is not None:
                reached = [t for t in record.summary["targets"] if t[record.metric.name] == target]
                measured["virtual_s"] = reached[0]["virtual_s"]
            runs.append(measured)
            if target is not None and measured["virtual_s"] is None:
                return math.inf, False, runs
        if target is not None:
            return sum(run["virtual_s"] for run in runs) / len(runs), False, runs
        finals = [run["final"] for run in runs]
        return None if None in finals else float(np.mean(finals)), False, runs


class _Limit:
    """Whether a trial can no longer become the best of its method.

    Args:
      store: trials of all processes.
      label: method of the trial.
      number: number of the trial.
      seeds: number of its runs.
    """

    def __init__(self, store: Store, label: str, number: int, seeds: int):
        self._store, self._label, self._number, self._seeds = store, label, number, seeds
        self._best: tuple[float, int] | None = None
        self._read_s = -math.inf

    def __call__(self, runs: list[dict[str, Any]], now_s: float) -> bool:
        """Whether the best was faster.

        Args:
          runs: what was measured of the runs that are over.
          now_s: virtual time of the run in progress, which has not reached the target before.
        """
        if time.monotonic() > self._read_s + _NEWS_S:
            self._read_s = time.monotonic()
            over = [t for t in self._store.trials(self._label) if t is not None]
            ranks = [rank(t.value, t.number, higher_is_better=False) for t in over]
            self._best = min((each for each in ranks if each is not None), default=None)
        # The runs to come could reach the target at once.
        least_s = (sum(run["virtual_s"] for run in runs) + now_s) / self._seeds
        return self._best is not None and (least_s, self._number) > self._best


def _made(method: dict[str, Any], values: dict[str, Any], problem: Problem) -> Algorithm:
    """The method with these values; raises `InputError` for values that it cannot have."""
    name, options = named({"algorithm": applied(method, values)}, "algorithm", derived=("problem",))
    return algorithms.build(name, problem, **options)


def _run_options(
    settings: dict[str, Any], options: SweepOptions, place: Path, seed: int
) -> dict[str, Any]:
    run = {**section(settings, "run"), "seed": seed, "workdir": str(place)}
    return run if options.target is None else {**run, "target": options.target}
