"""The record of a run, read back from memory or from its work directory.

A work directory holds `config.json`, `summary.json` and `population.npz` (replaced atomically) and
`metrics.jsonl` and `clients.jsonl` (a line per server step and client task). `virtual_s`, `wall_s`
and `compile_s` of a metrics row are cumulative; `wall_s` does not include compilation; `bytes_up`,
`bytes_down`, `joules`, `clients`, `merged` and `dropped` count one step only, `joules` if the fleet
prices energy. If clients were evaluated one by one, `clients_eval.jsonl` has a line for each.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.jsonio import jsonable, read_json, read_lines
from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.population import Population
from fedjax_het.report.schema import CLIENT_COLUMNS, check_record, check_summary
from fedjax_het.report.writer import CLIENT_ROWS, EVALUATION_ROWS, METRIC_ROWS

_CUMULATIVE = ("step", "virtual_s", "wall_s", "compile_s")


@dataclass(frozen=True)
class RunRecord:
    """The checked record of one run, from memory or from a work directory.

    Rows given in memory are converted like rows written to disk (NumPy scalars become numbers, NaN
    becomes None), so both give equal records.

    Attributes:
      config: resolved configuration with `versions`, `device` and `git_revision`.
      metrics: rows of the server steps, one per step; step 0 is the initial model.
      clients: rows of the client tasks, one per task.
      summary: totals, targets, `num_clients`, `block_names`, `data`.
      population: device group, number of samples and label counts of every client.
      source: work directory, or a name of the run for error messages.
      client_evaluations: rows of the clients' evaluations, one per client and evaluation; empty if
        clients were not evaluated one by one.
    """

    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    clients: list[dict[str, Any]]
    summary: dict[str, Any]
    population: Population
    source: str = field(default="<run>", compare=False)
    client_evaluations: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("config", "metrics", "clients", "summary", "client_evaluations"):
            object.__setattr__(self, name, jsonable(getattr(self, name), name))
        check_record(
            self.config,
            self.metrics,
            self.clients,
            self.summary,
            self.population,
            self.client_evaluations,
            self.source,
        )

    @classmethod
    def load(cls, workdir: str | os.PathLike[str]) -> "RunRecord":
        """Reads the record of a finished run.

        Args:
          workdir: directory that a `RunWriter` wrote to.

        Raises:
          InputError: for a missing, incomplete or corrupt file; the message names the path, the
            line and the remedy.
        """
        path = Path(workdir)
        require(
            os.path.isdir(path),
            f"workdir = {str(workdir)!r}",
            "is not a directory",
            "name the work directory of a finished run",
        )
        evaluated = path / EVALUATION_ROWS
        config = read_json(path / "config.json")
        metrics, clients = (read_lines(path / name) for name in (METRIC_ROWS, CLIENT_ROWS))
        summary = read_json(path / "summary.json")
        check_summary(summary, str(path / "summary.json"))
        data = summary["data"]
        size = summary["num_clients"], data["num_classes"], data.get("named", [])
        return cls(
            config=config,
            metrics=metrics,
            clients=clients,
            summary=summary,
            population=Population.read(path, *size),
            source=str(path),
            # A resumed run may have removed every row.
            client_evaluations=(
                read_lines(evaluated, may_be_empty=True) if os.path.lexists(evaluated) else []
            ),
        )

    @cached_property
    def metric(self) -> MetricInfo:
        """The metric to which the targets refer."""
        return MetricInfo.of(self.summary)

    @property
    def final(self) -> float | None:
        """The target metric at the last evaluation; None if it is not finite."""
        return self.summary[f"final_{self.metric.name}"]

    @property
    def best(self) -> float | None:
        """The best value of the target metric; None if none is finite."""
        return self.summary[f"best_{self.metric.name}"]

    @property
    def priced(self) -> bool:
        """Whether the fleet prices energy, so that rows and summary have `joules`."""
        return "joules" in self.summary

    def column(self, name: str) -> np.ndarray:
        """A column of the metrics, float64[rows]; NaN for rows without a finite value.

        Raises:
          InputError: for a column that holds more than a number in a row.
        """
        kinds = {type(row.get(name)) for row in self.metrics}
        require(
            not kinds & {list, dict, str},
            f"column = {name!r}",
            f"holds more than a number per row in {self.source}/metrics.jsonl",
            "read `metrics` instead",
        )
        return _numbers(self.metrics, name)

    @cached_property
    def client_columns(self) -> dict[str, np.ndarray]:
        """Columns of the client tasks, float64[tasks] with NaN for null; `status` is text."""
        columns = {n: _numbers(self.clients, n) for n in CLIENT_COLUMNS if n != "status"}
        return {**columns, "status": np.array([row["status"] for row in self.clients])}

    def evaluations(
        self, column: str = "virtual_s", metric: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """A column summed up to each evaluation, and the metric there, both float64[evaluations].

        Args:
          column: name of a column. `"virtual_s"`, `"wall_s"`, `"compile_s"` and `"step"` are stored
            as cumulative values; any other (`"bytes_up"`, `"joules"`) counts one step and is summed
            here.
          metric: name of the metric's column, which may be empty; None for the target metric.
        """
        values = self.column(column)
        require(
            bool(np.isfinite(values).any()),
            f"column = {column!r}",
            f"no row of {self.source}/metrics.jsonl has a number there",
            "choose 'virtual_s', 'wall_s', 'step' or 'bytes_up'",
        )
        if column not in _CUMULATIVE:
            values = np.nancumsum(values)
        measured = self.column(self.metric.name if metric is None else metric)
        return values[np.isfinite(measured)], measured[np.isfinite(measured)]


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Column `name` of the rows, float64[rows]; NaN for absent or null values."""
    values = (row.get(name) for row in rows)
    return np.array([np.nan if v is None else v for v in values], np.float64)


def time_to(record: RunRecord, value: float, column: str = "virtual_s") -> float | None:
    """Time (or other cost) until the first evaluation at which the metric is at the target.

    "At" includes beyond: at least the value if higher is better, else at most. Nothing is
    interpolated between two evaluations, and a later evaluation short of the target does not
    matter.

    Args:
      record: record of the run.
      value: target, a value of the run's target metric; of an accuracy a share in (0, 1].
      column: name of the column to read at that evaluation: `"virtual_s"`, `"wall_s"`, `"step"`, or
        a per-step column such as `"bytes_up"`, which is summed until then.

    Returns:
      The cost, or None if no evaluation reached the target.
    """
    record.metric.check_target(value)
    costs, values = record.evaluations(column)
    reached = np.flatnonzero(record.metric.reached(values, value))
    return float(costs[reached[0]]) if reached.size else None
