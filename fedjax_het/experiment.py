"""Runs and comparisons from a configuration; the launch programs call these functions."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_het import algorithms
from fedjax_het.common.errors import InputError, require
from fedjax_het.common.jsonio import read_json
from fedjax_het.common.writing import (
    encoded,
    make_directory,
    usable_path,
    write_atomic,
    write_json,
)
from fedjax_het.config import (
    CompareOptions,
    build_problem,
    load_config,
    methods,
    named,
    plain,
    require_places,
    resolve,
    section,
    slug,
)
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.preview import Preview
from fedjax_het.engine.engine import Engine
from fedjax_het.engine.resources import Resources
from fedjax_het.problem import Problem
from fedjax_het.report import preview as previews
from fedjax_het.report.comparison import Comparison
from fedjax_het.report.comparison import compare as compare_records
from fedjax_het.report.figures import export
from fedjax_het.report.page import comparison_content, run_content, write_report
from fedjax_het.report.progress import JOBS
from fedjax_het.report.records import RunRecord
from fedjax_het.report.schema import check_comparison
from fedjax_het.report.style import png
from fedjax_het.runtime import processes
from fedjax_het.simulation.assessment import require_judgeable
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.identity import differences
from fedjax_het.simulation.lock import InUseError, locked
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.sharing import finished, share
from fedjax_het.simulation.simulate import Result, audited, simulate

__all__ = ["build_problem", "compare", "load_config", "plain", "plan", "report", "resolve", "train"]


def train(
    config: Any,
    workdir: str | Path | None = None,
    problem: Problem | None = None,
    announce: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Runs `config.algorithm`; with a work directory, writes records, checkpoints and a report.

    Args:
      config: configuration, a ConfigDict or a mapping.
      workdir: work directory, which overrides `config.run.workdir`; None keeps that one.
      problem: problem built earlier from the same sections, or None to build it.
      announce: function called with the resolved configuration after it has been checked.

    Returns:
      The result of the run.

    Raises:
      InputError: for a configuration that cannot be run.
    """
    settings = plain(config)
    run = section(settings, "run")
    if workdir is not None:
        run["workdir"] = str(workdir)
    RunOptions.parse(run)
    name, options = named(settings, "algorithm", derived=("problem",))
    problem = problem or build_problem(settings)
    algorithm = algorithms.build(name, problem, **options)
    settings = {**settings, "run": run}
    if announce is not None:
        announce(_recorded(settings, problem))
    return _run(settings, problem, algorithm)


