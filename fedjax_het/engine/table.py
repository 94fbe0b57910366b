"""The table of what is in flight: a row per task, with what it takes to train and merge it."""

from typing import NamedTuple

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.clock import Flight
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Timing


class Tasks(NamedTuple):
    """Columns of the table.

    Attributes:
      flight: who, since when, until when.
      first, exit, cut: int64[m], the planned route; -1 for None.
      batch, weight, rows, notes: as in `Plan`.
      slot: int64[m], where the result lies; -1 while untrained.
      loss, samples, finite: what training reported; NaN, 0 and True while untrained.
      info: stacked `ClientResult.info`, zeros while untrained; None if there is none.
    """

    flight: Flight
    first: np.ndarray
    exit: np.ndarray
    cut: np.ndarray
    batch: np.ndarray
    weight: np.ndarray
    rows: PyTree
    notes: PyTree
    slot: np.ndarray
    loss: np.ndarray
    samples: np.ndarray
    finite: np.ndarray
    info: PyTree

    @property
    def size(self) -> int:
        """The number of rows, m."""
        return len(self.slot)

    def rows_of(self, index: np.ndarray) -> "Tasks":
        """The rows at these places."""
        return jax.tree.map(lambda a: a[index], self)

    def plan(self) -> Plan:
        """The tasks in the form of a plan; what their version shared is not in it."""
        return Plan(
            clients=self.flight.client,
            routes=[
                Route(int(first), *(None if place < 0 else int(place) for place in rest))
                for first, *rest in zip(self.first, self.exit, self.cut, strict=True)
            ],
            steps=self.flight.steps,
            batch=self.batch,
            weight=self.weight,
            timing=self.flight.timing,
            rows=self.rows,
            notes=self.notes,
        )


def table_of(plan: Plan, flight: Flight, info: PyTree) -> Tasks:
    """The rows of the tasks that a plan sends out, untrained.

    Args:
      plan: the plan.
      flight: its tasks as they leave.
      info: one client's `ClientResult.info`, as `ShapeDtypeStruct`s.
    """
    k = len(plan.clients)
    return Tasks(
        flight=flight._replace(timing=Timing(*map(np.asarray, flight.timing))),
        first=np.asarray([route.first for route in plan.routes], np.int64),
        exit=np.asarray([-1 if r.exit is None else r.exit for r in plan.routes], np.int64),
        cut=np.asarray([-1 if r.cut is None else r.cut for r in plan.routes], np.int64),
        batch=np.asarray(plan.batch),
        weight=np.asarray(plan.weight),
        rows=jax.tree.map(np.asarray, plan.rows),
        notes=jax.tree.map(np.asarray, plan.notes),
        slot=np.full(k, -1, np.int64),
        loss=np.full(k, np.nan, np.float32),
        samples=np.zeros(k, np.int64),
        finite=np.ones(k, bool),
        info=jax.tree.map(lambda a: np.zeros((k, *a.shape), a.dtype), info),
    )
