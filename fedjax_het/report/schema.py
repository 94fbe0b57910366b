"""The schema of a run record, and the checks made before a record is used."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.population import POPULATION, Population

# Above this, sums of rows would not be finite.
_LARGEST = 1e300
STATUSES = ("merged", "partial", "dropped", "failed", "nonfinite", "probed")

# Kinds: i = whole number >= 0, w = that or null, n = number >= 0, r = any number, f = number >= 0
# or null (not finite), g = any number or null, b = true or false, t = text, o = that or null,
# l = list, d = mapping, m = that or null.
# A key that ends in "?" may be absent; keys that are not listed may hold anything.
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
_KINDS = {
    "i": "a whole number >= 0",
    "w": "a whole number >= 0 or null",
    "n": "a number >= 0",
    "r": "a number",
    "f": "a number >= 0 or null",
    "g": "a number or null",
    "b": "true or false",
    "t": "text",
    "o": "text or null",
    "l": "a list",
    "d": "a mapping",
    "m": "a mapping or null",
}
_REDO = "restore the file or run the experiment again"


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
    _check_row(config, {"versions?": "m"}, f"{source}/config.json")
    check_summary(summary, f"{source}/summary.json")
    told = summary["num_clients"], summary["data"]["num_classes"]
    require(
        told == (len(population), population.num_classes),
        f"{source}/summary.json: num_clients = {told[0]}, num_classes = {told[1]}",
        f"{POPULATION} holds {len(population)} clients, {population.num_classes} classes",
        "the files belong to different runs; " + _REDO,
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
            "the files belong to different runs, or the column is not per step; " + _REDO,
        )


def check_comparison(content: Any, where: str) -> tuple[list[str], list[float]]:
    """The names of the methods and the targets of a `comparison.json`.

    Raises:
      InputError: if it is not the file of a comparison.
    """
    _check_row(content, {"methods": "l", "targets": "l"}, where)
    for i, method in enumerate(content["methods"]):
        _check_row(method, {"name": "t"}, f"{where}, methods[{i}]")
    names = [method["name"] for method in content["methods"]]
    require(
        0 < len(set(names)) == len(names),
        f"{where}: methods {names}",
        "must be different ones, at least one",
        _REDO,
    )
    for i, target in enumerate(content["targets"]):
        _check_row({"target": target}, {"target": "r"}, f"{where}, targets[{i}]")
    return names, content["targets"]


# Values are as JSON has them, so that their types are exactly these; a run has millions of them.
def _is_number(value: Any) -> bool:
    return type(value) in (float, int) and abs(value) <= _LARGEST


_FITS: dict[str, Callable[[Any], bool]] = {
    "i": lambda value: type(value) is int and 0 <= value < 2**63,
    "n": lambda value: _is_number(value) and value >= 0,
    "r": _is_number,
    "b": lambda value: type(value) is bool,
    "t": lambda value: isinstance(value, str),
    "l": lambda value: isinstance(value, list),
    "d": lambda value: isinstance(value, dict),
}


def _or_null(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_FITS |= {kind: _or_null(_FITS[plain]) for kind, plain in zip("wfgom", "inrtd", strict=True)}


def _check_row(row: Any, schema: Mapping[str, str], where: str) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{where}: must be a mapping, not {type(row).__name__}; {_REDO}")
    for key, kind in schema.items():
        name = key if key in row else key.removesuffix("?")
        if name not in row:
            require(name != key, f"{where}: {name!r}", "is missing", _REDO)
        elif not _FITS[kind](row[name]):
            raise InputError(f"{where}: {name} = {row[name]!r} must be {_KINDS[kind]}; {_REDO}")


def _check_each(values: Sequence[Any], kind: str, what: str) -> None:
    wrong = [value for value in values if not _FITS[kind](value)]
    require(not wrong, f"{what} holds {wrong[:1]}", f"must be a list, each {_KINDS[kind]}", _REDO)


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
    _check_row(summary, _SUMMARY, where)
    blocks = summary["num_blocks"]
    require(blocks >= 1, f"{where}: num_blocks = {blocks}", "must be >= 1", _REDO)
    require(
        len(summary["block_names"]) == blocks,
        f"{where}: {len(summary['block_names'])} block_names",
        f"must be num_blocks = {blocks}",
        _REDO,
    )
    _check_each(summary["block_names"], "t", f"{where}: block_names")
    if "metric" in summary:
        _check_row(summary["metric"], _METRIC, f"{where}, metric")
    metric = MetricInfo.of(summary)
    value = "f" if metric.share else "g"
    _check_row(summary, {f"final_{metric.name}": value, f"best_{metric.name}": value}, where)
    _check_values(summary, [f"final_local_{metric.name}"], metric.share, where)
    for name, values in summary.get("submodels", {}).items():
        _check_row(values, {}, f"{where}, submodels.{name}")
        _check_values(values, [metric.name], metric.share, f"{where}, submodels.{name}")
    for i, target in enumerate(summary["targets"]):
        _check_row(target, {metric.name: "n" if metric.share else "r"}, f"{where}, targets[{i}]")
    clients = summary["num_clients"]
    require(clients >= 1, f"{where}: num_clients = {clients}", "must be >= 1", _REDO)
    _check_each(summary.get("joules_by_group", []), "n", f"{where}: joules_by_group")
    _check_row(summary["data"], _DATA, f"{where}, data")
    _check_each(summary["data"].get("named", []), "t", f"{where}, data.named")


def _check_values(row: Mapping[str, Any], names: Sequence[str], share: bool, where: str) -> None:
    """Checks the columns `names` of a row, which hold values of the target metric."""
    _check_row(row, {f"{name}?": "f" if share else "g" for name in names}, where)
    for name in names:
        if share and (row.get(name) or 0) > 1:
            raise InputError(
                f"{where}: {name} = {row[name]} must be a share in [0, 1]; write 90 % as 0.9"
            )


def _check_metrics(metrics: Sequence[Any], metric: MetricInfo, where: str) -> None:
    step, now_s = -1, 0.0
    for i, row in enumerate(metrics, 1):
        _check_row(row, _METRICS, f"{where}, line {i}")
        require(
            row["step"] > step and row["virtual_s"] >= now_s,
            f"{where}, line {i}: step {row['step']} at {row['virtual_s']} s",
            f"must come after step {step} at {now_s} s",
            "the rows of two runs are mixed; " + _REDO,
        )
        forms = ("{}", "val_{}", "client_{}_mean", "client_{}_worst_decile", "local_{}")
        names = [form.format(metric.name) for form in forms]
        names += [name for name in row if name.startswith(f"{metric.name}[")]
        _check_values(row, names, metric.share, f"{where}, line {i}")
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
    devices, blocks = summary["num_clients"], summary["num_blocks"]
    for i, row in enumerate(clients, 1):
        _check_row(row, _CLIENTS, f"{where}, line {i}")
        require_known(row["status"], STATUSES, f"{where}, line {i}: status")
        if row["client"] >= devices:
            raise InputError(
                f"{where}, line {i}: client = {row['client']} must be < {devices}, num_clients; "
                f"{_REDO}"
            )
        if not row["dispatched_s"] <= merged_at.get(row["step"], -1):
            raise InputError(
                f"{where}, line {i}: step {row['step']}, dispatched at {row['dispatched_s']} s, "
                f"must be a step of metrics.jsonl that ended later; {_REDO}"
            )
        if not row["first_block"] <= row["exit_block"] < blocks:
            raise InputError(
                f"{where}, line {i}: first_block = {row['first_block']}, exit_block = "
                f"{row['exit_block']} must be ordered and < num_blocks = {blocks}; {_REDO}"
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
    for i, row in enumerate(rows, 1):
        _check_row(row, _CLIENT_EVALUATIONS, f"{where}, line {i}")
        _check_values(row, names, metric.share, f"{where}, line {i}")
        at = (row["step"], row["client"])
        if at[0] not in merged_at or at in seen:
            raise InputError(
                f"{where}, line {i}: client {at[1]} at step {at[0]} must be the client's only row "
                f"of a step in metrics.jsonl; {_REDO}"
            )
        if row["device_group"] is not None and row["client"] >= devices:
            raise InputError(
                f"{where}, line {i}: client = {row['client']} with a device_group must be < "
                f"{devices}, num_clients; {_REDO}"
            )
        seen.add(at)
