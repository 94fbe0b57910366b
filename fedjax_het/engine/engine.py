"""Runs cohorts: groups clients by route, pads the groups, compiles, and collects.

Steps, batch sizes, cohort sizes and depths are data, not shapes, so they never recompile. Every
group has room for the whole cohort, so programs are counted as routes (a setting bounds them) times
the chunks chosen, powers of two. A block of rounds is one program for all routes together.
"""

import copy
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Plan, ServerStep, Variables
from fedjax_het.contract.masks import Route, full_route
from fedjax_het.engine import routes as routing
from fedjax_het.engine.debugging import one_by_one
from fedjax_het.engine.packing import Dealt, collect, deal, stack
from fedjax_het.engine.placement import Placement, check_devices, place
from fedjax_het.engine.programs import Outputs, Round, group_program, lone_program, train_one
from fedjax_het.engine.rounds import BlockOutputs, block_program
from fedjax_het.models import autotune
from fedjax_het.problem import Problem
from fedjax_het.runtime import allocation, processes
from fedjax_het.runtime.chunking import choose_chunk, power_of_two
from fedjax_het.runtime.compiling import Compiler

Execution = Literal["routed", "masked", "debug"]
ConvolutionChoice = Literal["table", "tuned"]


def check_engine(
    execution: str, chunk: int | None, max_routes: int, devices: int, convolution: str
) -> None:
    """Raises `InputError` unless a `Engine` can be made with these arguments."""
    require_known(convolution, ("table", "tuned"), "convolution")
    require(
        convolution == "table" or processes.count() == 1,
        f"convolution = {convolution!r} with {processes.count()} processes",
        "is measured by each, and they could disagree",
        "use 'table'",
    )
    require_known(execution, ("routed", "masked", "debug"), "execution")
    require(
        chunk is None or chunk >= 1,
        f"chunk = {chunk}",
        "must be at least 1 client",
        "leave it out to choose automatically",
    )
    require(
        max_routes >= 1,
        f"max_routes = {max_routes}",
        "must be at least 1",
        "leave it at its default of 32",
    )
    check_devices(devices)


