"""What the scripts of a page know of the runs: their evaluations and their clients, as JSON.

Costs and values are those that `records.time_to` reads, with all their digits, so that the page and
Python agree on when a target was reached.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_het.common.jsonio import jsonable
from fedjax_het.report.client_table import client_table
from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.plots import Runs
from fedjax_het.report.records import RunRecord
from fedjax_het.report.results import MethodResult
from fedjax_het.report.style import method_style
from fedjax_het.report.tasks import evenly

# Evaluations of all runs of a page; further ones would only make the file larger.
MOST_EVALUATIONS = 20_000
# Columns of the axes, the kind of their unit, and their labels.
_AXES = (
    ("virtual_s", "s", "virtual time"),
    ("step", "", "server steps"),
    ("bytes_up", "B", "sent by all devices"),
    ("joules", "J", "energy of all devices"),
    ("wall_s", "s", "wall time without compiling"),
)
_DASHES: dict[str, list[int]] = {"-": [], "--": [8, 4], ":": [2, 3], "-.": [8, 3, 2, 3]}


def page_data(runs: Runs, results: Sequence[MethodResult]) -> dict[str, Any]:
    """The data of a page.

    Args:
      runs: runs of each method, one per seed; the first method is the reference.
      results: their results, of `results.summarise`.
    """
    metric, priced = results[0].metric, results[0].priced
    axes = [axis for axis in _AXES if axis[0] != "joules" or priced]
    columns = [column for column, *_ in axes]
    most = MOST_EVALUATIONS // sum(len(group) for group in runs.values())
    return {
        "metric": _metric(metric),
        "targets": [target.goal for target in results[0].targets],
        "axes": [dict(zip(("column", "kind", "label"), axis, strict=True)) for axis in axes],
        "methods": [
            {
                "name": name,
                "color": (look := method_style(i))["color"],
                "dash": _DASHES[look["linestyle"]],
                "runs": [_run(record, columns, most) for record in group],
            }
            for i, (name, group) in enumerate(runs.items())
        ],
        "clients": client_table({name: group[0] for name, group in runs.items()}),
    }


def _metric(metric: MetricInfo) -> dict[str, Any]:
    return {
        "name": metric.name,
        "label": metric.label,
        "higher_is_better": metric.higher_is_better,
        "share": metric.share,
    }


def _run(record: RunRecord, columns: Sequence[str], most: int) -> dict[str, Any]:
    """The evaluations of a run: costs by column, the target metric, and that of the worst clients.

    Of more than `most`, those that were better than all before are kept first, because a target is
    reached at one of them; `exact` says whether all of these are there.
    """
    values = record.evaluations()[1]
    kept, exact = np.arange(values.size), True
    if values.size > most:
        sign = 1 if record.metric.higher_is_better else -1
        best = np.maximum.accumulate(sign * values)
        better = np.flatnonzero(np.diff(best, prepend=-np.inf) > 0)
        exact = better.size <= most // 2
        better = better if exact else better[evenly(better.size, most // 2)]
        kept = np.union1d(better, evenly(values.size, most - better.size))
    name = record.metric.name
    worst = record.column(f"client_{name}_worst_decile")[np.isfinite(record.column(name))][kept]
    costs = {column: record.evaluations(column)[0][kept] for column in columns}
    # Steps and bytes are whole numbers, which are shorter.
    return {
        "seed": record.summary["seed"],
        "evaluations": values.size,
        "exact": exact,
        "costs": {
            column: cost.astype(np.int64).tolist()
            if np.array_equal(cost, np.trunc(cost))
            else cost.tolist()
            for column, cost in costs.items()
        },
        "values": values[kept].tolist(),
        "worst": jsonable(worst) if np.isfinite(worst).any() else None,
    }
