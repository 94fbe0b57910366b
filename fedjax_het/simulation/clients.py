"""Settled tasks as the server sees them, for the records and for selections that learn."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_het.contract.clock import Closing, Flight, Status
from fedjax_het.contract.selection import Seen


def statuses(closing: Closing, finite: np.ndarray) -> list[str]:
    """The status of each task in the records.

    Args:
      closing: decision of the pace.
      finite: whether each update is finite, bool[k]; ignored for dropped tasks.
    """
    return [
        "nonfinite" if status is not Status.DROPPED and not fine else status.value
        for status, fine in zip(closing.status, finite, strict=True)
    ]


def worked_s(flight: Flight, closing: Closing) -> tuple[np.ndarray, np.ndarray]:
    """Share of its computation that each task does, and its seconds from dispatch to arrival.

    Dropped tasks count as whole ones.

    Args:
      flight: tasks as dispatched.
      closing: decision of the pace on these tasks.

    Returns:
      Shares float64[k], and seconds float64[k].
    """
    partial = np.asarray([status is Status.PARTIAL for status in closing.status])
    done = np.where(partial, closing.steps / flight.steps, 1.0)
    timing = flight.timing
    return done, timing.download_s + timing.compute_s * done + timing.upload_s


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
    sizes: np.ndarray,
) -> Seen:
    """The tasks of a server step for a selection.

    Args:
      step: number of the server step, from 0.
      flight: tasks as dispatched.
      closing: decision of the pace on these tasks.
      outcome: columns of `outcome_of`, perhaps not computed yet.
      sizes: number of training samples of every client, int64[n].
    """
    names = ("loss", "square_loss", "samples", "finite")
    loss, square_loss, samples, finite = jax.device_get([outcome[name] for name in names])
    status = np.asarray(statuses(closing, finite))
    dropped = status == "dropped"
    merged = ~dropped & (status != "nonfinite")
    _, whole_s = worked_s(flight, closing)
    waited_s = closing.at_s - flight.dispatched_s
    return Seen(
        round=step,
        clients=flight.client,
        status=status,
        loss=np.where(merged, loss.astype(np.float64), np.nan),
        square_loss=np.where(merged, square_loss.astype(np.float64), np.nan),
        samples=np.where(dropped, 0, samples).astype(np.int64),
        sizes=sizes[flight.client],
        duration_s=np.where(dropped, waited_s, whole_s),
    )
