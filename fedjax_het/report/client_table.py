"""The clients of a page: who they are, what they hold, and what each method did with them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_het.common.jsonio import jsonable
from fedjax_het.report.records import RunRecord
from fedjax_het.report.tasks import Tasks, evenly, group_devices, tasks_of

# Rows of the table over all methods, and evaluations of a client that are kept.
_MOST_ROWS, _MOST_EVALUATIONS = 8_000, 12
_LONGEST = 80


def client_table(firsts: Mapping[str, RunRecord]) -> dict[str, Any]:
    """The clients of the first seed of each method, columns in the order of the clients shown.

    Of a large fleet, clients that are evenly chosen among those with a task or a value of their own
    are shown.

    Args:
      firsts: record of the first seed of each method.
    """
    records = list(firsts.values())
    first = records[0]
    population = first.population
    tasks = [tasks_of(record) for record in records]
    groups = group_devices(records, tasks)
    shown = _shown(records, tasks)
    names = population.ids
    devices = population.device_names
    counts = population.label_counts
    return {
        "count": len(population),
        "ids": [_text(c if names is None else names[c]) for c in shown.tolist()],
        "devices": None if devices is None else [_text(devices[c]) for c in shown.tolist()],
        "groups": groups.names,
        "group": groups.of_client[0][shown].tolist(),
        "samples": population.sizes[shown].tolist(),
        "classes": None
        if counts is None
        else [
            _text(c if population.classes is None else population.classes[c])
            for c in range(counts.shape[1])
        ],
        "labels": None if counts is None else counts[shown].tolist(),
        "methods": [
            {"seed": record.summary["seed"], **_work(each, shown), **_values(record, shown)}
            for record, each in zip(records, tasks, strict=True)
        ],
    }


def _text(name: Any) -> str:
    text = str(name)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _shown(records: list[RunRecord], tasks: list[Tasks]) -> np.ndarray:
    """The clients to show, int64[shown], rising."""
    clients = len(records[0].population)
    most = max(_MOST_ROWS // len(records), 1)
    if clients <= most:
        return np.arange(clients)
    seen = [each.client for each in tasks]
    seen += [
        np.array([row["client"] for row in record.client_evaluations], np.int64)
        for record in records
    ]
    known = np.unique(np.concatenate(seen))
    known = known[known < clients]  # others only test
    return known[evenly(known.size, most)]


def _work(tasks: Tasks, shown: np.ndarray) -> dict[str, list[float]]:
    """What the devices did in a run, by client: tasks, and seconds at work and waiting."""
    size = int(max(shown.max(initial=0), tasks.client.max(initial=0))) + 1

    def total(of: np.ndarray) -> np.ndarray:
        return np.bincount(tasks.client, of.astype(np.float64), size)[shown]

    return {
        "tasks": total(np.ones(tasks.client.size)).astype(np.int64).tolist(),
        "used": total(tasks.used).astype(np.int64).tolist(),
        "failed": total(tasks.failed).astype(np.int64).tolist(),
        "busy_s": _rounded(total(tasks.busy_s)),
        "waiting_s": _rounded(total(tasks.waiting_s)),
    }


def _values(record: RunRecord, shown: np.ndarray) -> dict[str, Any]:
    """The metric of each client at some evaluations, the last included; null if not recorded."""
    name = record.metric.name
    rows = [row for row in record.client_evaluations if row.get(name) is not None]
    if not rows:
        return {"steps": [], "values": None, "personal": None, "own": None}
    steps = np.unique([row["step"] for row in rows])
    steps = steps[evenly(steps.size, _MOST_EVALUATIONS)]
    place = {int(client): i for i, client in enumerate(shown)}
    column = {int(step): j for j, step in enumerate(steps)}
    values = np.full((len(steps), shown.size), np.nan)
    personal, own = np.full(shown.size, np.nan), np.ones(shown.size, bool)
    for row in rows:
        i, j = place.get(row["client"]), column.get(row["step"])
        if i is None or j is None:
            continue
        values[j, i] = row[name]
        if j == len(steps) - 1:
            after = row.get(f"personal_{name}")
            personal[i], own[i] = np.nan if after is None else after, row["own"]
    return {
        "steps": steps.tolist(),
        "values": [_rounded(row) for row in values],
        "personal": _rounded(personal) if np.isfinite(personal).any() else None,
        "own": own.tolist(),
    }


def _rounded(values: np.ndarray) -> list[Any]:
    """Numbers with six digits, more than is shown; null where there is none."""
    return jsonable([float(f"{value:.6g}") for value in values.tolist()])
