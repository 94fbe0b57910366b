"""A plan: the tasks of the clients of a round, and their prices on the virtual clock."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import INT32
from fedjax_het.common.types import PyTree
from fedjax_het.contract.masks import Route


class Timing(NamedTuple):
    """Price of each client's task, NumPy arrays of length k; the sum of durations is positive."""

    download_s: np.ndarray  # float64[k]
    compute_s: np.ndarray  # float64[k]
    upload_s: np.ndarray  # float64[k]
    bytes_down: np.ndarray  # int64[k]
    bytes_up: np.ndarray  # int64[k]
    flops: np.ndarray  # float64[k]
    latency_s: np.ndarray | None = None  # float64[k], the part of each transfer without bytes

    @property
    def total_s(self) -> np.ndarray:
        """Seconds from dispatch to arrival, float64[k]."""
        return self.download_s + self.compute_s + self.upload_s

    def moving(
        self, *, bytes_down: np.ndarray | None = None, bytes_up: np.ndarray | None = None
    ) -> "Timing":
        """The timing of the same tasks if they move other numbers of bytes.

        Every transfer keeps its latency and its mean rate, that of a recorded trace included.

        Args:
          bytes_down: bytes of each download, int64[k]; None for those of now.
          bytes_up: bytes of each upload, int64[k]; None for those of now.
        """
        fixed_s = 0.0 if self.latency_s is None else self.latency_s

        def of(duration_s: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
            moving_s = np.where(before > 0, duration_s - fixed_s, 0.0)
            return duration_s - moving_s + moving_s * after / np.maximum(before, 1)

        timing = self
        if bytes_down is not None:
            down_s = of(self.download_s, self.bytes_down, bytes_down)
            timing = timing._replace(download_s=down_s, bytes_down=bytes_down.astype(np.int64))
        if bytes_up is not None:
            up_s = of(self.upload_s, self.bytes_up, bytes_up)
            timing = timing._replace(upload_s=up_s, bytes_up=bytes_up.astype(np.int64))
        return timing


class Plan(NamedTuple):
    """The tasks of the clients, their sizes and their prices; one row per client task.

    Attributes:
      clients: distinct client ids, int64[k].
      routes: static descriptions of the work that may not be skipped, length k; each covers the
        mask of its task.
      steps: local optimiser steps (>= 1), int32[k].
      batch: samples per local mini-batch (>= 1), int32[k].
      weight: aggregation weight a_i (> 0), float32[k].
      timing: prices of the tasks on the virtual clock.
      rows: pytree of arrays with leading axis k, one row per client (a depth, a density, the logits
        of the last round ...); passed to `Algorithm.mask`, to the local update and to the merge.
      notes: pytree of NumPy arrays with leading axis k that stay on the host, for `observe`.
      shared: pytree that is broadcast to every client and to `merge` (a ranking, a bias correction
        ...).
      learning_rate_scale: factor on the local updates of this round.
      deadline_s: seconds after dispatch at which a deadline pace closes the round.
      info: numbers by name, to record with the step, or None.
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
        """The tasks with these indices; `steps`, int64[k], replaces the steps of all tasks."""

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


def require_countable(plan: Plan) -> None:
    """Raises `InputError` unless the steps, and the samples, of every task fit 32 bits."""
    steps, batch = np.asarray(plan.steps), np.asarray(plan.batch)
    # In float64, which cannot wrap.
    samples = steps.astype(np.float64) * batch
    whole = steps.dtype.kind in "iu" and batch.dtype.kind in "iu"
    bad = np.flatnonzero(~((samples <= INT32) & (steps <= INT32) & (batch <= INT32)))
    require(
        whole and bad.size == 0,
        lambda: (
            f"client {plan.clients[bad[:1]]} with steps = {steps[bad[:1]]} of {steps.dtype}, "
            f"batch = {batch[bad[:1]]} of {batch.dtype}"
        ),
        f"must be whole numbers, and at most {INT32} samples in all, which programs count in 32 "
        "bits",
        "plan fewer steps",
    )


class Question(NamedTuple):
    """What a plan asks the clients of its cohort to measure on their own samples.

    `Algorithm.measure` answers it for one client, `Situation.measure` for a cohort, whose fields
    have a leading axis k where this is said.

    Attributes:
      client: client id, int32; for a cohort ids, int64[k].
      key: typed PRNG key of the client, `fold_in(key of the round, client)`; for a cohort that of
        the round.
      row: pytree of numbers of the client; for a cohort with leading axis k.
      learning_rate_scale: factor on the local updates of the round, float32.
    """

    client: Any
    key: jax.Array
    row: PyTree
    learning_rate_scale: Any


class Situation(NamedTuple):
    """The input of `plan` besides state and model.

    Attributes:
      round: number of the server step about to start, from 0.
      now_s: virtual time of the dispatch in seconds; for a `Schedule` that plans clients `apart`
        under a pace that refills perhaps that of each client, float64[k].
      clients: ids of the selected cohort, all available at `now_s`, int64[k].
      key: typed PRNG key of this round, for device work inside the plan.
      rng: NumPy generator of this round, for draws on the host.
      score: target metric on the test set, negative if lower is better, if the model has been
        evaluated since the last plan; else None.
      measure: function `(variables, Question) -> answers` that asks the cohort, wherever its
        samples are, and returns the answers stacked; None if they are those of the problem.
    """

    round: int
    now_s: float | np.ndarray
    clients: np.ndarray
    key: jax.Array
    rng: np.random.Generator
    score: float | None = None
    measure: Callable[[Any, Question], PyTree] | None = None


@dataclass(frozen=True)
class Schedule:
    """A plan that depends on nothing that is learned: not on the model, the state or a score.

    If `Algorithm.plan` is a `Schedule`, `observe` is None and `select` is no `Selector`, batches of
    rounds are planned first and then run in one program, without returning to the host in between.
    A plan of any other type is called before every round.

    Attributes:
      tasks: function `(Situation) -> Plan`.
      apart: whether the i-th row of a plan is the task of the i-th client whatever the others are,
        and `Situation.now_s` may differ between the clients. The clients that a pace refills
        between two merges are then planned several at a time.
    """

    tasks: Callable[[Situation], Plan]
    apart: bool = False

    def amended(self, amend: Callable[[Situation, Plan], Plan]) -> "Schedule":
        """The schedule whose plans are changed row by row, or in what all rows share."""
        return replace(self, tasks=lambda situation: amend(situation, self.tasks(situation)))

    def __call__(
        self, state: PyTree, variables: PyTree, situation: Situation
    ) -> tuple[Plan, PyTree]:
        """The function `Algorithm.plan`."""
        del variables
        return self.tasks(situation), state