def _recorded(settings: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    parts = {name: s for name, s in settings.items() if name not in ("compare", "sweep")}
    return resolve(parts, problem)


def _run(
    settings: Mapping[str, Any],
    problem: Problem,
    algorithm: Algorithm,
    engine: Engine | None = None,
    evaluator: Evaluator | None = None,
) -> Result:
    """Simulates the run, and writes its page if there is a work directory."""
    recorded = _recorded(settings, problem)
    result = simulate(
        algorithm,
        problem,
        config=recorded,
        engine=engine,
        evaluator=evaluator,
        **settings["run"],
    )
    if settings["run"].get("workdir") and processes.is_leader():
        write_report(result.record, Path(settings["run"]["workdir"]) / "report.html")
    return result


def compare(
    configs: Sequence[Any], workdir: str | Path, seeds: Sequence[int] | None = None
) -> Comparison:
    """Runs every method of every configuration with every seed on the same data and fleet.

    An interrupted comparison resumes: finished runs are read back, an unfinished run continues.
    Processes that call this with the same directory at the same time share the runs.

    Args:
      configs: configurations that agree in data, model, objective and fleet. A configuration with a
        `compare` section contributes its `methods`, any other its `algorithm`.
      workdir: directory for the comparison's table, plots and page, and one directory per run.
      seeds: seeds, which override `compare.seeds`; None keeps those.

    Returns:
      The comparison; `comparison.json`, `report.html` and the plots are in `workdir`.

    Raises:
      InputError: for configurations that cannot be compared, or a directory that cannot be written
        to.
    """
    require(bool(configs), "no configuration", "must name at least one", "pass --config=FILE")
    settings = [plain(config) for config in configs]
    first = settings[0]
    for other in settings[1:]:
        for name in ("data", "model", "objective", "fleet"):
            differing = differences(first.get(name), other.get(name), name)
            require(
                not differing,
                f"configurations: {differing}",
                "must agree in data, model, objective and fleet to be compared",
                "change one of the files",
            )
    entries = _entries(settings)
    targets = _agreed(settings, "targets")
    chosen = list(_agreed(settings, "seeds") if seeds is None else seeds)
    require(
        bool(chosen) and len(set(chosen)) == len(chosen),
        f"seeds = {chosen}",
        "must be different whole numbers, at least one",
        "use 0,1,2",
    )
    root = usable_path(workdir, "workdir")

    def run_options(label: str, seed: int) -> dict[str, Any]:
        place = str(root / slug(label) / f"seed{seed}")
        own = {"seed": seed, "name": label, "targets": targets, "workdir": place}
        return {**section(entries[label][0], "run"), **own}

    # All options are checked before the first run, so that a mistake in the last wastes no time.
    options = {
        label: RunOptions.parse(run_options(label, seed)) for label in entries for seed in chosen
    }
    problem = build_problem(first)
    made = {
        label: algorithms.build(name, problem, **own) for label, (_, name, own) in entries.items()
    }
    for label, algorithm in made.items():
        require_judgeable(algorithm, problem, options[label])
    newest: dict[str, Engine] = {}
    # Methods share their resources, unless their options for the machine differ.
    resources: list[tuple[dict[str, Any], Resources]] = []
    evaluator = Evaluator(problem)

    def engine(label: str) -> Engine:
        """The engine of a method. Seeds are not compiled in, so all its runs share programs."""
        if label not in newest:
            newest.clear()
            own = {**options[label].machine, "stream": options[label].stream}
            shared = next((r for machine, r in resources if machine == own), None)
            if shared is None:
                shared = options[label].resources(problem)
                resources.append((own, shared))
            newest[label] = Engine(made[label], shared)
        return newest[label]

    def take(job: tuple[str, int]) -> RunRecord:
        """Runs a method with a seed, or reads the run back."""
        label, seed = job
        setting, name, own = entries[label]
        run = run_options(label, seed)
        one = {**setting, "algorithm": {"name": name, **own}, "run": run}
        parts = made[label], problem, _recorded(one, problem)
        record = finished(*parts, RunOptions.parse(run))
        if record is None:
            return _run(one, problem, made[label], engine(label), evaluator).record
        audited(record)
        # Missing if the process was killed while it drew.
        page = Path(run["workdir"]) / "report.html"
        if not page.exists() and processes.is_leader():
            write_report(record, page)
        return record

    make_directory(root, f"workdir = {str(root)!r}")
    jobs = {"methods": [{"name": label} for label in entries], "seeds": chosen, "targets": targets}
    write_json(root / JOBS, jobs)
    done = share([[(label, seed) for seed in chosen] for label in entries], take)
    records = {label: [done[label, seed] for seed in chosen] for label in entries}
    try:
        with locked(root):
            comparison = compare_records(records, targets, root)
            write_json(root / "config.json", settings)
    except InUseError:
        # The process that holds the directory has all records as well, and writes the same files.
        comparison = compare_records(records, targets)
    return comparison


def _entries(
    settings: Sequence[dict[str, Any]],
) -> dict[str, tuple[dict[str, Any], str, dict[str, Any]]]:
    """Methods by label: configuration, and name and options of the algorithm."""
    found = [(label, s, method) for s in settings for label, method in methods(s).items()]
    require_places([label for label, *_ in found])
    return {
        label: (setting, *named({"algorithm": method}, "algorithm", derived=("problem",)))
        for label, setting, method in found
    }


def _agreed(settings: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """`compare.<name>`, which must be equal in all configurations that have it."""
    given = [s["compare"][name] for s in settings if name in s.get("compare", {})]
    for value in given[1:]:
        require(
            value == given[0],
            f"compare.{name} = {value}",
            f"must agree with {given[0]} of another configuration",
            "change one of the files, or leave it out in one",
        )
    return list(given[0] if given else getattr(CompareOptions, name))


def plan(config: Any, out: str | Path | None = None) -> Preview:
    """The preview of a run without training, for example its deadlines and batch sizes.

    Args:
      config: configuration whose `algorithm` has a preview.
      out: directory for `plan.png`, `plan.json` and `plan.txt`, made if it does not exist; None
        writes nothing.

    Returns:
      The preview; `report.preview.text` prints it.

    Raises:
      InputError: for a method without a preview, options that it cannot use, or a directory that
        cannot be written to.
    """
    root = None if out is None else usable_path(out, "out")
    settings = plain(config)
    name, options = named(settings, "algorithm", derived=("problem",))
    algorithm = algorithms.build(name, build_problem(settings), **options)
    if algorithm.preview is None:
        raise InputError(
            f"algorithm {name!r}: plans no rounds ahead, so there is nothing to preview; train it, "
            "or choose a method with an `Algorithm.preview`"
        )
    shown = algorithm.preview()
    if root is not None:
        make_directory(root, f"out = {str(root)!r}")
        write_atomic(root / "plan.png", png(previews.figure(shown)))
        write_atomic(root / "plan.txt", encoded(previews.text(shown)))
        write_json(root / "plan.json", previews.data(shown))
    return shown


def report(workdir: str | Path, figures: str | Path | None = None) -> Path:
    """Rebuilds the page of a run or of a comparison from its work directory.

    Args:
      workdir: directory that `train` or `compare` wrote to.
      figures: directory for every figure of the page as SVG and PDF; None writes none.

    Returns:
      The path of `report.html`.

    Raises:
      InputError: if the directory holds neither, or one cannot be written to.
    """
    root = usable_path(workdir, "workdir")
    page = root / "report.html"
    if os.path.lexists(root / "metrics.jsonl"):
        record = RunRecord.load(root)
        write_report(record, page)
        content = run_content(record)
    else:
        records, targets = _compared(root)
        compare_records(records, targets, root)
        content = comparison_content(records, targets)
    if figures is not None:
        export(content.runs, content.results, figures)
    return page


def _compared(root: Path) -> tuple[dict[str, list[RunRecord]], list[float]]:
    """The records of a finished comparison by method, and its targets."""
    place = root / "comparison.json"
    if not os.path.lexists(place):
        raise InputError(
            f"{root}: holds neither a run (metrics.jsonl) nor a comparison (comparison.json); "
            "name the directory that train or compare wrote to"
        )
    names, targets = check_comparison(read_json(place), str(place))
    records: dict[str, list[RunRecord]] = {name: [] for name in names}
    loaded = [RunRecord.load(path.parent) for path in root.glob("*/seed*/summary.json")]
    for record in sorted(loaded, key=lambda r: r.summary["seed"]):
        records.setdefault(record.summary["name"], []).append(record)
    return records, targets
