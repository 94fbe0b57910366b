"""A metric client by client, from the measurements of all test samples.

If the data say which client owns a test sample, the metric of a client is that of its own samples.
Otherwise, for classes, it is the mean of the metric per class, weighted with the client's label
shares: an estimate for a client whose samples differ from others only in their labels.
"""

from typing import Any

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.data.federated import FederatedData
from fedjax_het.objectives.metric import Metric


def classes_of(data: FederatedData) -> bool:
    """Whether every test sample has one class, so that clients can be weighted by their labels."""
    return data.test_y.ndim == 1 and data.num_classes > 0


class Spread:
    """The clients that can be evaluated, and their test samples.

    Args:
      data: federated data.
    """

    def __init__(self, data: FederatedData):
        self._data = data
        self._shares: np.ndarray | None = None
        if data.test_client is not None:
            self._ids, self._owner = np.unique(data.test_client, return_inverse=True)
            self._samples = np.bincount(self._owner)
            self._order = np.argsort(self._owner, kind="stable")
            self._ends = np.cumsum(self._samples)[:-1]
        elif classes_of(data):
            total = np.bincount(data.test_y, minlength=data.num_classes)
            shares = data.label_counts() * (total > 0)
            self._shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1)
            self._ids = np.arange(data.num_clients)
            self._samples = (shares > 0) @ total
        else:
            self._ids = self._samples = np.zeros(0, np.int64)

    def columns(self) -> dict[str, list[Any]]:
        """The columns that describe the clients, in the order of `values`."""
        sizes = np.append(self._data.sizes, np.zeros(len(self._ids), np.int64))
        trains = self._ids < self._data.num_clients
        return {
            "client": self._ids.tolist(),
            "samples": self._samples.tolist(),
            "train_samples": np.where(trains, sizes[np.where(trains, self._ids, -1)], 0).tolist(),
            "own": [self._data.test_client is not None] * len(self._ids),
        }

    @property
    def most(self) -> int:
        """Largest number of test samples of a client."""
        return int(np.max(self._samples))

    def samples(self, client: int) -> np.ndarray | None:
        """Ids of the client's own test samples, int64[m]; None if no sample has an owner."""
        owner = self._data.test_client
        return None if owner is None else np.flatnonzero(owner == client)

    def values(
        self, metric: Metric, measured: PyTree, client: int | None = None
    ) -> list[Any] | None:
        """The metric of every client; None if it cannot be known.

        Args:
          metric: metric to compute.
          measured: its measurements of all test samples, leading axis N_test.
          client: only client to compute, if no sample has an owner; None for all.
        """
        if self._data.test_client is not None:
            return self._own(metric, measured)
        if self._shares is None or metric.kind != "mean":
            return None
        value, weight = (np.asarray(a, np.float64) for a in measured)
        y, classes = self._data.test_y, self._shares.shape[1]
        total = np.bincount(y, weights=weight, minlength=classes)
        sums = np.bincount(y, weights=value * weight, minlength=classes)
        shares = self._shares if client is None else self._shares[client : client + 1]
        means = shares @ (sums / np.where(total > 0, total, 1.0))
        known = shares.sum(axis=1) > 0
        return [metric.finished(m) if k else None for m, k in zip(means, known)]

    def _own(self, metric: Metric, measured: PyTree) -> list[Any]:
        if metric.kind == "mean":
            value, weight = (np.asarray(a, np.float64) for a in measured)
            total = np.bincount(self._owner, weights=weight)
            sums = np.bincount(self._owner, weights=value * weight)
            means = sums / np.where(total > 0, total, 1.0)
            return [metric.finished(m) if t > 0 else None for m, t in zip(means, total)]
        parts = jax.tree.map(lambda a: np.split(a[self._order], self._ends), measured)
        leaves, structure = jax.tree.flatten(parts, is_leaf=lambda p: isinstance(p, list))
        return [
            metric.over(jax.tree.unflatten(structure, own)) for own in zip(*leaves, strict=True)
        ]
