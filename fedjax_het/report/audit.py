"""The audit of an event log: the invariants that every sound run satisfies."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedjax_het.contract.clock import Status


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
      summary: content of `summary.json`, whose totals of energy are checked; None for no check.

    Returns:
      Violations in words; empty if the log is sound. The invariants: virtual time never decreases;
      arrival = dispatch + download + compute + upload; every duration is positive; staleness >= 0;
      bytes and FLOPs are positive; a merged task arrived no later than its merge; no client runs
      two tasks at once; joules are not negative, and those of the tasks add up to the joules of
      their step, of the run and of all device groups.
    """
    # Every comparison is written so that a NaN fails it.
    faults: list[str] = []
    merged_at = {0: 0.0}
    previous = 0.0
    told: dict[int, float] = {}
    for row in metrics:
        now_s = row["virtual_s"]
        if not now_s >= previous:
            faults.append(f"step {row['step']}: virtual time fell from {previous} to {now_s}")
        previous = merged_at[row["step"]] = now_s
        if "joules" in row:
            told[row["step"]] = row["joules"]
    free_s: dict[int, float] = {}
    spent: dict[int, float] = {}
    for row in clients:
        name = f"step {row['step']}, client {row['client']}"
        start, end = row["dispatched_s"], row["arrived_s"]
        duration = row["download_s"] + row["compute_s"] + row["upload_s"]
        if not duration > 0 or min(row["download_s"], row["compute_s"], row["upload_s"]) < 0:
            faults.append(f"{name}: lasts {duration} s")
        if not abs(start + duration - end) <= 1e-9 * max(1.0, abs(end)):
            faults.append(f"{name}: arrives at {end}, not at {start} + {duration}")
        if not (row["bytes_down"] > 0 and row["bytes_up"] > 0 and row["flops"] > 0):
            faults.append(f"{name}: moves or computes nothing")
        if "joules" in row:
            if not row["joules"] >= 0:
                faults.append(f"{name}: spends {row['joules']} J")
            spent[row["step"]] = spent.get(row["step"], 0.0) + row["joules"]
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
    return [*faults, *_energy_faults(spent, told, summary or {})]


def _energy_faults(
    spent: Mapping[int, float], told: Mapping[int, float], summary: Mapping[str, Any]
) -> list[str]:
    """Totals of energy that the tasks do not add up to.

    Args:
      spent: joules of the tasks of each step, summed.
      told: joules in the row of each step.
      summary: summary of the run, or nothing.
    """
    steps = sorted({*spent, *told})
    sums = [(f"step {step}", told.get(step), spent.get(step)) for step in steps]
    if "joules" in summary:
        total = sum(spent.values())
        sums.append(("run", summary["joules"], total))
        sums.append(("device groups", sum(summary["joules_by_group"]), total))
    return [
        f"{what}: {found} J, but its tasks spent {tasks} J"
        for what, found, tasks in sums
        if found is None or tasks is None or not abs(found - tasks) <= 1e-9 * max(1.0, tasks)
    ]
