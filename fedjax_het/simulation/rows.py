"""The rows of a server step in the records: one per task, and one of totals."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_het.contract.clock import Closing, Flight
from fedjax_het.contract.plan import Plan
from fedjax_het.engine.efforts import effort_of
from fedjax_het.problem import Problem
from fedjax_het.simulation.clients import statuses
from fedjax_het.simulation.device_columns import joules, speeds
from fedjax_het.simulation.journal import Record
from fedjax_het.simulation.planned import PlannedRound
from fedjax_het.simulation.probes import probe_rows


def client_rows(
    step: int,
    flight: Flight,
    closing: Closing,
    plan: Plan,
    problem: Problem,
    outcome: Mapping[str, Any],
    released: bool = False,
) -> list[dict[str, Any]]:
    """One row per task of `clients.jsonl`.

    The row of a failed task has the seconds, bytes and FLOPs until its failure, which is its
    `arrived_s`; of a transfer, bytes are counted in proportion to the time.

    Args:
      step: number of the server step, from 1.
      flight: tasks as dispatched.
      closing: decision of the pace on these tasks.
      plan: plan of the tasks, for the routes.
      problem: problem, for the depth of the model and the devices.
      outcome: columns `loss`, `samples` and `finite`; entries of tasks that are not merged
        are ignored.
      released: whether a client is free once its result has arrived, and does not wait for the
        merge (a pace that refills).
    """
    timing, merges = flight.timing, closing.merges
    fleet, last = problem.fleet, problem.model.num_blocks - 1
    effort = effort_of(flight, closing, fleet.presence, released)
    levels = [route.width for route in plan.routes]
    bytes_down = _share(timing.bytes_down, effort.download)
    bytes_up = _share(timing.bytes_up, effort.upload)
    columns = {
        "client": flight.client,
        "version": flight.version,
        "staleness": step - 1 - flight.version,
        "dispatched_s": flight.dispatched_s,
        "arrived_s": flight.dispatched_s + effort.lasts_s,
        "download_s": timing.download_s * effort.download,
        "compute_s": timing.compute_s * effort.compute,
        "upload_s": timing.upload_s * effort.upload,
        **({"paused_s": effort.paused_s} if fleet.on_interrupt == "pause" else {}),
        "bytes_down": bytes_down,
        "bytes_up": bytes_up,
        "flops": timing.flops * effort.compute,
        **joules(problem, flight, effort),
        "device_flops_per_s": speeds(problem, flight),
        "first_block": [route.first for route in plan.routes],
        "exit_block": [last if route.exit is None else route.exit for route in plan.routes],
        "cut_block": [route.cut for route in plan.routes],
        # Level of the sub-network; absent in a step in which all train the complete network.
        **({"width_level": levels} if any(levels) else {}),
        "samples": np.where(merges, outcome["samples"], 0),
        "steps": np.where(merges, closing.steps, 0),
        "loss": np.where(merges, outcome["loss"].astype(np.float64), None),
        "status": statuses(closing, np.asarray(outcome["finite"])),
    }
    lists = [c.tolist() if isinstance(c, np.ndarray) else c for c in columns.values()]
    names = ("step", *columns)
    return [dict(zip(names, (step, *values), strict=True)) for values in zip(*lists, strict=True)]


def round_record(
    one: PlannedRound, problem: Problem, outcome: Mapping[str, Any], info: Mapping[str, Any]
) -> Record:
    """The record of a round at whose end no client is at work.

    Args:
      one: round that was run.
      problem: problem of the run.
      outcome: columns `loss`, `samples` and `finite` of its tasks.
      info: values that the merge and the method reported.
    """
    rows = probe_rows(one.step + 1, one.probes, problem)
    rows += client_rows(one.step + 1, one.flight, one.closing, one.plan, problem, outcome)
    metrics = {**step_row(rows), "info": {**info, **(one.plan.info or {})}}
    return Record(one.step + 1, one.closing.at_s, metrics, rows)


def _share(amount: np.ndarray, done: np.ndarray) -> np.ndarray:
    """Whole bytes of a part that was done, int64[k]."""
    return np.where(done < 1, np.rint(amount * done), amount).astype(np.int64)


def step_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The totals of a step: loss, bytes, joules if priced, tasks by status, and what was wasted.

    A dropped task counts its download but not its upload, which does not take place. The FLOPs,
    bytes and joules of tasks that were not merged are wasted; those of a dropped task are those of
    the whole task, as in its row. A probe counts with its bytes and joules, and is no task.
    """
    kept = [r for r in rows if r["status"] in ("merged", "partial")]
    lost = [r for r in rows if r["status"] not in ("merged", "partial", "probed")]
    dropped = [r for r in lost if r["status"] == "dropped"]
    not_sent = sum(r["bytes_up"] for r in dropped)
    samples = sum(r["samples"] for r in kept)
    loss = sum(r["loss"] * r["samples"] for r in kept) / samples if samples else None
    priced = bool(rows) and "joules" in rows[0]
    return {
        "train_loss": loss,
        "bytes_up": sum(r["bytes_up"] for r in rows) - not_sent,
        "bytes_down": sum(r["bytes_down"] for r in rows),
        **({"joules": sum(r["joules"] for r in rows)} if priced else {}),
        "clients": sum(r["status"] != "probed" for r in rows),
        "merged": len(kept),
        "dropped": len(dropped),
        "failed": sum(r["status"] == "failed" for r in lost),
        "nonfinite": [r["client"] for r in lost if r["status"] == "nonfinite"],
        "wasted_flops": sum(r["flops"] for r in lost),
        "wasted_bytes": sum(r["bytes_down"] + r["bytes_up"] for r in lost) - not_sent,
        **({"wasted_joules": sum(r["joules"] for r in lost)} if priced else {}),
    }
