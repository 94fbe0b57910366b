"""Slots for results that wait for their merge: one per client at work, as far as memory allows."""

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.plan import Plan
from fedjax_het.engine.engine import Engine
from fedjax_het.engine.results import Origin, Results, cleared, no_results, stacked
from fedjax_het.engine.routes import Routes
from fedjax_het.engine.rows import Outputs
from fedjax_het.engine.table import Tasks
from fedjax_het.runtime.chunking import power_of_two

# Memory for waiting results, in bytes; if there are more clients at work, they share the slots.
RESULT_BYTES = {"cpu": 2e9, "other": 16e9}


class Slots:
    """Stores the results of tasks in slots, and merges them from there.

    Args:
      engine: engine that trains and merges.
      routes: routes of the run.
      capacity: largest number of slots.

    Attributes:
      results: content of the slots; None before the first is filled.
    """

    def __init__(self, engine: Engine, routes: Routes, capacity: int):
        self._engine, self._routes, self._capacity = engine, routes, capacity
        self.results: Results | None = None

    def number(self, variables: Variables) -> int:
        """Number of slots for results of a model of this size."""
        each = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
        fitting = RESULT_BYTES["cpu" if jax.default_backend() == "cpu" else "other"] / max(each, 1)
        return int(np.clip(fitting, 1, self._capacity))

    def empty(self, slots: int, plan: Plan, origin: Origin) -> Results:
        """Empty slots for the results of tasks of such a plan."""
        aux = self._engine.result_shapes(plan, *origin).aux
        return no_results(slots, origin.variables, aux)

    def store(
        self,
        tasks: Tasks,
        slot: np.ndarray,
        slots: int,
        origins: dict[int, Origin],
        merge: PyTree,
    ) -> Outputs:
        """Trains tasks side by side, each from its own version into its own slot.

        Args:
          tasks: tasks to train.
          slot: slot for each result, int64[m].
          slots: number of all slots.
          origins: origins by version number.
          merge: accumulator of the merge, whose buffers the clients may read.

        Returns:
          The `Outputs` of the tasks.
        """
        plan, version = tasks.plan(), tasks.flight.version
        routes = self._routes.execute(plan)
        if self.results is None:
            self.results = self.empty(slots, plan, origins[int(version[0])])
        if self._engine.resources.place.size > 1:
            # Each device starts from zeros, and their sums are added to the slots' content, which
            # must therefore be cleared. Padding with a slot that does not exist keeps the number of
            # sizes, and so of programs, small.
            padded = np.full(power_of_two(slot.size, up=True), slots, np.int32)
            padded[: slot.size] = slot
            self.results = cleared(self.results, padded)
        origin, index = stacked(origins, version)
        self.results, out = self._engine.run(
            "store",
            self.results,
            plan,
            *origin,
            routes=routes,
            version=index,
            slot=slot,
            merge=merge,
            capacity=slots,
        )
        return out

    def fetch(
        self,
        acc: PyTree,
        tasks: Tasks,
        place: np.ndarray,
        origins: dict[int, Origin],
        step: int,
    ) -> PyTree:
        """Adds the results of tasks to an accumulator of the method's merge, on one device.

        Args:
          acc: accumulator; its memory is reused.
          tasks: tasks whose results are in their slots.
          place: number of each task among those of the merge, int64[m].
          origins: origins by version number.
          step: number of the server step, from 0.

        Returns:
          The accumulator.
        """
        assert self.results is not None
        resources, version = self._engine.resources, tasks.flight.version
        origin, index = stacked(origins, version)
        return self._engine.run(
            "fetch",
            acc,
            tasks.plan(),
            *origin,
            routes=[resources.full] * tasks.size,
            version=index,
            staleness=step - version,
            slot=tasks.slot,
            place=place,
            results=resources.place.local(self.results),
            capacity=self.results.slots,
        )[0]
