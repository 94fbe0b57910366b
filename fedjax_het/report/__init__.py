"""Run records, tables, plots, and one self-contained HTML page."""

import importlib
from typing import TYPE_CHECKING, Any

from fedjax_het.report.population import Population
from fedjax_het.report.records import RunRecord, time_to
from fedjax_het.report.writer import RunWriter

if TYPE_CHECKING:
    from fedjax_het.report.comparison import Comparison, compare
    from fedjax_het.report.page import write_report

__all__ = [
    "Comparison",
    "Population",
    "RunRecord",
    "RunWriter",
    "compare",
    "time_to",
    "write_report",
]

# Imported when they are asked for: a run needs no matplotlib, which takes as long as JAX.
_LATER = {"Comparison": "comparison", "compare": "comparison", "write_report": "page"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = value
    return value
