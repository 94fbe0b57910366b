"""Comparison of several methods over several seeds: a table, figures and one page."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fedjax_het.common.writing import encoded, make_directory, usable_path, write_atomic, write_json
from fedjax_het.report.figures import figures
from fedjax_het.report.page import comparison_page
from fedjax_het.report.records import RunRecord
from fedjax_het.report.results import MethodResult, summarise
from fedjax_het.report.style import png
from fedjax_het.report.tables import table_data, table_notes, text_table
from fedjax_het.report.verdict import headline


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
      headline: sentences that say which method reached the target first.
      methods: results of each method; the first method is the reference.
      out_dir: directory of `comparison.json`, `comparison.txt`, `report.html` and the PNGs; None if
        they were not written.
    """

    headline: str
    methods: tuple[MethodResult, ...]
    out_dir: Path | None

    def table(self) -> str:
        """The comparison as a text table for a terminal."""
        return text_table(self.methods)

    def data(self) -> dict[str, Any]:
        """The content of `comparison.json`.

        `methods` has one entry per method: `targets` (each with the value under the name of the
        metric, `reached`, `seeds`, `speed_up` and the spreads `virtual_s`, `wall_s`, `step`,
        `bytes_up`, and `joules` if the fleet prices energy, until it was reached) and the spreads
        of the whole run. A spread is
        `{"mean", "std", "values"}`, where `std` is null for one value; a spread without values is
        null.
        """
        return {
            "headline": self.headline,
            "reference": self.methods[0].name,
            "metric": asdict(self.methods[0].metric),
            "targets": [target.goal for target in self.methods[0].targets],
            "methods": table_data(self.methods),
            "notes": table_notes(self.methods),
        }


class Run(Protocol):
    """Any object that holds the record of a run, such as the result of `simulate`."""

    @property
    def record(self) -> RunRecord:
        """The record of the run."""


def compare(
    runs: Mapping[str, Sequence[RunRecord | Run] | RunRecord | Run],
    targets: Sequence[float] = (),
    out_dir: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Compares methods and writes the result; equal runs give identical files.

    Args:
      runs: runs of each method, one per seed or a single one, on the same data and fleet: records,
        or results of `simulate`. The first method is the reference of the speed-ups.
      targets: values of the runs' target metric, of an accuracy shares in (0, 1]; may be empty.
      out_dir: directory for table, plots and page, made if it does not exist; files of an earlier
        comparison are replaced. If None, nothing is written.

    Returns:
      The comparison; `print(result.table())` shows it.

    Raises:
      InputError: for an empty comparison, a target that is no value of the metric, a seed given
        twice, runs on different data or fleets or with different metrics, or a directory that
        cannot be made or written to.
    """
    records = {name: _records(given) for name, given in runs.items()}
    methods = summarise(records, targets)
    goals = [target.goal for target in methods[0].targets]
    if out_dir is None:
        return Comparison(headline(methods), methods, None)
    out = usable_path(out_dir, "out_dir")
    make_directory(out, f"out_dir = {str(out_dir)!r}")
    result = Comparison(headline(methods), methods, out)
    for drawing in (each for section in figures(records, methods) for each in section):
        write_atomic(out / f"{drawing.name}.png", png(drawing.draw()))
    write_json(out / "comparison.json", result.data())
    write_atomic(out / "comparison.txt", encoded(f"{result.headline}\n\n{result.table()}"))
    write_atomic(out / "report.html", encoded(comparison_page(records, goals)))
    return result


def _records(given: Any) -> list[RunRecord]:
    """The records of a method's runs."""
    alone = isinstance(given, RunRecord) or hasattr(given, "record")
    every = [given] if alone else list(given)
    return [run if isinstance(run, RunRecord) else run.record for run in every]
