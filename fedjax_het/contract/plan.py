"""A plan: who trains what, from which model, at what price on the virtual clock."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.masks import Route


class Timing(NamedTuple):
    """Price of each client's task, NumPy arrays of length k; durations are positive in sum."""

    download_s: np.ndarray  # float64[k]
    compute_s: np.ndarray  # float64[k]
    upload_s: np.ndarray  # float64[k]
    bytes_down: np.ndarray  # int64[k]
    bytes_up: np.ndarray  # int64[k]
    flops: np.ndarray  # float64[k]

    @property
    def total_s(self) -> np.ndarray:
        """Seconds from dispatch to arrival, float64[k]."""
        return self.download_s + self.compute_s + self.upload_s


class Plan(NamedTuple):
    """Who trains what, on how many samples, and what it costs; one row a client task.

    Attributes:
      clients: int64[k], distinct client ids.
      routes: k static descriptions of the work that may not be left out; each covers its mask.
      steps: int32[k], local optimiser steps (>= 1).
      batch: int32[k], samples per local mini-batch (>= 1).
      weight: float32[k], aggregation weight a_i (> 0).
      timing: what the tasks cost on the virtual clock.
      rows: pytree of arrays with leading axis k, one row per client (a depth, a density, last
        round's logits ...); handed to `Algorithm.mask`, to the local update and to the merge.
      notes: pytree of NumPy arrays with leading axis k that stay on the host, for `observe`.
      shared: pytree broadcast to every client and to `merge` (a ranking, a bias correction ...).
      learning_rate_scale: factor on the local updates of this round.
      deadline_s: seconds after dispatch at which a deadline pace closes the round.
      info: names to numbers, what there is to record of the plan.
    """

    clients: np.ndarray
    routes: Sequence[Route]
    steps: np.ndarray
    batch: np.ndarray
    weight: np.ndarray
    timing: Timing
    rows: PyTree = None
    notes: PyTree = None
    shared: PyTree = None
    learning_rate_scale: float = 1.0
    deadline_s: float = float("inf")
    info: Mapping[str, Any] | None = None

    def take(self, index: np.ndarray, steps: np.ndarray | None = None) -> "Plan":
        """The tasks at these places, with other local steps if given (of every task, int64[k])."""

        def of(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda a: np.asarray(a)[index], tree)

        return self._replace(
            clients=self.clients[index],
            routes=[self.routes[i] for i in index],
            steps=np.asarray(self.steps if steps is None else steps)[index],
            batch=self.batch[index],
            weight=self.weight[index],
            timing=Timing(*of(tuple(self.timing))),
            rows=of(self.rows),
            notes=of(self.notes),
        )


class Situation(NamedTuple):
    """What `plan` may look at besides its own state.

    Attributes:
      round: server step about to start, from 0.
      now_s: virtual time of the dispatch.
      clients: int64[k], the sampled cohort, all available at `now_s`.
      key: typed PRNG key of this round, for device work inside the plan.
      rng: NumPy generator of this round, for draws on the host.
      accuracy: on the test set, if the model has been evaluated since the last plan.
    """

    round: int
    now_s: float
    clients: np.ndarray
    key: jax.Array
    rng: np.random.Generator
    accuracy: float | None = None
