"""The clients at work between two merges, under a pace that leaves tasks waiting.

The dispatch table keeps a row per task, the models from which the tasks in the table started, and
the results of the tasks that are already trained. Training waits until a merge needs a result that
is missing. If clients are trained one by one, or the pace leaves none waiting, only the tasks that
the merge needs are trained, and their results are merged immediately, as in a synchronous round.
Otherwise all untrained tasks are trained side by side, each from its own version, as far as there
are free slots for results. The memory is that of (versions in flight + slots) models.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.contract.clock import Closing, Flight, Status, arrival_order
from fedjax_het.contract.plan import Plan
from fedjax_het.engine.engine import Engine
from fedjax_het.engine.refilling import Sending
from fedjax_het.engine.results import Origin
from fedjax_het.engine.routes import Routes
from fedjax_het.engine.rows import Outputs, Round
from fedjax_het.engine.sampling import Sampler, fold_in
from fedjax_het.engine.slots import Slots
from fedjax_het.engine.steps import Now, Step
from fedjax_het.engine.table import Tasks, table_of


class DispatchTable:
    """The table of tasks with their models and results; see the module.

    Args:
      engine: engine that trains and merges.
      routes: routes of the run.
      key: typed PRNG key; tasks that start from version v have the key `fold_in(key, v)`.
      capacity: largest number of tasks in the table at a time.
      algorithm: method of the run.
    """

    def __init__(
        self, engine: Engine, routes: Routes, key: jax.Array, capacity: int, algorithm: Algorithm
    ):
        self._engine, self._routes, self._key = engine, routes, key
        self._capacity, self._waits = capacity, algorithm.pace.may_wait
        # Whether a step with a single client may be one program.
        lone = algorithm.observe is None and algorithm.merge.buffers is None
        self._lone = lone and engine.resources.execution != "debug"
        self._slots = Slots(engine, routes, capacity)
        self._tasks: Tasks | None = None
        self._origins: dict[int, Origin] = {}
        self._shape: Plan | None = None  # any plan, for the shapes of its rows
        self._info: Mapping[str, Any] | None = None  # that of the newest plan

    # ---- clients at work ---------------------------------------------------------------------

    @property
    def flight(self) -> Flight | None:
        """The tasks that were dispatched and are not merged yet; None if there are none."""
        return None if self._tasks is None else self._tasks.flight

    @property
    def size(self) -> int:
        """Number of tasks in the table."""
        return 0 if self._tasks is None else self._tasks.size

    def advance(
        self, sampler: Sampler, state: PyTree, variables: Variables, step: int, now_s: float
    ) -> tuple[Closing, PyTree]:
        """Dispatches idle clients, until the next merge.

        Args:
          sampler: sampler that draws the clients and asks the algorithm for their plan.
          state: state of the algorithm.
          variables: model of the server.
          step: number of the server step, from 0.
          now_s: virtual time in seconds.

        Returns:
          The `Closing` of the table at the next merge, and the algorithm's state; see
          `Sending.until_merge`.
        """
        sending = Sending(self, sampler, variables, step, sampler.step_key(step))
        return sending.until_merge(state, now_s)

    def send(self, plan: Plan, flight: Flight, version: int, variables: Variables) -> None:
        """Adds the tasks of a plan, as dispatched, to the table."""
        if version not in self._origins:
            common = Round(
                fold_in(self._key, version),
                np.float32(plan.learning_rate_scale),
                jax.tree.map(np.asarray, plan.shared),
            )
            self._origins[version] = Origin(variables, common)
        self._info = plan.info
        info = self._engine.result_shapes(plan, *self._origins[version]).info
        new = table_of(plan, flight, info)
        self._shape = plan
        if self._tasks is not None:
            new = jax.tree.map(lambda a, b: np.concatenate([a, b]), self._tasks, new)
        self._tasks = new

    # ---- merging -----------------------------------------------------------------------------

    def merge(
        self, closing: Closing, state: PyTree, variables: Variables, step: int
    ) -> tuple[Tasks, Closing, Plan, Step]:
        """Trains missing results, merges them, and removes the tasks that do not wait.

        If nothing is merged, state and model stay the same.

        Args:
          closing: decision of the pace on the tasks in the table.
          state: state of the algorithm.
          variables: model of the server.
          step: number of the server step, from 0.

        Returns:
          The removed rows in the order of their ends, their `Closing`, the rows as a plan (with the
          steps that count, `shared` and `info` of the newest plan), and the server's `Step`.
        """
        assert self._tasks is not None
        order = arrival_order(self._tasks.flight)
        waits = np.asarray([status is Status.WAITING for status in closing.status])[order]
        chosen, planned = order[~waits], self._tasks.flight.steps
        own = Closing(closing.at_s, [closing.status[i] for i in chosen], closing.steps[chosen])
        merged = chosen[own.merges]
        self._tasks = self._tasks.counting(np.where(closing.merges, closing.steps, planned))
        newest = max(self._origins)
        shared = self._origins[newest].common.shared
        now = Now(np.int32(step), self._key)
        if merged.size == 0:
            done = Step(state, variables, {}, None)
        elif self._lone and merged.size == 1 and self._at_once(merged):
            done = self._step_alone(self._tasks.rows_of(merged), state, variables, shared, now)
        else:
            acc = self._accumulate(merged, state, variables, step)
            outputs = self._tasks.rows_of(merged).outputs
            done = Step(*self._engine.close(acc, state, variables, shared, now), outputs)
        taken = self._tasks.rows_of(chosen)
        self._tasks = self._tasks.rows_of(order[waits]) if np.any(waits) else None
        alive = {newest} if self.flight is None else {newest, *self.flight.version.tolist()}
        self._origins = {v: origin for v, origin in self._origins.items() if v in alive}
        plan = taken.plan()._replace(shared=shared, info=self._info)
        return taken.counting(planned[chosen]), own, plan, done

    def _at_once(self, todo: np.ndarray) -> bool:
        """Whether results are merged as they are made, on a single device."""
        assert self._tasks is not None
        resources = self._engine.resources
        direct = not self._waits or resources.side_by_side(self._tasks.batch[todo]) == 1
        return resources.place.size == 1 and direct

    def _accumulate(
        self, todo: np.ndarray, state: PyTree, variables: Variables, step: int
    ) -> PyTree:
        """The accumulator of the algorithm's merge after these tasks were added."""
        assert self._tasks is not None
        assert self._shape is not None
        acc = self._engine.begin(state, variables, self._shape)
        place = np.zeros(self.size, np.int64)
        place[todo] = np.arange(todo.size)
        if self._at_once(todo):
            return self._train_and_merge(acc, todo, place, step)
        while todo.size:
            if np.any(self._tasks.slot[todo] < 0):
                self._train(todo, variables, acc)
            there = self._tasks.slot[todo] >= 0
            ready, todo = todo[there], todo[~there]
            good = ready[self._tasks.finite[ready]]
            if good.size:
                tasks = self._tasks.rows_of(good)
                acc = self._slots.fetch(acc, tasks, place[good], self._origins, step)
            self._tasks.slot[ready] = -1
        return acc

    def _step_alone(
        self, task: Tasks, state: PyTree, variables: Variables, shared: PyTree, now: Now
    ) -> Step:
        """Trains and merges a single task in one program; does not wait for the device."""
        version = int(task.flight.version[0])
        plan, late = task.plan(), int(now.step) - version
        (route,) = self._routes.execute(plan)
        origin = self._origins[version]
        step = self._engine.step_alone(state, variables, shared, plan, route, *origin, late, now)
        return Step(*step)

    def _note(self, tasks: np.ndarray, out: Outputs) -> None:
        """Writes the reported values of training to the table."""
        assert self._tasks is not None

        def put(every: np.ndarray, new: np.ndarray) -> None:
            every[tasks] = new

        jax.tree.map(put, self._tasks.outputs, out)

    def _train_and_merge(
        self, acc: PyTree, todo: np.ndarray, place: np.ndarray, step: int
    ) -> PyTree:
        """Trains tasks and merges them immediately, version by version; stacks no models."""
        tasks = self._tasks
        assert tasks is not None
        for version in np.unique(tasks.flight.version[todo]):
            own = todo[tasks.flight.version[todo] == version]
            plan = tasks.rows_of(own).plan()
            acc, out = self._engine.run(
                "train",
                acc,
                plan,
                *self._origins[int(version)],
                routes=self._routes.execute(plan),
                staleness=np.full(own.size, step - version),
                place=place[own],
                capacity=self._capacity,
            )
            self._note(own, out)
        return acc

    def _train(self, todo: np.ndarray, variables: Variables, acc: PyTree) -> None:
        """Trains the untrained tasks of `todo`, then others that arrive soon in free slots."""
        tasks = self._tasks
        assert tasks is not None
        slots = self._slots.number(variables)
        order = arrival_order(tasks.flight)
        others = ~np.isin(order, todo) & ~tasks.flight.failed[order]
        first, later = todo[tasks.slot[todo] < 0], order[others]
        # Results needed now take precedence: if slots are short, those needed last are discarded
        # and trained again later.
        excess = min(first.size, slots) + np.sum(tasks.slot >= 0) - slots
        held = later[tasks.slot[later] >= 0]
        tasks.slot[held[held.size - min(max(excess, 0), held.size) :]] = -1
        free = np.setdiff1d(np.arange(slots), tasks.slot)
        batch = np.concatenate([first, later[tasks.slot[later] < 0]])[: free.size]
        slot = free[: batch.size]
        out = self._slots.store(tasks.rows_of(batch), slot, slots, self._origins, acc)
        tasks.slot[batch] = slot
        self._note(batch, out)

    # ---- checkpoints -------------------------------------------------------------------------

    def saved(self) -> tuple[PyTree, dict[str, Any]]:
        """The content of a checkpoint: arrays, and metadata as JSON."""
        versions = sorted(self._origins)
        every = [self._origins[v] for v in versions]
        origins = [(o.variables, o.common.learning_rate_scale, o.common.shared) for o in every]
        arrays = {"tasks": self._tasks, "origins": origins, "results": self._slots.results}
        trained = self._slots.results is not None
        waiting = 0 if self._tasks is None else int(np.sum(self._tasks.slot >= 0))
        meta = {"tasks": self.size, "versions": versions, "trained": trained, "waiting": waiting}
        return arrays, {**meta, "info": self._info}

    def template(
        self, meta: dict[str, Any], plan: Plan, flight: Flight, variables: Variables
    ) -> PyTree:
        """Arrays of the structure and shapes that `saved` returned, to read a checkpoint into.

        Args:
          meta: metadata of the checkpoint, as returned by `saved`.
          plan: any plan of the algorithm, for shapes.
          flight: its tasks as dispatched.
          variables: any model, for shapes.
        """
        self._shape = plan
        shared = jax.tree.map(np.asarray, plan.shared)
        common = Round(self._key, np.float32(1.0), shared)
        origin = Origin(variables, common)
        row = table_of(plan, flight, self._engine.result_shapes(plan, *origin).info)
        row = row.rows_of(np.zeros(meta["tasks"], np.int64))
        results = self._slots.empty(self._slots.number(variables), plan, origin)
        return {
            "tasks": row if meta["tasks"] else None,
            "origins": [(variables, common.learning_rate_scale, shared)] * len(meta["versions"]),
            "results": results if meta["trained"] else None,
        }

    def restore(self, arrays: PyTree, meta: dict[str, Any]) -> None:
        """Restores the table from the result of `saved`."""
        tasks = arrays["tasks"]
        self._tasks = None if tasks is None else jax.tree.map(np.array, tasks)
        self._slots.results, self._info = arrays["results"], meta["info"]
        self._origins = {
            version: Origin(model, Round(fold_in(self._key, version), scale, shared))
            for version, (model, scale, shared) in zip(
                meta["versions"], arrays["origins"], strict=True
            )
        }
