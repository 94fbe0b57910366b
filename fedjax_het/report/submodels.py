"""The metrics of the models that clients of each kind hold, in rows, summaries and tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.records import RunRecord
from fedjax_het.report.units import Spread, spread


def submodel_values(row: Mapping[str, Any], metrics: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The columns `<metric>[<name>]` of a row of metrics, by name and metric.

    Args:
      row: row of metrics.
      metrics: names of the metrics of an evaluation.
    """
    found: dict[str, dict[str, Any]] = {}
    known = [*metrics]
    for column in row:
        for metric in known:
            if column.startswith(f"{metric}[") and column.endswith("]") and column not in known:
                found.setdefault(column[len(metric) + 1 : -1], {})[metric] = row[column]
    return found


def final_submodels(runs: Sequence[RunRecord]) -> dict[str, Spread | None]:
    """The target metric of every sub-model at the end of a method's runs, by its name."""
    found = [run.summary.get("submodels", {}) for run in runs]
    metric = runs[0].metric.name
    names = dict.fromkeys(name for models in found for name in models)
    return {name: spread([models.get(name, {}).get(metric) for models in found]) for name in names}


def final_local(runs: Sequence[RunRecord]) -> Spread | None:
    """The mean over clients of the target metric of their own sub-models; None if unknown."""
    return spread([run.summary.get(f"final_local_{run.metric.name}") for run in runs])


def submodel_rows(
    metric: MetricInfo,
    submodels: Sequence[Mapping[str, Spread | None]],
    local: Sequence[Spread | None],
) -> list[tuple[str, list[str]]]:
    """The rows of the comparison table on sub-models; none if no method has them.

    Args:
      metric: target metric.
      submodels: result of `final_submodels` for each method.
      local: result of `final_local` for each method.
    """
    rows = []
    if any(local):
        cells = [metric.text(value) for value in local]
        rows.append((f"mean {metric.label} of the clients' own sub-models", cells))
    for name in dict.fromkeys(name for models in submodels for name in models):
        cells = [metric.text(models.get(name)) for models in submodels]
        rows.append((f"final {metric.label} of {name}", cells))
    return rows
