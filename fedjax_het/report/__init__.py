"""Run records, tables, plots, and one self-contained HTML page."""

from fedjax_het.report.compare import Comparison, compare
from fedjax_het.report.page import write_report
from fedjax_het.report.population import Population
from fedjax_het.report.records import RunRecord, RunWriter, time_to

__all__ = [
    "Comparison",
    "Population",
    "RunRecord",
    "RunWriter",
    "compare",
    "time_to",
    "write_report",
]
