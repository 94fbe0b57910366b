"""The journal of a run: it writes rows during the run, sums totals, and makes the summary."""

import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.files import require_file
from fedjax_het.common.jsonio import read_json, read_lines
from fedjax_het.fleet.device import Fleet
from fedjax_het.objectives.metric import Metric
from fedjax_het.problem import Problem
from fedjax_het.report.population import Population
from fedjax_het.report.records import RunRecord
from fedjax_het.report.submodels import submodel_values
from fedjax_het.report.writer import RunWriter
from fedjax_het.simulation.assessment import reaches
from fedjax_het.simulation.evaluation import metrics_of
from fedjax_het.simulation.identity import require_same
from fedjax_het.simulation.sinks import Sinks

_PACKAGES = ("fedjax-het", "jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")
# Totals of the run that are sums over the rows of the steps, and the others.
_SUMMED = ("bytes_up", "bytes_down", "merged", "dropped", "failed", "wasted_flops", "wasted_bytes")
_TOTALS = (*_SUMMED, "flops", "tasks", "nonfinite")


class Record(NamedTuple):
    """The values to record of a server step.

    Attributes:
      step: number of the step, from 1.
      now_s: virtual time at its end in seconds.
      metrics: metrics of the step.
      clients: rows of its tasks.
    """

    step: int
    now_s: float
    metrics: dict[str, Any]
    clients: list[dict[str, Any]]


# A function that returns the records of a step or of a batch of rounds; it waits for the device.
PendingRecords = Callable[[], list[Record]]


