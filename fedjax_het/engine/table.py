"""The table of tasks in flight: one row per task, with all values needed to train and merge it."""

from typing import NamedTuple

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.clock import Flight
from fedjax_het.contract.masks import decoded
from fedjax_het.contract.plan import Plan
from fedjax_het.engine.rows import Outputs


class Tasks(NamedTuple):
    """The columns of the table.

    Attributes:
      flight: client, version, times and steps of each task.
      route: `Route.code` of the planned route, int64[m, 6].
      batch, weight, rows, notes: columns of the `Plan`.
      slot: slot of the result, int64[m]; -1 while the task is not trained.
      loss, square_loss, samples, finite: values that training reported; NaN, NaN, 0 and True before
        training.
      info: stacked `ClientResult.info`, zeros before training; None if there is none.
    """

    flight: Flight
    route: np.ndarray
    batch: np.ndarray
    weight: np.ndarray
    rows: PyTree
    notes: PyTree
    slot: np.ndarray
    loss: np.ndarray
    square_loss: np.ndarray
    samples: np.ndarray
    finite: np.ndarray
    info: PyTree

    @property
    def size(self) -> int:
        """Number m of rows."""
        return len(self.slot)

    @property
    def outputs(self) -> Outputs:
        """The values that training reported."""
        return Outputs(self.loss, self.square_loss, self.samples, self.finite, self.info)

    def rows_of(self, index: np.ndarray) -> "Tasks":
        """The rows with these indices."""
        return jax.tree.map(lambda a: a[index], self)

    def counting(self, steps: np.ndarray) -> "Tasks":
        """The tasks with these local steps, int64[m]."""
        return self._replace(flight=self.flight._replace(steps=steps))

    def plan(self) -> Plan:
        """The tasks as a plan, without `Plan.shared`, which depends on the version."""
        return Plan(
            clients=self.flight.client,
            routes=[decoded(code) for code in self.route],
            steps=self.flight.steps,
            batch=self.batch,
            weight=self.weight,
            timing=self.flight.timing,
            rows=self.rows,
            notes=self.notes,
        )


def table_of(plan: Plan, flight: Flight, info: PyTree) -> Tasks:
    """The rows of a plan's tasks, not trained yet.

    Args:
      plan: plan of the tasks.
      flight: tasks in flight after their dispatch.
      info: value of `ClientResult.info` for one client, as `ShapeDtypeStruct`s.
    """
    k = len(plan.clients)
    return Tasks(
        flight=flight._replace(timing=jax.tree.map(np.asarray, flight.timing)),
        route=np.asarray([route.code for route in plan.routes], np.int64).reshape(k, -1),
        batch=np.asarray(plan.batch),
        weight=np.asarray(plan.weight),
        rows=jax.tree.map(np.asarray, plan.rows),
        notes=jax.tree.map(np.asarray, plan.notes),
        slot=np.full(k, -1, np.int64),
        loss=np.full(k, np.nan, np.float32),
        square_loss=np.full(k, np.nan, np.float32),
        samples=np.zeros(k, np.int64),
        finite=np.ones(k, bool),
        info=jax.tree.map(lambda a: np.zeros((k, *a.shape), a.dtype), info),
    )
