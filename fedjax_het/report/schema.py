"""The schema of a run record, and the checks made before a record is used."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.report.kinds import REDO, check_each, check_row, check_rows
from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.population import POPULATION, Population

STATUSES = ("merged", "partial", "dropped", "failed", "nonfinite", "probed")

# Kinds of the columns, see `kinds`.
_METRICS = {
    "step": "i",
    "virtual_s": "n",
    "wall_s": "n",
    "compile_s": "n",
    "train_loss?": "g",
    "bytes_up?": "n",
    "bytes_down?": "n",
    "joules?": "n",
    "clients?": "i",
    "merged?": "i",
    "dropped?": "i",
    "failed?": "i",
    "nonfinite?": "l",
    "wasted_flops?": "n",
    "wasted_bytes?": "n",
    "wasted_joules?": "n",
    "compiled_programs?": "i",
    "loss?": "g",
    "info?": "d",
}
_CLIENTS = {
    "step": "i",
    "client": "i",
    "version": "i",
    "staleness?": "i",
    "dispatched_s": "n",
    "arrived_s": "f",
    "download_s": "n",
    "compute_s": "n",
    "upload_s": "n",
    "paused_s?": "n",
    "bytes_down": "n",
    "bytes_up": "n",
    "flops": "n",
    "joules?": "n",
    "device_flops_per_s?": "n",
    "first_block": "i",
    "exit_block": "i",
    "cut_block?": "g",
    "width_level?": "i",
    "samples": "i",
    "steps": "i",
    "loss?": "g",
    "status": "t",
}
_CLIENT_EVALUATIONS = {
    "step": "i",
    "virtual_s": "n",
    "client": "i",
    "samples": "i",
    "train_samples": "i",
    "device_group": "w",
    "own": "b",
    "id?": "t",
    "loss?": "g",
}
CLIENT_COLUMNS = tuple(key.rstrip("?") for key in _CLIENTS)
_SUMMARY = {
    "name": "t",
    "algorithm": "t",
    "seed": "i",
    "steps": "i",
    "ended?": "o",
    "virtual_s": "n",
    "wall_s": "n",
    "compile_s": "n",
    "targets": "l",
    "bytes_up": "n",
    "bytes_down": "n",
    "flops": "n",
    "joules?": "n",
    "joules_by_group?": "l",
    "tasks": "i",
    "merged": "i",
    "dropped": "i",
    "failed?": "i",
    "nonfinite": "i",
    "wasted_flops?": "n",
    "wasted_bytes?": "n",
    "wasted_joules?": "n",
    "num_clients": "i",
    "num_blocks": "i",
    "block_names": "l",
    "data": "d",
    "fleet?": "d",
    "metric?": "d",
    "submodels?": "d",
}
_METRIC = {"name": "t", "higher_is_better": "b", "share": "b"}
_DATA = {"name": "t", "num_classes": "w", "named?": "l"}


def check_record(
    config: Any,
    metrics: Sequence[Any],
    clients: Sequence[Any],
    summary: Any,
    population: Population,
    client_evaluations: Sequence[Any],
    source: str,
) -> None:
    """Raises `InputError` unless the parts form one record; names file, line and remedy."""
    check_row(config, {"versions?": "m"}, f"{source}/config.json")
    check_summary(summary, f"{source}/summary.json")
    told = summary["num_clients"], summary["data"]["num_classes"]
    require(
        told == (len(population), population.num_classes),
        f"{source}/summary.json: num_clients = {told[0]}, num_classes = {told[1]}",
        f"{POPULATION} holds {len(population)} clients, {population.num_classes} classes",
        "the files belong to different runs; " + REDO,
    )
    metric = MetricInfo.of(summary)
    _check_metrics(metrics, metric, f"{source}/metrics.jsonl")
    merged_at = {row["step"]: row["virtual_s"] for row in metrics}
    _check_clients(clients, summary, merged_at, f"{source}/clients.jsonl")
    _check_client_evaluations(
        client_evaluations, summary, merged_at, f"{source}/clients_eval.jsonl"
    )
    for name in ("bytes_up", "bytes_down", *(["joules"] if "joules" in summary else [])):
        total = sum(row.get(name, 0) for row in metrics)
        require(
            abs(total - summary[name]) <= 1e-6 * max(total, summary[name]),
            f"{source}/summary.json: {name} = {summary[name]:g}",
            f"the steps of metrics.jsonl add up to {total:g}",
            "the files belong to different runs, or the column is not per step; " + REDO,
        )


def check_comparison(content: Any, where: str) -> tuple[list[str], list[float]]:
    """The names of the methods and the targets of a `comparison.json`.

    Raises:
      InputError: if it is not the file of a comparison.
    """
    check_row(content, {"methods": "l", "targets": "l"}, where)
    for i, method in enumerate(content["methods"]):
        check_row(method, {"name": "t"}, f"{where}, methods[{i}]")
    names = [method["name"] for method in content["methods"]]
    require(
        0 < len(set(names)) == len(names),
        f"{where}: methods {names}",
        "must be different ones, at least one",
        REDO,
    )
    for i, target in enumerate(content["targets"]):
        check_row({"target": target}, {"target": "r"}, f"{where}, targets[{i}]")
    return names, content["targets"]


def check_summary(summary: Any, where: str) -> None:
    """Raises `InputError` unless a value is the content of `summary.json`.

    Args:
      summary: value to check.
      where: name of the file.
    """
    require(
        not isinstance(summary, dict) or "device_groups" not in summary,
        f"{where}: lists the device_groups of the clients",
        f"is of an earlier version, and must have them in {POPULATION}",
        "run the same command again, which writes the record of a finished run anew",
    )
    check_row(summary, _SUMMARY, where)
    blocks = summary["num_blocks"]
    require(blocks >= 1, f"{where}: num_blocks = {blocks}", "must be >= 1", REDO)
    require(
        len(summary["block_names"]) == blocks,
        f"{where}: {len(summary['block_names'])} block_names",
        f"must be num_blocks = {blocks}",
        REDO,
    )
    check_each(summary["block_names"], "t", f"{where}: block_names")
    if "metric" in summary:
        check_row(summary["metric"], _METRIC, f"{where}, metric")
    metric = MetricInfo.of(summary)
    value = "f" if metric.share else "g"
    check_row(summary, {f"final_{metric.name}": value, f"best_{metric.name}": value}, where)
    _check_values(summary, [f"final_local_{metric.name}"], metric.share, where)
    for name, values in summary.get("submodels", {}).items():
        check_row(values, {}, f"{where}, submodels.{name}")
        _check_values(values, [metric.name], metric.share, f"{where}, submodels.{name}")
    for i, target in enumerate(summary["targets"]):
        check_row(target, {metric.name: "n" if metric.share else "r"}, f"{where}, targets[{i}]")
    clients = summary["num_clients"]
    require(clients >= 1, f"{where}: num_clients = {clients}", "must be >= 1", REDO)
    check_each(summary.get("joules_by_group", []), "n", f"{where}: joules_by_group")
    check_row(summary["data"], _DATA, f"{where}, data")
    check_each(summary["data"].get("named", []), "t", f"{where}, data.named")


def _check_values(row: Mapping[str, Any], names: Sequence[str], share: bool, where: str) -> None:
    """Checks the columns `names` of a row, which hold values of the target metric."""
    check_row(row, {f"{name}?": "f" if share else "g" for name in names}, where)
    for name in names:
        if share and (row.get(name) or 0) > 1:
            raise InputError(
                f"{where}: {name} = {row[name]} must be a share in [0, 1]; write 90 % as 0.9"
            )


def _check_metrics(metrics: Sequence[Any], metric: MetricInfo, where: str) -> None:
    check_rows(metrics, _METRICS, where)
    forms = ("{}", "val_{}", "client_{}_mean", "client_{}_worst_decile", "local_{}")
    known = {form.format(metric.name) for form in forms}
    step, now_s = -1, 0.0
    for i, row in enumerate(metrics, 1):
        if not (row["step"] > step and row["virtual_s"] >= now_s):
            raise InputError(
                f"{where}, line {i}: step {row['step']} at {row['virtual_s']} s: must come after "
                f"step {step} at {now_s} s; the rows of two runs are mixed; {REDO}"
            )
        own = [name for name in row if name in known or name.startswith(f"{metric.name}[")]
        if own:
            _check_values(row, own, metric.share, f"{where}, line {i}")
        step, now_s = row["step"], row["virtual_s"]
    require(
        any(row.get(metric.name) is not None for row in metrics),
        f"{where}: no row has a finite {metric.name!r}",
        "at least one evaluation is needed",
        "evaluate during the run",
    )


def _check_clients(
    clients: Sequence[Any],
    summary: Mapping[str, Any],
    merged_at: Mapping[int, float],
    where: str,
) -> None:
    require(len(clients) > 0, where, "holds no client task", "run at least one server step")
    check_rows(clients, _CLIENTS, where)
    devices, blocks = summary["num_clients"], summary["num_blocks"]
    for i, row in enumerate(clients, 1):
        if row["status"] not in STATUSES:
            require_known(row["status"], STATUSES, f"{where}, line {i}: status")
        if row["client"] >= devices:
            raise InputError(
                f"{where}, line {i}: client = {row['client']} must be < {devices}, num_clients; "
                f"{REDO}"
            )
        if not row["dispatched_s"] <= merged_at.get(row["step"], -1):
            raise InputError(
                f"{where}, line {i}: step {row['step']}, dispatched at {row['dispatched_s']} s, "
                f"must be a step of metrics.jsonl that ended later; {REDO}"
            )
        if not row["first_block"] <= row["exit_block"] < blocks:
            raise InputError(
                f"{where}, line {i}: first_block = {row['first_block']}, exit_block = "
                f"{row['exit_block']} must be ordered and < num_blocks = {blocks}; {REDO}"
            )


def _check_client_evaluations(
    rows: Sequence[Any],
    summary: Mapping[str, Any],
    merged_at: Mapping[int, float],
    where: str,
) -> None:
    metric, devices = MetricInfo.of(summary), summary["num_clients"]
    names = (metric.name, f"personal_{metric.name}")
    seen: set[tuple[int, int]] = set()
    check_rows(rows, _CLIENT_EVALUATIONS, where)
    for i, row in enumerate(rows, 1):
        _check_values(row, names, metric.share, f"{where}, line {i}")
        at = (row["step"], row["client"])
        if at[0] not in merged_at or at in seen:
            raise InputError(
                f"{where}, line {i}: client {at[1]} at step {at[0]} must be the client's only row "
                f"of a step in metrics.jsonl; {REDO}"
            )
        if row["device_group"] is not None and row["client"] >= devices:
            raise InputError(
                f"{where}, line {i}: client = {row['client']} with a device_group must be < "
                f"{devices}, num_clients; {REDO}"
            )
        seen.add(at)