def environment() -> dict[str, Any]:
    """Versions, device and source revision, for `config.json`."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    device = jax.devices()[0]
    return {
        "versions": versions,
        "device": f"{device.platform}: {device.device_kind} x {jax.local_device_count()}",
        "git_revision": _revision(),
    }


def _revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def require_own(workdir: Path, identity: Mapping[str, Any]) -> None:
    """Raises `InputError` if a directory holds rows that do not belong to this run.

    Args:
      workdir: work directory of the run; it need not exist.
      identity: identity of the run.
    """
    rows = [workdir / name for name in ("metrics.jsonl", "clients.jsonl", "clients_eval.jsonl")]
    for path in rows:
        # To append to a pipe would wait for a reader.
        if os.path.lexists(path):
            require_file(path, "remove it, or name another work directory")
    held = [path.name for path in rows if os.path.isfile(path) and os.path.getsize(path) > 0]
    if not held:
        return
    require(
        os.path.isfile(workdir / "config.json"),
        f"workdir = {str(workdir)!r}",
        f"holds {held[0]} but no config.json, so it is not the directory of a run",
        "name another work directory",
    )
    require_same(f"workdir = {str(workdir)!r}", read_json(workdir / "config.json"), identity)


class Journal:
    """The records of one run, on disk if there is a work directory, else in memory.

    Args:
      workdir: work directory; None keeps the rows in memory.
      config: resolved configuration, without the environment.
      sinks: other places for the rows of metrics, or None.
      fleet: fleet of the run; if it prices energy, the joules are summed as well, in total and over
        its device groups. None sums none.

    Attributes:
      totals: sums over the tasks so far; a part of every checkpoint.
    """

    def __init__(
        self,
        workdir: Path | None,
        config: Mapping[str, Any],
        sinks: Sinks | None = None,
        fleet: Fleet | None = None,
    ):
        self._workdir, self._sinks = workdir, sinks
        self._config = {**config, **environment()}
        self._writer: RunWriter | None = None
        self._metrics: list[dict[str, Any]] = []
        self._clients: list[dict[str, Any]] = []
        self._evaluations: list[dict[str, Any]] = []
        self.totals: dict[str, Any] = dict.fromkeys(_TOTALS, 0)
        self._groups = fleet.groups if fleet is not None and fleet.prices_energy else None
        if self._groups is not None:
            groups = int(self._groups.max()) + 1
            zeros = {"joules": 0.0, "wasted_joules": 0.0, "joules_by_group": [0.0] * groups}
            self.totals |= zeros

    def begin(self, offsets: Mapping[str, int], totals: Mapping[str, Any] | None = None) -> None:
        """Starts a new run (`offsets={}`), or continues an earlier run from its checkpoint."""
        if self._workdir is not None:
            self._writer = RunWriter(self._workdir)
            self._writer.truncate(offsets)
            self._writer.write_config(self._config)
            self._writer.write_facts(self._facts(), self._population)
        if totals is not None:
            self.totals |= totals

    def offsets(self) -> dict[str, int]:
        """Current lengths of the files of rows in bytes, for the checkpoint."""
        return {} if self._writer is None else self._writer.offsets()

    def write(self, metrics: dict[str, Any], clients: list[dict[str, Any]]) -> None:
        """Appends the rows of one step."""
        for name in _SUMMED:
            self.totals[name] += metrics.get(name, 0)
        self.totals["nonfinite"] += len(metrics.get("nonfinite", []))
        self.totals["tasks"] += sum(row["status"] != "probed" for row in clients)
        self.totals["flops"] += sum(row["flops"] for row in clients)
        if self._groups is not None:
            for name in ("joules", "wasted_joules"):
                self.totals[name] += metrics.get(name, 0.0)
            by_group = np.asarray(self.totals["joules_by_group"])
            who = [row["client"] for row in clients]
            np.add.at(by_group, self._groups[who], [row["joules"] for row in clients])
            self.totals["joules_by_group"] = by_group.tolist()
        if self._writer is None:
            self._metrics.append(metrics)
            self._clients.extend(clients)
        else:
            self._writer.write_step(metrics, clients)
        if self._sinks is not None:
            self._sinks.write(metrics)

    def write_evaluations(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows of clients that were evaluated."""
        if self._writer is None:
            self._evaluations.extend(rows)
        elif rows:
            self._writer.write_client_evaluations(rows)

    def close(self) -> None:
        """Closes the files, also after a failure."""
        if self._writer is not None:
            self._writer.close()
        if self._sinks is not None:
            self._sinks.close()

    def describe(
        self,
        problem: Problem,
        name: str,
        algorithm: str,
        seed: int,
        metric: Metric,
        targets: list[float],
    ) -> None:
        """States what is known before the first step; it is written when the run begins.

        Args:
          problem: model, data and fleet.
          name: label of the run.
          algorithm: name of the method.
          seed: seed of the run.
          metric: metric that the targets refer to.
          targets: values of the metric whose times the summary lists.
        """
        self._problem, self._metric, self._targets = problem, metric, targets
        self._label = {"name": name, "algorithm": algorithm, "seed": seed}

    @cached_property
    def _population(self) -> Population:
        """The facts of the problem's clients."""
        data, fleet = self._problem.data, self._problem.fleet
        counts = data.label_counts() if data.y.ndim == 1 and data.num_classes else None
        return Population(
            fleet.groups,
            data.count,
            counts,
            ids=None if data.ids is None else data.ids[: data.num_clients],
            classes=None if counts is None or data.classes is None else np.array(data.classes),
            device_names=fleet.device_names,
        )

    def _facts(self) -> dict[str, Any]:
        """The part of the summary that is known before the first step."""
        problem, metric, population = self._problem, self._metric, self._population
        return {
            **self._label,
            "metric": {
                "name": metric.name,
                "higher_is_better": metric.higher_is_better,
                "share": metric.share,
            },
            "targets": [{metric.name: value} for value in self._targets],
            "num_clients": len(population),
            "num_blocks": problem.model.num_blocks,
            "block_names": [block.name for block in problem.model.blocks],
            "data": {
                "name": problem.data.name,
                "num_classes": population.num_classes,
                "named": population.named,
            },
            "fleet": problem.fleet.describe(),
        }

    def record(self, *, ended: str | None) -> RunRecord:
        """The record of the run so far; the summary is written if the run is over.

        Args:
          ended: why the run is over; None if it is not.
        """
        metrics, metric = self._metrics, self._metric
        if self._workdir is not None:
            metrics = read_lines(self._workdir / "metrics.jsonl")
        last = metrics[-1]
        values = [row[metric.name] for row in metrics if row.get(metric.name) is not None]
        reached = []
        for value in self._targets:
            hit = next((row for row in metrics if reaches(metric, row.get(metric.name), value)), {})
            columns = {key: hit.get(key) for key in ("step", "virtual_s", "wall_s")}
            if self._groups is not None:
                until = [row for row in metrics if hit and row["step"] <= hit["step"]]
                columns["joules"] = sum(row.get("joules", 0.0) for row in until) if hit else None
            reached.append({metric.name: value, **columns})
        best = max if metric.higher_is_better else min
        summary = {
            **self._facts(),
            "steps": last["step"],
            "virtual_s": last["virtual_s"],
            "wall_s": last["wall_s"],
            "compile_s": last["compile_s"],
            f"final_{metric.name}": values[-1] if values else None,
            f"best_{metric.name}": best(values, default=None),
            **_submodels(metrics, self._problem, metric),
            "targets": reached,
            **self.totals,
            "ended": ended,
            "in_flight": last.get("in_flight", 0),
        }
        population = self._population
        if self._writer is None or self._workdir is None:
            return RunRecord(
                self._config,
                list(metrics),
                list(self._clients),
                summary,
                population,
                client_evaluations=list(self._evaluations),
            )
        if ended is None:
            started = bool(self.totals["tasks"])
            clients = read_lines(self._workdir / "clients.jsonl") if started else []
            parts = (self._config, metrics, clients, summary, population)
            return RunRecord(*parts, str(self._workdir))
        self._writer.write_summary(summary, population)
        return RunRecord.load(self._workdir)


def _submodels(metrics: list[dict[str, Any]], problem: Problem, metric: Metric) -> dict[str, Any]:
    """The metrics of sub-models at the last evaluation, for the summary of a run that has them."""
    last = next(row for row in reversed(metrics) if metric.name in row)
    known = metrics_of(problem)
    found = submodel_values(last, [*known, *(f"val_{name}" for name in known)])
    told: dict[str, Any] = {"submodels": found} if found else {}
    if f"local_{metric.name}" in last:
        told[f"final_local_{metric.name}"] = last[f"local_{metric.name}"]
    return told
