"""The programs of one method: compiled at their first use, run on cohorts of clients.

Steps, batch sizes, cohort sizes and depths are data, not shapes, so they never cause recompilation.
Every group has capacity for the whole cohort, so there is one program per route (an option limits
them) and chunk size (a power of two). A batch of rounds is one program for all routes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Question
from fedjax_het.engine.debugging import one_by_one
from fedjax_het.engine.groups import kinds_of, share_of
from fedjax_het.engine.narrowing import mask_shapes
from fedjax_het.engine.packing import Packed, collect, pack, stack
from fedjax_het.engine.placement import Placement
from fedjax_het.engine.programs import group_program
from fedjax_het.engine.resources import ResourceKeywords, Resources
from fedjax_het.engine.results import Results, fetching, storing
from fedjax_het.engine.rounds import RoundOutputs, rounds_program
from fedjax_het.engine.routes import Routes, members
from fedjax_het.engine.rows import Outputs, Round
from fedjax_het.engine.state import StateSplit
from fedjax_het.engine.steps import Now, close_program, lone_program
from fedjax_het.engine.work import train_one, training
from fedjax_het.problem import Problem
from fedjax_het.transforms.sending import attached

Kind = Literal["train", "store", "fetch"]


class Engine:
    """Compiles and runs the programs of one method.

    It keeps no data of a run: one engine may serve several runs, one after the other.

    Args:
      algorithm: method whose programs are compiled.
      resources: resources that methods on the same problem share.

    Attributes:
      resources: the argument of this name.
      batches: whether it can run a batch of rounds as one program.
      measure: `Situation.measure` of the plans; None if the samples are those of the problem.
    """

    measure: Callable[[Variables, Question], PyTree] | None = None

    def __init__(self, algorithm: Algorithm, resources: Resources):
        self.batches = resources.execution != "debug"
        self._given, self.resources = algorithm, resources
        self._algorithm = algorithm = attached(algorithm, resources.problem)
        self._work = {
            "train": training(algorithm, narrow=resources.execution != "debug"),
            "store": storing(algorithm),
            "fetch": fetching(algorithm),
        }
        self._programs: dict[Any, Callable] = {}
        self._groups: set[tuple[Route, int]] = set()
        self._shapes: ClientResult | None = None
        self._close: Callable | None = None

    def holds(self, algorithm: Algorithm) -> bool:
        """Whether the programs are those of `algorithm`; plan and pace are not in them."""
        parts = ("name", "local", "mask", "merge", "update", "uploads", "widths")
        same = all(getattr(algorithm, part) == getattr(self._given, part) for part in parts)
        return same and algorithm.pace.discount == self._given.pace.discount

    @property
    def programs(self) -> int:
        """Number of training programs compiled so far."""
        return len(self._programs)

    def begin(self, state: PyTree, variables: Variables, plan: Plan) -> PyTree:
        """A new accumulator of the algorithm's merge; the plan determines the masks' shapes."""
        return self._algorithm.merge.init(state, variables, self._mask_shapes(plan))

    def result_shapes(self, plan: Plan, start: Variables, common: Round) -> ClientResult:
        """The result of the local update for a client of the plan, as `ShapeDtypeStruct`s."""
        if self._shapes is None:
            rows = jax.tree.map(lambda a: a[0], pack(plan, [0], 1, self.resources.last)[1])
            work = functools.partial(train_one, self._algorithm, self.resources.full)
            kept = self._algorithm.merge.memory and self._algorithm.merge.memory.like
            data = self.resources.data_of(plan.clients[:1], 1)
            arguments = (start, data, rows, jnp.int32(1), common, kept)
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
        """Trains every client of a plan from one model and merges the results.

        Args:
          state: state of the algorithm, for `merge.init`.
          variables: global model, from which every client starts.
          plan: tasks of at least one client.
          key: typed PRNG key of the round.
          routes: routes to run, each covering the planned one; None runs the planned routes.

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
        place: np.ndarray | None = None,
        results: Results | None = None,
        merge: PyTree = None,
        capacity: int = 1,
    ) -> tuple[PyTree, Outputs]:
        """Processes every client of a plan, each from its own model, and adds it to `acc`.

        Args:
          kind: kind of work: "train" trains and merges, "store" trains into slots, "fetch" merges
            from slots.
          acc: accumulator of the merge, or `Results` to store into; its memory is reused.
          plan: tasks; `shared` and `learning_rate_scale` are read from `common` instead.
          start: model from which the clients start, or several stacked models.
          common: values that the clients of a round share, or those of several rounds, stacked.
          routes: routes to run, each covering the planned one; None runs the planned routes.
          version: index of each client's start among the stacked models, int64[k]; None for one.
          staleness: server steps since that model was made, int64[k]; None means 0.
          slot: slot of each result, int64[k]; None if results do not wait.
          place: number of each task among those of the merge, int64[k]; None for that in the plan.
          results: `Results` to fetch from, for "fetch".
          merge: accumulator of the merge whose buffers the clients may read, for "store".
          capacity: largest number of clients in later calls; programs are compiled for this many.

        Returns:
          The accumulator, and `Outputs` as NumPy arrays of length k in the plan's order.
        """
        shared, work = self.resources, self._work[kind]
        devices = Placement() if kind == "fetch" else shared.place
        most = max(len(plan.clients), capacity, self._algorithm.cohort_size)
        samples = None if kind == "fetch" else shared.data_of(plan.clients, most)
        held = 0 if samples is None else len(samples.y)
        data: PyTree = results if samples is None else samples
        if kind == "store":
            data = data, self._algorithm.merge.memory_in(merge)
        columns = {"version": version, "staleness": staleness, "slot": slot, "place": place}
        if shared.execution == "debug":
            return one_by_one(work, plan, start, data, common, acc, columns, last=shared.last)
        acc, start, common, data = devices.whole((acc, start, common, data))
        versions = 0 if version is None else len(jax.tree.leaves(common)[0])
        packed, outputs = [], []
        for route, own in members(plan.routes if routes is None else routes).items():
            share = share_of(self._algorithm, route)
            chunk = shared.chunk_for(plan.batch, len(own), varied=capacity > 1, share=share)
            size = shared.rows_for(chunk, most, devices.size)
            places, rows = pack(plan, own, size, shared.last, devices.size, **columns)
            arguments = (acc, start, data, devices.split(rows), common)
            make = functools.partial(group_program, work, route, chunk, devices.mesh)
            key = (kind, route, chunk, size, versions, held)
            program = self._program(key, make, arguments, chunk, donate=(0,))
            acc, out = program(*arguments)
            packed.append(places)
            outputs.append(out)
        return acc, collect(packed, jax.device_get(outputs))

    def close(
        self, acc: PyTree, state: PyTree, variables: Variables, shared: PyTree, now: Now
    ) -> tuple[PyTree, Variables, Mapping[str, Any]]:
        """Finishes a merge and computes the server's step.

        Args:
          acc: accumulator of the merge.
          state: state of the algorithm.
          variables: model of the server.
          shared: value of `Plan.shared` of the newest plan.
          now: moment of the step.

        Returns:
          The state, the model, and the values that the merge reports; perhaps not computed yet.
        """
        merge, acc = self._algorithm.merge, self.resources.place.local(acc)
        if merge.buffers is not None:
            state = merge.buffers.put(state, None)
        split = StateSplit(self._algorithm.name, state)
        arguments = acc, split.leaves(state), variables, jax.tree.map(jnp.asarray, shared), now
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
        now: Now,
    ) -> tuple[PyTree, Variables, Mapping[str, Any], Outputs]:
        """`begin`, `run` and `close` of a single client as one program, on one device.

        Args:
          state: state of the algorithm.
          variables: model of the server.
          shared: value of `Plan.shared` of the newest plan.
          plan: task of one client.
          route: route to run.
          start: model from which the client starts.
          common: values that the clients of that model's round share.
          staleness: server steps since that model was made.
          now: moment of the step.

        Returns:
          The state, the model, the info of the merge, and `Outputs`; perhaps not computed yet.
        """
        split = StateSplit(self._algorithm.name, state)
        late = np.asarray([staleness])
        rows = pack(plan, [0], 1, self.resources.last, staleness=late)[1]
        leaves = split.leaves(state)
        data = self.resources.data_of(plan.clients, 1)
        arguments = (leaves, variables, shared, start, data, rows, common, now)
        shapes = self._mask_shapes(plan)
        make = functools.partial(lone_program, self._algorithm, route, shapes, split)
        program = self._program(("alone", route), make, arguments)
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
        """Runs a batch of rounds, including the server's steps; does not wait for the device.

        Args:
          state: state of the algorithm.
          variables: global model.
          steps: numbers of the server steps.
          plans: plan of each round, with at least one client.
          key: typed PRNG key of all rounds; the key of a round is `fold_in(key, step)`.
          routes: routes of the run.
          capacity: number of rounds in the longest batch of rounds.
          ahead: plans of later rounds, whose routes are compiled into the same program.

        Returns:
          The state and the model after the rounds, and the two arguments of `packing.unstack`.
        """
        shared = self.resources
        rounds = kinds_of(self._algorithm, shared, plans, routes)
        if not all(self._groups.issuperset(groups) for groups in rounds):
            # Routes of the next rounds are compiled into the same program.
            later = kinds_of(self._algorithm, shared, ahead, routes.copy())
            self._groups = self._groups.union(*rounds, *later)
        # Sorted, because the order of their discovery would change the rounding of sums.
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
        data = shared.data_of(np.concatenate([plan.clients for plan in plans]), most * capacity)
        whole, split = shared.place.whole, StateSplit(self._algorithm.name, state)
        arguments = (
            *whole((split.leaves(state), variables)),
            data,
            whole(key),
            whole(batch._replace(rows=()))._replace(rows=shared.place.split(batch.rows, axis=1)),
        )
        parts = (self._algorithm, kinds, split, shared.place.mesh, shared.tuner)
        make = functools.partial(rounds_program, *parts)
        chunk = max(chunk for _, chunk in kinds)
        program = self._program((*kinds, *sizes, capacity, len(data.y)), make, arguments, chunk)
        leaves, variables, outputs = program(*arguments)
        leaves, variables = shared.place.local((leaves, variables))
        return split.joined(state, leaves), variables, outputs, packed

    def _mask_shapes(self, plan: Plan) -> PyTree:
        row = jax.tree.map(lambda a: jnp.asarray(a[0]), plan.rows)
        return mask_shapes(self._algorithm, row, jax.tree.map(jnp.asarray, plan.shared))

    def _program(
        self,
        kind: Any,
        make: Callable[[], Callable],
        arguments: tuple,
        chunk: int = 1,
        *,
        donate: tuple[int, ...] = (),
    ) -> Callable:
        """The program of a kind, compiled at its first use and counted."""
        if kind not in self._programs:
            options: Any = {"chunk": chunk, "side_by_side": chunk > 1, "donate": donate}
            self._programs[kind] = self.resources.compile(make(), arguments, **options)
        return self._programs[kind]


def make_engine(
    algorithm: Algorithm, problem: Problem, **resources: Unpack[ResourceKeywords]
) -> Engine:
    """Makes an engine that does not share its resources.

    Args:
      algorithm: method whose programs are compiled.
      problem: model, data and fleet.
      **resources: keyword arguments of `Resources`.
    """
    return Engine(algorithm, Resources(problem, **resources))
