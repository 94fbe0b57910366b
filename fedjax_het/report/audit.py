"""The audit of an event log: the invariants that every sound run satisfies."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from fedjax_het.contract.clock import Status

# Sums over the tasks in the rows of steps and in the summary, with their units.
_SUMMED = {
    "joules": "J",
    "failed": "failures",
    "wasted_flops": "wasted FLOP",
    "wasted_bytes": "wasted B",
    "wasted_joules": "wasted J",
}


class AuditError(RuntimeError):
    """The event log of a finished run contradicts itself: the simulator or a method has a fault.

    Attributes:
      faults: violations in words.
    """

    def __init__(self, name: str, faults: list[str]):
        self.faults = faults
        shown = "; ".join(faults[:3])
        super().__init__(
            f"{name}: {len(faults)} violation(s) in the event log, the first: {shown}. The records "
            "are complete; pass audit=False to go on all the same"
        )


def verify(
    clients: Iterable[Mapping[str, Any]],
    metrics: Iterable[Mapping[str, Any]],
    summary: Mapping[str, Any] | None = None,
) -> list[str]:
    """Checks an event log against its invariants.

    Args:
      clients: rows of `clients.jsonl`.
      metrics: rows of `metrics.jsonl`.
      summary: content of `summary.json`, whose totals of energy and waste are checked; None for no
        check.

    Returns:
      Violations in words; empty if the log is sound. The invariants: virtual time never decreases;
      arrival or failure = dispatch + download + compute + upload + pauses; every duration is
      positive; staleness >= 0; bytes and FLOPs are positive, except those of failed tasks, which
      are not negative; a merged or failed task ended no later than its merge; no client runs two
      tasks at once; joules are not negative, and those of the tasks add up to the joules of their
      step, of the run and of all device groups; the failed tasks and the FLOPs, bytes and joules
      of the tasks that were not merged add up to the failed and wasted ones of step and run.
    """
    # Every comparison is written so that a NaN fails it.
    faults: list[str] = []
    merged_at = {0: 0.0}
    previous = 0.0
    told: dict[str, dict[int, float]] = {name: {} for name in _SUMMED}
    for row in metrics:
        now_s = row["virtual_s"]
        if not now_s >= previous:
            faults.append(f"step {row['step']}: virtual time fell from {previous} to {now_s}")
        previous = merged_at[row["step"]] = now_s
        for name in _SUMMED:
            if name in row:
                told[name][row["step"]] = row[name]
    free_s: dict[int, float] = {}
    spent: dict[str, dict[int, float]] = {name: {} for name in _SUMMED}
    for row in clients:
        name = f"step {row['step']}, client {row['client']}"
        start, end = row["dispatched_s"], row["arrived_s"]
        failed, paused_s = row["status"] == Status.FAILED.value, row.get("paused_s", 0.0)
        parts = row["download_s"], row["compute_s"], row["upload_s"], paused_s
        duration = sum(parts)
        if not (end > start if failed else duration - paused_s > 0) or not min(parts) >= 0:
            faults.append(f"{name}: lasts {duration} s")
        if not abs(start + duration - end) <= 1e-9 * max(1.0, abs(end)):
            faults.append(f"{name}: arrives at {end}, not at {start} + {duration}")
        least = min(row["bytes_down"], row["bytes_up"], row["flops"])
        if not (least >= 0 if failed else least > 0):
            faults.append(f"{name}: moves or computes nothing")
        if "joules" in row and not row["joules"] >= 0:
            faults.append(f"{name}: spends {row['joules']} J")
        for what, amount in _amounts(row).items():
            spent[what][row["step"]] = spent[what].get(row["step"], 0.0) + amount
        merge_s = merged_at.get(row["step"])
        if merge_s is None:
            faults.append(f"{name}: belongs to no recorded step")
            continue
        if not 0 <= row["version"] < row["step"]:
            faults.append(f"{name}: started from version {row['version']}")
        if row["status"] != Status.DROPPED.value and end > merge_s * (1 + 1e-12):
            faults.append(f"{name}: merged at {merge_s} before it arrived at {end}")
        if start < free_s.get(row["client"], 0.0) * (1 - 1e-12):
            faults.append(f"{name}: dispatched at {start} while busy")
        free_s[row["client"]] = min(end, merge_s)
    sums = (_sum_faults(name, spent[name], told[name], summary or {}) for name in _SUMMED)
    return [*faults, *itertools.chain.from_iterable(sums)]


def _amounts(row: Mapping[str, Any]) -> dict[str, float]:
    """What a task adds to the sums of its step, by their names."""
    status = row["status"]
    lost = status not in (Status.MERGED.value, Status.PARTIAL.value, "probed")
    # The upload of a dropped task does not take place.
    moved = row["bytes_down"] + (row["bytes_up"] if status != Status.DROPPED.value else 0)
    amounts = {
        "failed": float(status == Status.FAILED.value),
        "wasted_flops": lost * row["flops"],
        "wasted_bytes": float(lost * moved),
    }
    if "joules" in row:
        amounts |= {"joules": row["joules"], "wasted_joules": lost * row["joules"]}
    return amounts


def _sum_faults(
    name: str,
    spent: Mapping[int, float],
    told: Mapping[int, float],
    summary: Mapping[str, Any],
) -> list[str]:
    """Sums that differ from those of the tasks.

    Args:
      name: name of the sum.
      spent: amounts of the tasks of each step, summed.
      told: value in the row of each step.
      summary: summary of the run, or nothing.
    """
    # Steps that an earlier version recorded have no waste.
    required = name == "joules"
    steps = sorted({*spent, *told} if required else told)
    sums = [(f"step {step}", told.get(step), spent.get(step, 0.0)) for step in steps]
    if name in summary and (required or set(spent) <= set(told)):
        total = sum(spent.values())
        sums.append(("run", summary[name], total))
        if name == "joules":
            sums.append(("device groups", sum(summary["joules_by_group"]), total))
    unit = _SUMMED[name]
    return [
        f"{what}: {found} {unit}, but its tasks add up to {tasks} {unit}"
        for what, found, tasks in sums
        if found is None or not abs(found - tasks) <= 1e-9 * max(1.0, tasks)
    ]
