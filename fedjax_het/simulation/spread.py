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
from fedjax_het.objectives.metric import Metric, as_column


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
            self._order = np.argsort(self._owner, kind="stable")
            self._ends = np.cumsum(np.bincount(self._owner))[:-1]
        elif classes_of(data):
            total = np.bincount(data.test_y, minlength=data.num_classes)
            held = data.label_counts()
            held *= total > 0
            of_client = held.sum(axis=1)
            self._shares = held / np.maximum(of_client, 1)[:, None]
            self._known = of_client > 0
            self._ids = np.arange(data.num_clients)
        else:
            self._ids = np.zeros(0, np.int64)

    @property
    def ids(self) -> np.ndarray:
        """Ids of the clients, ascending, in the order of `values`, int64[k]."""
        return self._ids

    @property
    def _samples(self) -> np.ndarray:
        """Number of test samples from which the value of each client is made, int64[k]."""
        if self._data.test_client is not None:
            return np.bincount(self._owner)
        if self._shares is None:
            return np.zeros(0, np.int64)
        total = np.bincount(self._data.test_y, minlength=self._shares.shape[1])
        return (self._shares > 0) @ total

    def columns(self) -> dict[str, list[Any]]:
        """The columns that describe the clients, in the order of `values`."""
        sizes = np.append(self._data.sizes, np.zeros(len(self._ids), np.int64))
        trains = self._ids < self._data.num_clients
        names = self._data.ids
        return {
            "client": self._ids.tolist(),
            **({} if names is None else {"id": names[self._ids].astype(str).tolist()}),
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
    ) -> np.ndarray | None:
        """The metric of every client, float64[k], NaN where it is not defined.

        A metric of the kind "mean" is computed for all clients at once, others client by client.

        Args:
          metric: metric to compute.
          measured: its measurements of all test samples, leading axis N_test.
          client: only client to compute, if no sample has an owner; None for all.

        Returns:
          The values in the order of `ids`; None if they cannot be known, or are not numbers.
        """
        if self._data.test_client is not None:
            return self._own(metric, measured)
        if self._shares is None or metric.kind != "mean":
            return None
        value, weight = (np.asarray(a, np.float64) for a in measured)
        y, classes = self._data.test_y, self._shares.shape[1]
        total = np.bincount(y, weights=weight, minlength=classes)
        sums = np.bincount(y, weights=value * weight, minlength=classes)
        chosen = slice(None) if client is None else slice(client, client + 1)
        means = self._shares[chosen] @ (sums / np.where(total > 0, total, 1.0))
        return _defined(metric, means, self._known[chosen])

    def _own(self, metric: Metric, measured: PyTree) -> np.ndarray | None:
        if metric.kind == "mean":
            value, weight = (np.asarray(a, np.float64) for a in measured)
            total = np.bincount(self._owner, weights=weight)
            sums = np.bincount(self._owner, weights=value * weight)
            return _defined(metric, sums / np.where(total > 0, total, 1.0), total > 0)
        parts = jax.tree.map(lambda a: np.split(a[self._order], self._ends), measured)
        leaves, structure = jax.tree.flatten(parts, is_leaf=lambda p: isinstance(p, list))
        return as_column(
            [metric.over(jax.tree.unflatten(structure, own)) for own in zip(*leaves, strict=True)]
        )


def _defined(metric: Metric, means: np.ndarray, known: np.ndarray) -> np.ndarray | None:
    """The metric where its mean is known, NaN elsewhere, float64[k]."""
    if known.all():
        return metric.of_each(means)
    found = metric.of_each(means[known])
    if found is None:
        return None
    values = np.full(len(known), np.nan)
    values[known] = found
    return values