class Engine:
    """Compiles and runs the cohorts of one experiment.

    Args:
      algorithm: the method.
      problem: model, data and fleet.
      execution: "routed" leaves out the work a route permits; "masked" runs everyone on the full
        route; "debug" runs client by client without compiling, names the client and stage that
        fail, and is the oracle of the other two.
      chunk: clients trained side by side; None chooses per backend (`choose_chunk`).
      max_routes: bound on the routes compiled; past it, routes are widened to the cheapest
        covering one.
      devices: shards the clients over this many local devices of every process.
      convolution: "table" takes the lowering of every convolution from a table of measurements,
        "tuned" measures on this device (`autotune`); "debug" execution always takes the table.

    Attributes:
      execution: as given.
      programs: training programs compiled so far.
      routes: routes used so far in this run. With the bound they decide which later ones are
        widened, so a new run starts with none and a resumed one with those of its checkpoint.
      full: the route that covers every other.
      devices: those of all processes.
      compiler: counts the seconds spent compiling.
      tuner: what chooses the lowerings, and remembers them; None if the table does.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        problem: Problem,
        *,
        execution: Execution = "routed",
        chunk: int | None = None,
        max_routes: int = 32,
        devices: int = 1,
        convolution: ConvolutionChoice = "table",
    ):
        check_engine(execution, chunk, max_routes, devices, convolution)
        self._algorithm = algorithm
        self._problem = problem
        self.execution = execution
        self._chunk = chunk
        self._max_routes = max_routes
        self._last = problem.model.num_blocks - 1
        self._sample_flops = float(problem.cost.step_flops(0, self._last))
        self._param_bytes = int(np.sum(problem.cost.param_bytes))
        self.full = full_route(problem.model.num_blocks, bool(problem.model.exits))
        self._finalize: Callable | None = None
        self._programs: dict[Any, Callable] = {}
        self._groups: set[tuple[Route, int]] = set()
        self._twins: dict[str, Engine] = {}
        self._checked = False
        self._result: ClientResult | None = None
        self._place = place(devices)
        self._data = self._place.whole(problem.data.device())
        self.routes: list[Route] = []
        self.compiler = Compiler()
        self.tuner = autotune.Tuner(autotune.file()) if convolution == "tuned" else None
        if jax.default_backend() == "cpu":
            allocation.keep_freed()

    def holds(self, algorithm: Algorithm) -> bool:
        """Whether the programs are those of a method; its plans and its pace are not in them."""
        parts = ("name", "local", "mask", "merge", "update")
        return all(getattr(algorithm, part) == getattr(self._algorithm, part) for part in parts)

    @property
    def merges_alone(self) -> bool:
        """Whether `run_alone` may stand in: nobody looks at the accumulator."""
        return self.execution != "debug" and isinstance(self._algorithm.update, ServerStep)

    @property
    def devices(self) -> int:
        """Devices of all processes."""
        return self._place.size

    @property
    def programs(self) -> int:
        """Training programs compiled so far."""
        return len(self._programs) + sum(twin.programs for twin in self._twins.values())

    def twin(
        self,
        name: str,
        change: Callable[[Algorithm], Algorithm],
        *,
        alone: bool = False,
        checked: bool = False,
    ) -> "Engine":
        """An engine for a changed algorithm on the same data and devices, made at the first call.

        Its programs and compile time are counted here as well. It runs the routes that it is
        handed, which are to be among those of this engine (`executed_routes`).

        Args:
          name: of the twin.
          change: makes its algorithm.
          alone: runs on one device, whatever this engine does.
          checked: its updates are known to be finite.
        """
        if name not in self._twins:
            other = self._twins[name] = copy.copy(self)
            other._algorithm, other._finalize = change(self._algorithm), None
            other._programs, other._groups, other._twins, other.routes = {}, set(), {}, []
            other._result, other._checked, other._max_routes = None, checked, sys.maxsize
            if alone:
                other._place = Placement()
        return self._twins[name]

    def train(
        self, state: PyTree, variables: Variables, plan: Plan, key: jax.Array
    ) -> tuple[PyTree, Outputs]:
        """Trains every client of the plan and merges on the way.

        Args:
          state: the algorithm's state, for `merge.init`.
          variables: the global model, from which every client starts.
          plan: what to train; at least one client.
          key: typed PRNG key of the round.

        Returns:
          The merge's accumulator, and `Outputs` as NumPy arrays of length k in the plan's order.
        """
        acc = self.begin(state, variables, plan)
        common = Round(
            key, jnp.float32(plan.learning_rate_scale), jax.tree.map(jnp.asarray, plan.shared)
        )
        return self.run(acc, plan, variables, common)

    def begin(self, state: PyTree, variables: Variables, plan: Plan) -> PyTree:
        """A new accumulator of the algorithm's merge; the plan gives the shapes of the masks."""
        return self._algorithm.merge.init(state, variables, self._mask_shapes(plan))

    def shapes(self, plan: Plan, start: Variables, common: Round) -> ClientResult:
        """What the local update returns for a client of the plan, as `ShapeDtypeStruct`s."""
        if self._result is None:
            rows = jax.tree.map(lambda a: a[0], deal(plan, [0], 1, self._last)[1])
            work = functools.partial(train_one, self._algorithm, self.full)
            arguments = (start, self._data, rows, jnp.int32(1), common)
            self._result = jax.eval_shape(work, *arguments)[0]
        return self._result

    def run(
        self,
        acc: PyTree,
        plan: Plan,
        start: Variables,
        common: Round,
        version: np.ndarray | None = None,
        staleness: np.ndarray | None = None,
        data: PyTree = None,
        room: int = 1,
    ) -> tuple[PyTree, Outputs]:
        """Trains every client of the plan from its own model and adds it to `acc`.

        Args:
          acc: the merge's accumulator; consumed.
          plan: what to train; `shared` and `learning_rate_scale` are read from `common`.
          start: the model, or several, stacked.
          common: what the clients of a round share, or that of several rounds, stacked alike.
          version: int32[k], which of the stacked models a client starts from; None for one model.
          staleness: int32[k], server steps since that model was made; None for none.
          data: what the local update reads in place of the samples.
          room: clients that later calls may bring; programs are compiled for as many.

        Returns:
          The accumulator, and `Outputs` as NumPy arrays of length k in the plan's order.
        """
        data = self._data if data is None else data
        if self.execution == "debug":
            run = functools.partial(one_by_one, self._algorithm, plan, start, data, common)
            return run(acc, version, staleness, last=self._last, checked=self._checked)
        groups = _members(self.executed_routes(plan.routes))
        acc, start, common, data = self._place.whole((acc, start, common, data))
        versions = 0 if version is None else len(jax.tree.leaves(common)[0])
        dealt, outputs = [], []
        for route, members in groups.items():
            chunk = self._chunk_for(plan, len(members), varied=room > 1)
            size = self._size(chunk, max(len(members), room))
            own, rows = deal(plan, members, size, self._last, self._place.size, version, staleness)
            arguments = (acc, start, data, self._place.split(rows), common)
            function = group_program(
                self._algorithm, route, chunk, self._place.mesh, checked=self._checked
            )
            kind = (route, chunk, size, versions)
            with autotune.choosing(self.tuner, chunk):
                program = self._program(kind, function, arguments, chunk > 1, (0,))
            acc, out = program(*arguments)
            dealt.append(own)
            outputs.append(out)
        return acc, collect(dealt, jax.device_get(outputs))

    def run_alone(
        self,
        state: PyTree,
        variables: Variables,
        shared: PyTree,
        plan: Plan,
        start: Variables,
        common: Round,
        staleness: int,
    ) -> tuple[Variables, dict[str, Any], Outputs]:
        """`begin`, `run` and `finalize` of a single client as one program, on one device.

        Args:
          state: the algorithm's.
          variables: the server's model.
          shared: for `merge.finalize`.
          plan: what to train; one client.
          start: the model it starts from.
          common: what the clients of that model's round share.
          staleness: server steps since.

        Returns:
          The merged model, what `merge.finalize` reports, and `Outputs`, all perhaps still to come.
        """
        route = self.executed_routes(plan.routes)[0]
        rows = deal(plan, [0], 1, self._last, staleness=np.asarray([staleness]))[1]
        arguments = (state, variables, shared, start, self._data, rows, common)
        function = lone_program(self._algorithm, route, self._mask_shapes(plan))
        with autotune.choosing(self.tuner, 1):
            program = self._program(("alone", route), function, arguments, False)
        return program(*arguments)

    def train_block(
        self,
        state: PyTree,
        variables: Variables,
        steps: Sequence[int],
        plans: Sequence[Plan],
        key: jax.Array,
        *,
        room: int,
        ahead: Sequence[Plan] = (),
    ) -> tuple[PyTree, Variables, BlockOutputs, list[list[Dealt]]]:
        """Runs whole rounds, the server's step included, without waiting for them.

        Args:
          state: the algorithm's.
          variables: the global model.
          steps: server steps of the rounds.
          plans: what to train in each; at least one client.
          key: typed PRNG key of the run's rounds; a round's is folded with its step.
          room: rounds of the longest block to come.
          ahead: plans of rounds to come; their routes are compiled along.

        Returns:
          The state and the model after the block, and what `dealing.unstack` wants.
        """
        rounds, self.routes = self._kinds(plans, self.routes)
        if not all(self._groups.issuperset(groups) for groups in rounds):
            # What will be wanted soon is compiled along.
            self._groups = self._groups.union(*rounds, *self._kinds(ahead, self.routes)[0])
        # In an order of their own: that of their discovery would decide how sums are rounded.
        kinds = sorted(self._groups, key=repr)
        most = max(len(plan.clients) for plan in plans)
        sizes = [self._size(chunk, most) for _, chunk in kinds]
        dealt, rows = [], []
        for plan, groups in zip(plans, rounds, strict=True):
            pairs = [
                deal(plan, groups.get(kind, []), size, self._last, self._place.size)
                for kind, size in zip(kinds, sizes, strict=True)
            ]
            dealt.append([own for own, _ in pairs])
            rows.append([padded for _, padded in pairs])
        block = stack(steps, plans, rows, room)
        whole = self._place.whole
        arguments = (
            *whole((state, variables)),
            self._data,
            whole(key),
            whole(block._replace(rows=()))._replace(rows=self._place.split(block.rows, axis=1)),
        )
        function = block_program(self._algorithm, kinds, self._place.mesh, self.tuner)
        several = any(chunk > 1 for _, chunk in kinds)
        program = self._program((*kinds, *sizes, room), function, arguments, several)
        state, variables, outputs = program(*arguments)
        return *self._place.local((state, variables)), outputs, dealt

    def _kinds(
        self, plans: Sequence[Plan], known: list[Route]
    ) -> tuple[list[dict[tuple[Route, int], list[int]]], list[Route]]:
        """The tasks of every plan by route and chunk; also the routes known then.

        The chunk suits an equal share of the cohort: few programs, whatever the groups' sizes.
        """
        rounds = []
        for plan in plans:
            routes, known = self._execute(plan.routes, known)
            share = -(-self._algorithm.cohort_size // max(len(known), 1))
            chunk = self._chunk_for(plan, share)
            rounds.append({(r, chunk): members for r, members in _members(routes).items()})
        return rounds, known

    def finalize(
        self, acc: PyTree, variables: Variables, shared: PyTree
    ) -> tuple[Variables, dict[str, Any]]:
        """Compiled `merge.finalize`."""
        arguments = (self.on_one_device(acc), variables, jax.tree.map(jnp.asarray, shared))
        if self._finalize is None:
            self._finalize = self.compiler.compile(self._algorithm.merge.finalize, *arguments)
        return self._finalize(*arguments)

    def on_one_device(self, tree: PyTree) -> PyTree:
        """What lies on all devices, on the first of this process."""
        return self._place.local(tree)

    def _mask_shapes(self, plan: Plan) -> PyTree:
        if self._algorithm.mask is None:
            return None
        row = jax.tree.map(lambda a: jnp.asarray(a[0]), plan.rows)
        return jax.eval_shape(self._algorithm.mask, row, jax.tree.map(jnp.asarray, plan.shared))

    def executed_routes(self, planned: Sequence[Route]) -> list[Route]:
        """The route every client runs on: its own, or the cheapest covering one past the bound."""
        chosen, self.routes = self._execute(planned, self.routes)
        return chosen

    def _execute(
        self, planned: Sequence[Route], known: list[Route]
    ) -> tuple[list[Route], list[Route]]:
        """The routes that clients run on, and the routes known then."""
        if self.execution == "masked":
            return [self.full] * len(planned), known
        return routing.execute(planned, known, self._max_routes, self.full, self._problem.cost)

    def side_by_side(self, batch: np.ndarray) -> int:
        """How many clients with such mini-batches to train at once, if there are as many."""
        if self._chunk is not None:
            return self._chunk
        step_flops = self._sample_flops * float(np.max(batch))
        return choose_chunk(jax.default_backend(), step_flops, self._param_bytes)

    def _chunk_for(self, plan: Plan, members: int, *, varied: bool = False) -> int:
        """Clients of a group of so many members to train side by side, on each device."""
        chunk = self.side_by_side(plan.batch)
        if self._chunk is not None:
            return chunk
        members = -(-members // self._place.size)
        if not varied:
            return min(chunk, power_of_two(members, up=True))
        # Batches of asynchronous clients are of all sizes: 1, 8, 64 keeps the programs few.
        eights = np.log2(members) / 3
        on_cpu = jax.default_backend() == "cpu"
        fill = 8 ** int(np.floor(eights) if on_cpu else np.ceil(eights))
        return min(chunk, fill)

    def _size(self, chunk: int, members: int) -> int:
        """Rows of a group: for a whole cohort, since padding is never computed."""
        side_by_side = self._place.size * chunk
        chunks = -(-max(members, self._algorithm.cohort_size) // side_by_side)
        return side_by_side * power_of_two(chunks, up=True)

    def _program(
        self,
        kind: Any,
        function: Callable,
        arguments: tuple,
        side_by_side: bool,
        donate: tuple[int, ...] = (),
    ) -> Callable:
        """The program of a kind, compiled at its first use and counted."""
        program = self._programs.get(kind)
        if program is None:
            program = self.compiler.compile(
                function, *arguments, donate=donate, side_by_side=side_by_side
            )
            self._programs[kind] = program
        return program


def _members(routes: Sequence[Route]) -> dict[Route, list[int]]:
    """The places at which each route stands."""
    groups: dict[Route, list[int]] = {}
    for i, route in enumerate(routes):
        groups.setdefault(route, []).append(i)
    return groups
