"""What a run leaves behind, written as it goes and read back whole.

A work directory holds `config.json` and `summary.json` (replaced atomically) and `metrics.jsonl`
and `clients.jsonl` (one line per server step and per client task, appended). `virtual_s`, `wall_s`
and `compile_s` of a metrics row are cumulative; `wall_s` leaves compilation out; `bytes_up`,
`bytes_down`, `clients`, `merged` and `dropped` belong to that step alone.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.jsonio import json_line, jsonable, read_json, read_lines, write_json
from fedjax_het.report.schema import CLIENT_COLUMNS, check_record

_METRICS, _CLIENTS = "metrics.jsonl", "clients.jsonl"
_CUMULATIVE = ("step", "virtual_s", "wall_s", "compile_s")


class RunWriter:
    """Appends the rows of a run to its work directory; every step is flushed.

    A new run starts in a directory without rows. A resumed run first calls `truncate` with the
    `offsets` that were stored in the checkpoint, which cuts what was written after it, a torn last
    line included; only then may it write.

    Args:
      workdir: the directory; made if it does not exist.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self._workdir = Path(workdir)
        self._stack = ExitStack()
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._files = {
                name: self._stack.enter_context((self._workdir / name).open("ab"))
                for name in (_METRICS, _CLIENTS)
            }
        except OSError as error:
            raise InputError(
                f"workdir = {str(workdir)!r}: cannot be made or written to ({error.strerror}); "
                "name a directory that you may write to"
            ) from None
        self._may_append = all(file.tell() == 0 for file in self._files.values())

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replaces `config.json`: the configuration, `versions`, `device`, `git_revision`."""
        write_json(self._workdir / "config.json", config)

    def write_step(self, metrics: Mapping[str, Any], clients: Iterable[Mapping[str, Any]]) -> None:
        """Appends one server step and its client tasks, and flushes both files.

        Args:
          metrics: the row of `metrics.jsonl`.
          clients: the rows of `clients.jsonl`, maybe none.

        Raises:
          InputError: when the directory holds rows of an earlier run that `truncate` has not dealt
            with, or a value is not of a JSON type.
        """
        require(
            self._may_append,
            f"workdir = {str(self._workdir)!r}",
            "already holds the rows of a run",
            "resume that run, or choose an empty directory",
        )
        lines = b"".join(json_line(row, _CLIENTS) for row in clients)
        line = json_line(metrics, _METRICS)
        self._files[_CLIENTS].write(lines)
        self._files[_METRICS].write(line)
        for file in self._files.values():
            file.flush()

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces `summary.json`, the last thing a run writes."""
        write_json(self._workdir / "summary.json", summary)

    def offsets(self) -> dict[str, int]:
        """Bytes written so far to each file of rows, for the checkpoint.

        The rows are on disk when this returns, so no checkpoint refers to rows that a power cut
        could still take away.
        """
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def truncate(self, offsets: Mapping[str, Any]) -> None:
        """Cuts the rows written after `offsets()` was taken, and the summary, which they outdate.

        Args:
          offsets: what `offsets` returned, or `{}` to start over.

        Raises:
          InputError: when a file is shorter than its offset or the offset is not at a line's end.
        """
        for name, file in self._files.items():
            offset = int(offsets.get(name, 0))
            path = self._workdir / name
            size = file.seek(0, os.SEEK_END)
            require(
                0 <= offset <= size,
                f"{path}: {size} bytes",
                f"the checkpoint expects at least {offset}",
                "restore the file, or start the run over in an empty directory",
            )
            with open(path, "rb") as reader:
                reader.seek(max(offset - 1, 0))
                before = reader.read(1) if offset else b"\n"
            require(
                before == b"\n",
                f"{path}: byte {offset}",
                "is not the end of a line, so the file is not the one of the checkpoint",
                "restore the file, or start the run over in an empty directory",
            )
            file.truncate(offset)
            file.seek(offset)
        (self._workdir / "summary.json").unlink(missing_ok=True)
        self._may_append = True

    def close(self) -> None:
        """Closes the files; the writer cannot be used afterwards."""
        self._stack.close()

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class RunRecord:
    """Everything known about one run, from memory or from a work directory, checked.

    Rows given in memory pass through the same conversion as rows written to disk (NumPy scalars
    become numbers, NaN becomes None), so both ways give equal records.

    Attributes:
      config: resolved configuration with `versions`, `device` and `git_revision`.
      metrics: one row per server step; step 0 is the initial model.
      clients: one row per client task.
      summary: totals, targets, `device_groups`, `block_names`, `data`.
      source: the work directory, or how to call the run in errors.
    """

    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    clients: list[dict[str, Any]]
    summary: dict[str, Any]
    source: str = field(default="<run>", compare=False)

    def __post_init__(self) -> None:
        for name in ("config", "metrics", "clients", "summary"):
            object.__setattr__(self, name, jsonable(getattr(self, name), name))
        check_record(self.config, self.metrics, self.clients, self.summary, self.source)

    @classmethod
    def load(cls, workdir: str | os.PathLike[str]) -> "RunRecord":
        """Reads a finished run back.

        Args:
          workdir: the directory a `RunWriter` wrote to.

        Raises:
          InputError: for a missing, torn or corrupt file; names the path, the line and the remedy.
        """
        path = Path(workdir)
        require(
            path.is_dir(),
            f"workdir = {str(workdir)!r}",
            "is not a directory",
            "name the work directory of a finished run",
        )
        return cls(
            config=read_json(path / "config.json"),
            metrics=read_lines(path / _METRICS),
            clients=read_lines(path / _CLIENTS),
            summary=read_json(path / "summary.json"),
            source=str(path),
        )

    def column(self, name: str) -> np.ndarray:
        """A column of the metrics, float64[rows]; NaN where a row has no finite value."""
        return _numbers(self.metrics, name)

    @cached_property
    def client_columns(self) -> dict[str, np.ndarray]:
        """The client tasks by column: float64[tasks] with NaN for null; `status` is text."""
        columns = {n: _numbers(self.clients, n) for n in CLIENT_COLUMNS if n != "status"}
        return {**columns, "status": np.array([row["status"] for row in self.clients])}

    def evaluations(
        self, column: str = "virtual_s", accuracy: str = "accuracy"
    ) -> tuple[np.ndarray, np.ndarray]:
        """A column summed up to each evaluation, and the accuracy there, float64[evaluations] both.

        Args:
          column: `"virtual_s"`, `"wall_s"`, `"compile_s"` and `"step"` are cumulative as they are;
            any other (`"bytes_up"`) belongs to its step and is summed here.
          accuracy: which accuracy; `"client_accuracy_worst_decile"` may have no value at all.
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
        shares = self.column(accuracy)
        return values[np.isfinite(shares)], shares[np.isfinite(shares)]


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Column `name` of the rows, float64[rows]; NaN where it is absent or null."""
    values = (row.get(name) for row in rows)
    return np.array([np.nan if v is None else v for v in values], np.float64)


def time_to(record: RunRecord, accuracy: float, column: str = "virtual_s") -> float | None:
    """When the test accuracy was first seen at or above a target.

    It is the time of the first *evaluation* that shows it: nothing is interpolated between two
    evaluations, and a later fall below the target does not count against it.

    Args:
      record: the run.
      accuracy: the target, a share in (0, 1].
      column: what to report at that evaluation: `"virtual_s"`, `"wall_s"`, `"step"`, or a per-step
        column such as `"bytes_up"`, summed until then.

    Returns:
      The value, or None when no evaluation reached the target.
    """
    require(0 < accuracy <= 1, f"accuracy = {accuracy}", "must be in (0, 1]", "write 90 % as 0.9")
    values, accuracies = record.evaluations(column)
    reached = np.flatnonzero(accuracies >= accuracy)
    return float(values[reached[0]]) if reached.size else None
