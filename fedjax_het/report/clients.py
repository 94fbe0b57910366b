"""The target metric client by client, at the last evaluation at which it was recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_het.report.records import RunRecord
from fedjax_het.report.units import Spread, spread, spread_data


@dataclass(frozen=True)
class ClientValues:
    """The target metric of each client of one run; clients without a finite value are left out.

    Attributes:
      step: server step of the evaluation.
      client: ids, int64[clients].
      values: metric of the server's model, float64[clients].
      personal: metric of the client's model after its local training, float64[clients]; NaN for
        clients without it.
      train_samples: number of training samples, int64[clients]; 0 for a client that only tests.
      has_device: whether the client belongs to a device group, bool[clients].
      own: whether the value is of the client's own test samples, bool[clients]; elsewhere it is
        made of the test set's class accuracies, weighted with the client's label shares.
    """

    step: int
    client: np.ndarray
    values: np.ndarray
    personal: np.ndarray
    train_samples: np.ndarray
    has_device: np.ndarray
    own: np.ndarray


def client_values(record: RunRecord) -> ClientValues | None:
    """The last evaluation of the clients; None if they were not evaluated one by one."""
    name = record.metric.name
    rows = [row for row in record.client_evaluations if row.get(name) is not None]
    if not rows:
        return None
    step = max(row["step"] for row in rows)
    rows = [row for row in rows if row["step"] == step]
    personal = [row.get(f"personal_{name}") for row in rows]
    return ClientValues(
        step=step,
        client=np.array([row["client"] for row in rows], np.int64),
        values=np.array([row[name] for row in rows], np.float64),
        personal=np.array([np.nan if v is None else v for v in personal], np.float64),
        train_samples=np.array([row["train_samples"] for row in rows], np.int64),
        has_device=np.array([row["device_group"] is not None for row in rows]),
        own=np.array([row["own"] for row in rows]),
    )


@dataclass(frozen=True)
class ClientSummary:
    """The target metric over the clients of a method's runs.

    Attributes:
      mean: mean over the clients, one value per seed that recorded them.
      lowest, highest: smallest and largest value of any client and seed.
      personal: mean over the clients after their local training; None if not recorded.
    """

    mean: Spread
    lowest: float
    highest: float
    personal: Spread | None

    def data(self) -> dict[str, Any]:
        """The entry of `comparison.json`."""
        return {
            "mean": spread_data(self.mean),
            "lowest": self.lowest,
            "highest": self.highest,
            "personal": spread_data(self.personal),
        }


def client_summary(runs: Sequence[RunRecord]) -> ClientSummary | None:
    """The summary of the runs of a method; None if no run evaluated its clients one by one."""
    found = [of for run in runs if (of := client_values(run)) is not None]
    if not found:
        return None
    personal = [of.personal[np.isfinite(of.personal)] for of in found]
    every = np.concatenate([of.values for of in found])
    return ClientSummary(
        mean=Spread(tuple(float(of.values.mean()) for of in found)),
        lowest=float(every.min()),
        highest=float(every.max()),
        personal=spread([float(p.mean()) for p in personal if p.size]),
    )
