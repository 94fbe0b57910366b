"""Slots for results that wait for their merge: as many as clients at work, or as memory has."""

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.plan import Plan
from fedjax_het.engine.engine import Engine
from fedjax_het.engine.programs import Outputs
from fedjax_het.engine.results import Origin, Results, cleared, no_results, stacked
from fedjax_het.engine.routes import Routes
from fedjax_het.engine.table import Tasks
from fedjax_het.runtime.chunking import power_of_two

# Memory that results may take while they wait; more clients at work share the slots.
RESULT_BYTES = {"cpu": 2e9, "other": 16e9}


class Slots:
    """Trains tasks into slots, and merges from them.

    Args:
      engine: the engine.
      routes: the routes of the run.
      capacity: largest number of slots.

    Attributes:
      results: what lies in the slots; None before the first is filled.
    """

    def __init__(self, engine: Engine, routes: Routes, capacity: int):
        self._engine, self._routes, self._capacity = engine, routes, capacity
        self.results: Results | None = None

    def number(self, variables: Variables) -> int:
        """How many slots there are for results of a model like this."""
        each = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
        fitting = RESULT_BYTES["cpu" if jax.default_backend() == "cpu" else "other"] / max(each, 1)
        return int(np.clip(fitting, 1, self._capacity))

    def empty(self, slots: int, plan: Plan, origin: Origin) -> Results:
        """Empty slots for the results of tasks like those of the plan."""
        aux = self._engine.result_shapes(plan, *origin).aux
        return no_results(slots, origin.variables, aux)

    def store(
        self, tasks: Tasks, slot: np.ndarray, slots: int, origins: dict[int, Origin]
    ) -> Outputs:
        """Trains tasks side by side, each from its own version into its own slot.

        Args:
          tasks: the tasks.
          slot: int64[m], where each result is to lie.
          slots: their number.
          origins: the versions by number.
        """
        plan, version = tasks.plan(), tasks.flight.version
        routes = self._routes.execute(plan.routes)
        if self.results is None:
            self.results = self.empty(slots, plan, origins[int(version[0])])
        if self._engine.resources.place.size > 1:
            # Each device starts from nothing, and what they hold is added to what there is.
            # Padding with a slot that does not exist: few sizes, few programs.
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
            capacity=slots,
        )
        return out

    def fetch(self, acc: PyTree, tasks: Tasks, origins: dict[int, Origin], step: int) -> PyTree:
        """Adds the results of tasks to an accumulator of the method's merge, on one device.

        Args:
          acc: the accumulator; consumed.
          tasks: tasks whose results lie in their slots.
          origins: the versions by number.
          step: the server's step, from 0.
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
            results=resources.place.local(self.results),
            capacity=self.results.slots,
        )[0]
