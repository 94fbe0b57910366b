"""Sweeps of a study that can be interrupted: every cell runs once and writes one file.

cells = {f"fedavg_{lr}": functools.partial(final_accuracy, lr) for lr in (0.05, 0.1)}
found = run_cells(cells, "runs/search")
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fedjax_het.common.errors import require
from fedjax_het.common.jsonio import read_json
from fedjax_het.common.writing import make_directory, usable_path, write_json
from fedjax_het.report.records import RunRecord


def run_cells(
    cells: Mapping[str, Callable[[], Any]],
    out: str | os.PathLike[str],
    announce: Callable[[str, Any], None] | None = None,
) -> dict[str, Any]:
    """Runs every cell without a file.

    Compiled programs are released between cells, because a study compiles more programs than the
    memory of a process can hold.

    Args:
      cells: functions by the name of the cell, which return values for JSON.
      out: directory of the files, `<name>.json`; created if it does not exist.
      announce: function of the name and the value of a cell, called after the cell has run.

    Returns:
      The values by name, in the order of the cells, as read from the files.

    Raises:
      InputError: if two names give the same file, or the directory cannot be written to.
    """
    root = usable_path(out, "out")
    paths = {name: root / f"{_slug(name)}.json" for name in cells}
    require(
        len(set(paths.values())) == len(paths),
        f"cells {sorted(paths)}",
        "must differ in more than punctuation, each has a file of its own",
        "give one another name",
    )
    make_directory(root, f"out = {str(root)!r}")
    for name, run in cells.items():
        if paths[name].exists():
            continue
        value = run()
        write_json(paths[name], value)
        jax.clear_caches()
        if announce is not None:
            announce(name, value)
    return {name: read_json(path) for name, path in paths.items()}


def curve(record: RunRecord) -> dict[str, list[Any]]:
    """The evaluations of a run as columns: `step`, `virtual_s` and the target metric's name."""
    metric = record.metric.name
    rows = [row for row in record.metrics if row.get(metric) is not None]
    return {name: [row[name] for row in rows] for name in ("step", "virtual_s", metric)}


def edge(label: str, best: float, tried: Sequence[float]) -> bool:
    """Says so if the best of several step sizes is the smallest or the largest of them.

    Args:
      label: name of the arm.
      best: chosen step size.
      tried: step sizes to choose from.

    Returns:
      Whether it lies at the edge; of a single step size nothing is said.
    """
    there = len(tried) > 1 and not min(tried) < best < max(tried)
    if there:
        print(f"{label}: {best:g} lies at the edge of {sorted(tried)}, extend --rates", flush=True)
    return there


def _slug(name: str) -> str:
    """The file name of a cell, without suffix."""
    return "".join(c if c.isalnum() or c in "._" else "-" for c in name)
