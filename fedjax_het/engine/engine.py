"""The programs of one method: compiled at their first use, run on cohorts of clients.

Steps, batch sizes, cohort sizes and depths are data, not shapes, so they never recompile. Every
group has room for the whole cohort, so programs are counted as routes (a setting bounds them) times
the chunks chosen, powers of two. A batch of rounds is one program for all routes together.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan
from fedjax_het.engine.debugging import one_by_one
from fedjax_het.engine.packing import Packed, collect, pack, stack
from fedjax_het.engine.placement import Placement
from fedjax_het.engine.programs import (
    Outputs,
    Round,
    group_program,
    train_one,
    training,
)
from fedjax_het.engine.resources import Resources
from fedjax_het.engine.results import Results, fetching, storing
from fedjax_het.engine.rounds import RoundOutputs, rounds_program
from fedjax_het.engine.routes import Routes, members
from fedjax_het.engine.state import StateSplit
from fedjax_het.engine.steps import close_program, lone_program
from fedjax_het.problem import Problem

Kind = Literal["train", "store", "fetch"]


class Engine:
    """Compiles and runs the programs of one method.

    It keeps nothing of a run: the same engine may serve several, one after the other.

    Args:
      algorithm: the method.
      resources: what it shares with other methods on the same problem.

    Attributes:
      resources: as given.
    """

    def __init__(self, algorithm: Algorithm, resources: Resources):
        self._algorithm, self.resources = algorithm, resources
        self._work = {
            "train": training(algorithm),
            "store": storing(algorithm),
            "fetch": fetching(algorithm),
        }
        self._programs: dict[Any, Callable] = {}
        self._groups: set[tuple[Route, int]] = set()
        self._shapes: ClientResult | None = None
        self._close: Callable | None = None

    def holds(self, algorithm: Algorithm) -> bool:
        """Whether the programs are those of a method; its plans and its pace are not in them."""
        parts = ("name", "local", "mask", "merge", "update")
        return all(getattr(algorithm, part) == getattr(self._algorithm, part) for part in parts)

    @property
    def programs(self) -> int:
        """Training programs compiled so far."""
        return len(self._programs)

    def begin(self, state: PyTree, variables: Variables, plan: Plan) -> PyTree:
        """A new accumulator of the algorithm's merge; the plan gives the shapes of the masks."""
        return self._algorithm.merge.init(state, variables, self._mask_shapes(plan))

    def result_shapes(self, plan: Plan, start: Variables, common: Round) -> ClientResult:
        """What the local update returns for a client of the plan, as `ShapeDtypeStruct`s."""
        if self._shapes is None:
            rows = jax.tree.map(lambda a: a[0], pack(plan, [0], 1, self.resources.last)[1])
            work = functools.partial(train_one, self._algorithm, self.resources.full)
            arguments = (start, self.resources.data, rows, jnp.int32(1), common)
            self._shapes = jax.eval_shape(work, *arguments)[0]
        return self._shapes

    def train(
        self,
        state: PyTree,
        variables: Variables,
        plan: Plan,
        key: jax.Array,
        routes: Sequence[Route] | None = None,
    ) -> tuple[PyTree, Outputs]:
        """Trains every client of a plan from one model and merges on the way.

        Args:
          state: the algorithm's state, for `merge.init`.
          variables: the global model, from which every client starts.
          plan: what to train, at least one client.
          key: typed PRNG key of the round.
          routes: the routes to run, each covering the one planned; None runs those planned.

        Returns:
          The merge's accumulator, and `Outputs` as NumPy arrays of length k in the plan's order.
        """
        acc = self.begin(state, variables, plan)
        scale = jnp.float32(plan.learning_rate_scale)
        common = Round(key, scale, jax.tree.map(jnp.asarray, plan.shared))
        return self.run("train", acc, plan, variables, common, routes=routes)

    def run(
        self,
        kind: Kind,
        acc: PyTree,
        plan: Plan,
        start: Variables,
        common: Round,
        *,
        routes: Sequence[Route] | None = None,
        version: np.ndarray | None = None,
        staleness: np.ndarray | None = None,
        slot: np.ndarray | None = None,
        results: Results | None = None,
        capacity: int = 1,
    ) -> tuple[PyTree, Outputs]:
        """Handles every client of a plan, each from its own model, and adds it to `acc`.

        Args:
          kind: "train" trains and merges, "store" trains into slots, "fetch" merges from slots.
          acc: the merge's accumulator, or the `Results` to store into; consumed.
          plan: what to train; `shared` and `learning_rate_scale` are read from `common`.
          start: the model, or several, stacked.
          common: what the clients of a round share, or that of several rounds, stacked alike.
          routes: the routes to run, each covering the one planned; None runs those planned.
          version: int64[k], which of the stacked models a client starts from; None for one model.
          staleness: int64[k], server steps since that model was made; None for none.
          slot: int64[k], where each result waits.
          results: what to fetch from.
          capacity: clients that later calls may bring; programs are compiled for as many.

        Returns:
          The accumulator, and `Outputs` as NumPy arrays of length k in the plan's order.
        """
        shared, work = self.resources, self._work[kind]
        place = Placement() if kind == "fetch" else shared.place
        data = shared.data if results is None else results
        columns = {"version": version, "staleness": staleness, "slot": slot}
        if shared.execution == "debug":
            return one_by_one(work, plan, start, data, common, acc, columns, last=shared.last)
        acc, start, common, data = place.whole((acc, start, common, data))
        versions = 0 if version is None else len(jax.tree.leaves(common)[0])
        packed, outputs = [], []
        for route, own in members(plan.routes if routes is None else routes).items():
            chunk = shared.chunk_for(plan.batch, len(own), varied=capacity > 1)
            most = max(len(own), capacity, self._algorithm.cohort_size)
            size = shared.rows_for(chunk, most, place.size)
            places, rows = pack(plan, own, size, shared.last, place.size, **columns)
            arguments = (acc, start, data, place.split(rows), common)
            function = group_program(work, route, chunk, place.mesh)
            program = self._program(
                (kind, route, chunk, size, versions), function, arguments, chunk, donate=(0,)
            )
            acc, out = program(*arguments)
            packed.append(places)
            outputs.append(out)
        return acc, collect(packed, jax.device_get(outputs))

    def close(
        self, acc: PyTree, state: PyTree, variables: Variables, shared: PyTree
    ) -> tuple[PyTree, Variables, Mapping[str, Any]]:
        """Closes a merge and takes the server's step.

        Args:
          acc: the merge's accumulator.
          state: the algorithm's state.
          variables: the server's model.
          shared: `Plan.shared` of the newest plan.

        Returns:
          The state, the model, and what the merge reports, all perhaps still to come.
        """
        merge, acc = self._algorithm.merge, self.resources.place.local(acc)
        if merge.buffers is not None:
            state = merge.buffers.put(state, None)
        split = StateSplit(self._algorithm.name, state)
        arguments = (
            acc,
            split.leaves(state),
            variables,
            jax.tree.map(jnp.asarray, shared),
        )
        if self._close is None:
            program = close_program(self._algorithm, split)
            self._close = self.resources.compile(program, arguments)
        changed, variables, info = self._close(*arguments)
        leaves = (b if a is None else a for a, b in zip(changed, arguments[1], strict=True))
        state = split.joined(state, tuple(leaves))
        if merge.buffers is not None:
            state = merge.buffers.put(state, merge.buffers.take(acc))
        return state, variables, info

    def step_alone(
        self,
        state: PyTree,
        variables: Variables,
        shared: PyTree,
        plan: Plan,
        route: Route,
        start: Variables,
        common: Round,
        staleness: int,
    ) -> tuple[PyTree, Variables, Mapping[str, Any], Outputs]:
        """`begin`, `run` and `close` of a single client as one program, on one device.

        Args:
          state: the algorithm's state.
          variables: the server's model.
          shared: `Plan.shared` of the newest plan.
          plan: what to train; one client.
          route: the route to run.
          start: the model it starts from.
          common: what the clients of that model's round share.
          staleness: server steps since.

        Returns:
          The state, the model, what the merge reports, and `Outputs`, all perhaps still to come.
        """
        split = StateSplit(self._algorithm.name, state)
        late = np.asarray([staleness])
        rows = pack(plan, [0], 1, self.resources.last, staleness=late)[1]
        leaves = split.leaves(state)
        arguments = (leaves, variables, shared, start, self.resources.data, rows, common)
        function = lone_program(self._algorithm, route, self._mask_shapes(plan), split)
        program = self._program(("alone", route), function, arguments)
        leaves, variables, info, outputs = program(*arguments)
        return split.joined(state, leaves), variables, info, outputs

    def train_rounds(
        self,
        state: PyTree,
        variables: Variables,
        steps: Sequence[int],
        plans: Sequence[Plan],
        key: jax.Array,
        routes: Routes,
        *,
        capacity: int,
        ahead: Sequence[Plan] = (),
    ) -> tuple[PyTree, Variables, RoundOutputs, list[list[Packed]]]:
        """Runs whole rounds, the server's steps included, without waiting for them.

        Args:
          state: the algorithm's state.
          variables: the global model.
          steps: server steps of the rounds.
          plans: what to train in each; at least one client.
          key: typed PRNG key of the run's rounds; a round's is folded with its step.
          routes: the routes of the run.
          capacity: rounds of the longest batch to come.
          ahead: plans of rounds to come; their routes are compiled along.

        Returns:
          The state and the model after the rounds, and what `packing.unstack` wants.
        """
        shared = self.resources
        rounds = self._kinds(plans, routes)
        if not all(self._groups.issuperset(groups) for groups in rounds):
            # What will be wanted soon is compiled along.
            self._groups = self._groups.union(*rounds, *self._kinds(ahead, routes.copy()))
        # In an order of their own: that of their discovery would decide how sums are rounded.
        kinds = sorted(self._groups, key=repr)
        most = max(self._algorithm.cohort_size, *(len(plan.clients) for plan in plans))
        sizes = [shared.rows_for(chunk, most) for _, chunk in kinds]
        packed, rows = [], []
        for plan, groups in zip(plans, rounds, strict=True):
            pairs = [
                pack(plan, groups.get(kind, []), size, shared.last, shared.place.size)
                for kind, size in zip(kinds, sizes, strict=True)
            ]
            packed.append([places for places, _ in pairs])
            rows.append([padded for _, padded in pairs])
        batch = stack(steps, plans, rows, capacity)
        whole, split = shared.place.whole, StateSplit(self._algorithm.name, state)
        arguments = (
            *whole((split.leaves(state), variables)),
            shared.data,
            whole(key),
            whole(batch._replace(rows=()))._replace(rows=shared.place.split(batch.rows, axis=1)),
        )
        function = rounds_program(self._algorithm, kinds, split, shared.place.mesh, shared.tuner)
        chunk = max(chunk for _, chunk in kinds)
        program = self._program((*kinds, *sizes, capacity), function, arguments, chunk)
        leaves, variables, outputs = program(*arguments)
        leaves, variables = shared.place.local((leaves, variables))
        return split.joined(state, leaves), variables, outputs, packed

    def _kinds(
        self, plans: Sequence[Plan], routes: Routes
    ) -> list[dict[tuple[Route, int], list[int]]]:
        """The tasks of every plan by route and chunk.

        The chunk suits an equal share of the cohort: few programs, whatever the groups' sizes.
        """
        rounds = []
        for plan in plans:
            groups = members(routes.execute(plan.routes))
            share = -(-self._algorithm.cohort_size // max(len(routes.known), 1))
            chunk = self.resources.chunk_for(plan.batch, share)
            rounds.append({(route, chunk): own for route, own in groups.items()})
        return rounds

    def _mask_shapes(self, plan: Plan) -> PyTree:
        if self._algorithm.mask is None:
            return None
        row = jax.tree.map(lambda a: jnp.asarray(a[0]), plan.rows)
        return jax.eval_shape(self._algorithm.mask, row, jax.tree.map(jnp.asarray, plan.shared))

    def _program(
        self,
        kind: Any,
        function: Callable,
        arguments: tuple,
        chunk: int = 1,
        *,
        donate: tuple[int, ...] = (),
    ) -> Callable:
        """The program of a kind, compiled at its first use and counted."""
        if kind not in self._programs:
            self._programs[kind] = self.resources.compile(
                function, arguments, chunk=chunk, side_by_side=chunk > 1, donate=donate
            )
        return self._programs[kind]


def make_engine(algorithm: Algorithm, problem: Problem, **resources: Any) -> Engine:
    """An engine with resources of its own.

    Args:
      algorithm: the method.
      problem: model, data and fleet.
      **resources: see `Resources`.
    """
    return Engine(algorithm, Resources(problem, **resources))
