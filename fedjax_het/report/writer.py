"""The writer of a run's record: rows step by step, other files replaced atomically."""

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from fedjax_het.common.errors import require
from fedjax_het.common.writing import (
    WriteError,
    append,
    json_line,
    make_directory,
    refusing,
    write_json,
)
from fedjax_het.report.population import Population

METRIC_ROWS, CLIENT_ROWS, EVALUATION_ROWS = "metrics.jsonl", "clients.jsonl", "clients_eval.jsonl"
FACTS = "facts.json"


class RunWriter:
    """Appends the rows of a run to its work directory; none waits in a buffer.

    A new run starts in a directory without rows. A resumed run must first call `truncate` with the
    `offsets` that were stored in the checkpoint; this removes everything written after it,
    including an incomplete last line.

    Args:
      workdir: directory of the run; made if it does not exist.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self._workdir = Path(workdir)
        self._stack = ExitStack()
        self._files: dict[str, BinaryIO] = {}
        make_directory(self._workdir, f"workdir = {str(workdir)!r}")
        try:
            for name in (METRIC_ROWS, CLIENT_ROWS):
                self._file(name)
            if (self._workdir / EVALUATION_ROWS).exists():
                self._file(EVALUATION_ROWS)
        except WriteError:
            self.close()
            raise
        self._may_append = all(file.tell() == 0 for file in self._files.values())

    def _file(self, name: str) -> BinaryIO:
        """The file of rows `name`, opened if it is not open."""
        if name not in self._files:
            path = self._workdir / name
            # Without a buffer, a row is either on its way to the disk or refused here.
            with refusing(str(path)):
                self._files[name] = self._stack.enter_context(path.open("ab", buffering=0))
        return self._files[name]

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replaces `config.json`: the configuration with `versions`, `device`, `git_revision`."""
        write_json(self._workdir / "config.json", config)

    def write_facts(self, facts: Mapping[str, Any], population: Population) -> None:
        """Replaces `population.npz` and `facts.json`: what is known before the first step."""
        population.write(self._workdir)
        write_json(self._workdir / FACTS, facts)

    def write_step(self, metrics: Mapping[str, Any], clients: Iterable[Mapping[str, Any]]) -> None:
        """Appends one server step and its client tasks: the rows of both files, or none.

        Args:
          metrics: row of `metrics.jsonl`.
          clients: rows of `clients.jsonl`; may be empty.

        Raises:
          InputError: if the directory holds rows of an earlier run and `truncate` was not called,
            a value is not of a JSON type, or the disk refuses the rows.
        """
        lines = b"".join(json_line(row, CLIENT_ROWS) for row in clients)
        self._append({CLIENT_ROWS: lines, METRIC_ROWS: json_line(metrics, METRIC_ROWS)})

    def write_client_evaluations(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends the evaluations of the clients at one step.

        Args:
          rows: rows of `clients_eval.jsonl`, one per client.

        Raises:
          InputError: as for `write_step`.
        """
        self._append({EVALUATION_ROWS: b"".join(json_line(row, EVALUATION_ROWS) for row in rows)})

    def _append(self, lines: Mapping[str, bytes]) -> None:
        """Appends lines to files of rows; after a failure nothing more may be appended."""
        require(
            self._may_append,
            f"workdir = {str(self._workdir)!r}",
            "already holds the rows of a run",
            "resume that run, or choose an empty directory",
        )
        self._may_append = False
        append({self._file(name): piece for name, piece in lines.items()})
        self._may_append = True

    def write_summary(self, summary: Mapping[str, Any], population: Population) -> None:
        """Replaces `population.npz` and `summary.json`, which a run writes last."""
        population.write(self._workdir)
        write_json(self._workdir / "summary.json", summary)

    def offsets(self) -> dict[str, int]:
        """Bytes written so far to each file of rows, for the checkpoint.

        The rows are on disk when this returns, so a checkpoint never refers to rows that a power
        failure could still delete.
        """
        for name, file in self._files.items():
            with refusing(str(self._workdir / name)):
                os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def truncate(self, offsets: Mapping[str, Any]) -> None:
        """Removes the rows written after the call of `offsets()`, and the summary.

        Args:
          offsets: result of `offsets`, or `{}` to start over.

        Raises:
          InputError: if a file is shorter than its offset, or the offset is not at a line's end.
        """
        for name in dict.fromkeys([*self._files, *offsets]):
            file = self._file(name)
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
            with refusing(str(path)):
                file.truncate(offset)
                file.seek(offset)
        with refusing(str(self._workdir / "summary.json"), "removed"):
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
