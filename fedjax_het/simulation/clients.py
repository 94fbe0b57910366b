"""Settled tasks as the server sees them, for the records and for selections that learn."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_het.contract.clock import Closing, Flight
from fedjax_het.contract.selection import Seen
from fedjax_het.engine.efforts import effort_of
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
    lasts_s = effort_of(flight, closing, problem.fleet.presence).lasts_s
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
