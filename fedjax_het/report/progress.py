"""Runs that are going on: their records so far, read while other processes write them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import read_json, read_lines
from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.page import Content, comparison_content, run_content
from fedjax_het.report.population import POPULATION, Population
from fedjax_het.report.records import RunRecord
from fedjax_het.report.schema import check_comparison, check_summary
from fedjax_het.report.writer import CLIENT_ROWS, EVALUATION_ROWS, FACTS, METRIC_ROWS

# What a comparison is about to do: methods, seeds and targets.
JOBS = "jobs.json"
_SUMMARY = "summary.json"
_FILES = (FACTS, "config.json", METRIC_ROWS, CLIENT_ROWS, EVALUATION_ROWS, POPULATION, _SUMMARY)
_SUMMED = ("bytes_up", "bytes_down", "merged", "dropped", "failed", "wasted_flops", "wasted_bytes")
_PRICED = ("joules", "wasted_joules")


class Jobs(NamedTuple):
    """What a comparison is about to do.

    Attributes:
      methods: names of the methods, the reference first.
      targets: values of the target metric.
      runs: number of runs.
    """

    methods: list[str]
    targets: list[float]
    runs: int


class Place(NamedTuple):
    """The work directory of a run.

    Attributes:
      path: the directory.
      label: name of its method in a page; None for the name that the run has.
    """

    path: Path
    label: str | None

    @property
    def ended(self) -> bool:
        """Whether the run is over: the summary is written last."""
        return (self.path / _SUMMARY).is_file()

    def stamp(self) -> tuple[Any, ...]:
        """A value that changes with the files of the run."""
        return tuple(_stamp(self.path / name) for name in _FILES)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class Watched:
    """A directory of a run, a comparison or a sweep; it is only read.

    Args:
      root: the directory.
    """

    def __init__(self, root: Path):
        self.root = root
        self._known: dict[Path, tuple[tuple[Any, ...], RunRecord | None]] = {}

    @property
    def kind(self) -> str:
        """`"run"`, `"sweep"` or `"comparison"`, which an empty directory may become."""
        if any(os.path.lexists(self.root / name) for name in (FACTS, METRIC_ROWS)):
            return "run"
        return "sweep" if (self.root / "trials").is_dir() else "comparison"

    def places(self) -> list[Place]:
        """The directories of the runs that have begun, in the order of the page."""
        if self.kind == "run":
            return [Place(self.root, None)]
        if self.kind == "comparison":
            return [Place(path, None) for path in sorted(self.root.glob("*/seed*"))]
        found = (self.root / "trials").glob("*/*/seed*")
        tried = [path for path in found if path.parent.name.isdecimal()]
        tried.sort(key=lambda path: (path.parts[-3], int(path.parent.name), path.name))
        return [Place(path, f"{path.parts[-3]}, trial {path.parts[-2]}") for path in tried]

    def jobs(self) -> Jobs | None:
        """What a comparison is about to do; None if it has not said."""
        place = self.root / JOBS
        if not place.is_file():
            return None
        content = read_json(place)
        names, targets = check_comparison(content, str(place))
        return Jobs(names, targets, len(names) * len(content.get("seeds", ())))

    @property
    def done(self) -> bool:
        """Whether the result is there: the summary, the comparison, or that of the sweep."""
        if self.kind == "run":
            return Place(self.root, None).ended
        if self.kind == "sweep":
            return (self.root / "sweep.json").is_file()
        jobs = self.jobs()
        places = self.places()
        if jobs is not None and len(places) < jobs.runs:
            return False
        return (self.root / "comparison.json").is_file() and all(p.ended for p in places)

    def records(self) -> Iterator[tuple[Place, RunRecord]]:
        """The runs with an evaluated step, each read again only if its files have changed."""
        for place in self.places():
            stamp = place.stamp()
            if self._known.get(place.path, (None,))[0] != stamp:
                self._known[place.path] = (stamp, record_so_far(place.path))
            record = self._known[place.path][1]
            if record is not None:
                yield place, record

    def content(self) -> Content | None:
        """The content of a page on what is there so far; None before the first evaluated step.

        Raises:
          InputError: for damaged files, or files that were changed while they were read.
        """
        runs: dict[str, list[RunRecord]] = {}
        for place, record in self.records():
            runs.setdefault(place.label or record.summary["name"], []).append(record)
        if not runs:
            return None
        if self.kind == "run":
            return run_content(next(iter(runs.values()))[0])
        jobs, first = self.jobs(), next(iter(runs.values()))[0]
        goals = [target[first.metric.name] for target in first.summary["targets"]]
        order = list(runs) if jobs is None else [name for name in jobs.methods if name in runs]
        order += [name for name in runs if name not in order]
        runs = {name: sorted(runs[name], key=lambda run: run.summary["seed"]) for name in order}
        return comparison_content(runs, goals if jobs is None else jobs.targets)


def record_so_far(workdir: Path) -> RunRecord | None:
    """The record of a run that may be going on, with a summary of the steps so far.

    Args:
      workdir: work directory of the run.

    Returns:
      The record; None before the first evaluated step.

    Raises:
      InputError: for a damaged file, or files that do not belong together.
    """
    if (workdir / _SUMMARY).is_file():
        return RunRecord.load(workdir)
    if not (workdir / FACTS).is_file():
        return None
    where = str(workdir / FACTS)
    facts = read_json(workdir / FACTS)
    if not isinstance(facts, dict):
        raise InputError(f"{where}: must be a mapping; run the experiment again")
    # A step's tasks are written before its metrics, so these are read first.
    metrics, clients, evaluated = (
        _rows(workdir / name) for name in (METRIC_ROWS, CLIENT_ROWS, EVALUATION_ROWS)
    )
    if not metrics:
        return None
    last = metrics[-1]["step"]
    clients, evaluated = (
        [row for row in rows if row["step"] <= last] for rows in (clients, evaluated)
    )
    name = MetricInfo.of(facts).name
    if not clients or all(row.get(name) is None for row in metrics):
        return None
    summary = {**facts, **_summary(facts, metrics, clients)}
    check_summary(summary, where)
    data = summary["data"]
    size = summary["num_clients"], data["num_classes"], data.get("named", [])
    return RunRecord(
        config=read_json(workdir / "config.json"),
        metrics=metrics,
        clients=clients,
        summary=summary,
        population=Population.read(workdir, *size),
        source=str(workdir),
        client_evaluations=evaluated,
    )


def _rows(path: Path) -> list[Any]:
    return read_lines(path, may_be_empty=True, growing=True) if os.path.lexists(path) else []


def _summary(
    facts: dict[str, Any], metrics: list[dict[str, Any]], clients: list[dict[str, Any]]
) -> dict[str, Any]:
    """The totals of a run so far."""
    metric, last = MetricInfo.of(facts), metrics[-1]
    values = [row[metric.name] for row in metrics if row.get(metric.name) is not None]
    summed = [*_SUMMED, *(_PRICED if any("joules" in row for row in metrics) else ())]
    return {
        "steps": last["step"],
        **{name: last[name] for name in ("virtual_s", "wall_s", "compile_s")},
        f"final_{metric.name}": values[-1],
        f"best_{metric.name}": metric.best(values),
        **{name: sum(row.get(name, 0) for row in metrics) for name in summed},
        "nonfinite": sum(len(row.get("nonfinite", ())) for row in metrics),
        "tasks": sum(row["status"] != "probed" for row in clients),
        "flops": sum(row["flops"] for row in clients),
        "ended": None,
    }
