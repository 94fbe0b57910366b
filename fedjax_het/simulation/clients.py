"""Settled tasks as the server sees them, for the records and for selections that learn."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.contract.clock import Closing, Flight, Status
from fedjax_het.contract.selection import Seen
from fedjax_het.fleet.availability import Availability
from fedjax_het.problem import Problem


def statuses(closing: Closing, finite: np.ndarray) -> list[str]:
    """The status of each task in the records.

    Args:
      closing: decision of the pace.
      finite: whether each update is finite, bool[k]; ignored where none arrived.
    """
    return [
        "nonfinite" if bad else status.value
        for status, bad in zip(closing.status, closing.merges & ~finite, strict=True)
    ]


class Work(NamedTuple):
    """What devices did for their tasks until those ended, arrays of length k.

    Dropped tasks count as whole ones.

    Attributes:
      download, compute, upload: share of each part that was done, float64[k].
      paused_s: seconds for which the task was suspended, float64[k].
      lasts_s: seconds from dispatch to arrival or failure, float64[k].
    """

    download: np.ndarray
    compute: np.ndarray
    upload: np.ndarray
    paused_s: np.ndarray
    lasts_s: np.ndarray


def work_of(flight: Flight, closing: Closing, presence: Availability) -> Work:
    """What devices did for the tasks that a step settled.

    Args:
      flight: tasks as dispatched.
      closing: decision of the pace on these tasks.
      presence: times at which the devices are on, for the pauses of partial tasks.
    """
    partial = np.asarray([status is Status.PARTIAL for status in closing.status])
    done = np.where(partial, closing.steps / flight.steps, 1.0)
    timing, whole = flight.timing, np.ones(len(done))
    lasts_s = timing.download_s + timing.compute_s * done + timing.upload_s
    if flight.interruptions is None:
        return Work(whole, done, whole, np.zeros(len(done)), lasts_s)
    paused_s, failed = flight.interruptions.paused_s, closing.fails
    if paused_s.any() and partial.any():
        # The pauses of the flight are those of the whole task.
        who, start_s = flight.client, flight.dispatched_s
        ends_s = presence.spent_at(who, start_s, lasts_s)
        stops = partial & (presence.on_until(who, start_s) < start_s + lasts_s)
        paused_s = np.where(partial, 0.0, paused_s)
        paused_s = np.where(stops, ends_s - start_s - lasts_s, paused_s)
    worked_s = flight.ends_s - flight.dispatched_s - paused_s

    def share(whole: np.ndarray, begins_s: np.ndarray | float, part_s: np.ndarray) -> np.ndarray:
        after_s = worked_s - begins_s
        done = np.divide(after_s, part_s, out=(after_s >= 0) * 1.0, where=part_s > 0)
        return np.where(failed, np.clip(done, 0.0, 1.0), whole)

    return Work(
        download=share(whole, 0.0, timing.download_s),
        compute=share(done, timing.download_s, timing.compute_s),
        upload=share(whole, timing.download_s + timing.compute_s, timing.upload_s),
        paused_s=paused_s,
        lasts_s=np.where(failed, flight.ends_s - flight.dispatched_s, lasts_s + paused_s),
    )


def outcome_of(ran: np.ndarray, k: int, out: Any | None) -> dict[str, np.ndarray]:
    """Columns `loss`, `square_loss`, `samples` and `finite` of k tasks.

    Args:
      ran: indices of the tasks whose work counts, int64[r].
      k: number of tasks.
      out: `Outputs` of those tasks, NumPy; None if there are none.
    """
    outcome: dict[str, np.ndarray] = {
        "loss": np.full(k, np.nan, np.float32),
        "square_loss": np.full(k, np.nan, np.float32),
        "samples": np.zeros(k, np.int64),
        "finite": np.ones(k, bool),
    }
    if out is not None:
        for name, column in outcome.items():
            column[ran] = getattr(out, name)
    return outcome


def seen_of(
    step: int,
    flight: Flight,
    closing: Closing,
    outcome: Mapping[str, Any],
    problem: Problem,
) -> Seen:
    """The tasks of a server step for a selection.

    Args:
      step: number of the server step, from 0.
      flight: tasks as dispatched.
      closing: decision of the pace on these tasks.
      outcome: columns of `outcome_of`, perhaps not computed yet.
      problem: problem, for the samples of the clients and their devices.
    """
    names = ("loss", "square_loss", "samples", "finite")
    loss, square_loss, samples, finite = jax.device_get([outcome[name] for name in names])
    status = np.asarray(statuses(closing, finite))
    merged = np.isin(status, ("merged", "partial"))
    waited_s = closing.at_s - flight.dispatched_s
    lasts_s = work_of(flight, closing, problem.fleet.presence).lasts_s
    return Seen(
        round=step,
        clients=flight.client,
        status=status,
        loss=np.where(merged, loss.astype(np.float64), np.nan),
        square_loss=np.where(merged, square_loss.astype(np.float64), np.nan),
        samples=np.where(closing.merges, samples, 0).astype(np.int64),
        sizes=problem.data.sizes[flight.client],
        duration_s=np.where(status == "dropped", waited_s, lasts_s),
    )
