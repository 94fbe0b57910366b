"""Runs a cohort: groups clients by route, pads groups to buckets, compiles, and collects.

Steps, batch sizes, cohort sizes and depths are data, not shapes, so they never recompile; the
number of programs is bounded by the routes (a setting) times the logarithm of the largest cohort
(its square where the chunk is chosen, for the chunk may then vary with the batch size).
"""

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_het import allocation, autotune
from fedjax_het.algorithm import Algorithm, ClientResult, Plan, Variables
from fedjax_het.chunking import choose_chunk, power_of_two
from fedjax_het.compiling import Compiler
from fedjax_het.errors import InputError, require, require_known
from fedjax_het.group import AXIS, Outputs, Round, Rows, group_program, merge_chunk, train_one
from fedjax_het.masks import Route, full_route
from fedjax_het.problem import Problem

PyTree = Any
Execution = Literal["routed", "masked", "debug"]
ConvolutionChoice = Literal["table", "tuned"]


class ClientError(RuntimeError):
    """A client's work failed in `debug` execution; the message names the client and the stage."""


def check_engine(
    execution: str, chunk: int | None, max_routes: int, devices: int, convolution: str
) -> None:
    """Raises `InputError` unless a `Cohort` can be made with these arguments."""
    require_known(convolution, ("table", "tuned"), "convolution")
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
    available = jax.local_device_count()
    require(
        1 <= devices <= available,
        f"devices = {devices}",
        f"must be between 1 and the {available} local device(s)",
        "use fewer, or start with XLA_FLAGS=--xla_force_host_platform_device_count=N",
    )


class Cohort:
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
      devices: shards the clients over this many local devices.
      convolution: "table" takes the lowering of every convolution from a table of measurements,
        "tuned" measures on this device (`autotune`); "debug" execution always takes the table.

    Attributes:
      programs: training programs compiled so far.
      routes: routes used so far in this run. With the bound they decide which later ones are
        widened, so a new run starts with none and a resumed one with those of its checkpoint.
      full: the route that covers every other.
      devices: see above.
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
        self._execution = execution
        self._chunk = chunk
        self._max_routes = max_routes
        self.devices = devices
        self.full = full_route(problem.model.num_blocks, bool(problem.model.exits))
        self._finalize: Callable | None = None
        self._programs: dict[tuple[Route, int, int, int], Callable] = {}
        self._twins: dict[str, Cohort] = {}
        self._checked = False
        self._result: ClientResult | None = None
        self._mesh: jax.sharding.Mesh | None = None
        if devices > 1:
            self._mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:devices]), (AXIS,))
        self._data = self._replicate(problem.data.device())
        self.routes: list[Route] = []
        self.compiler = Compiler()
        self.tuner = autotune.Tuner(autotune.file()) if convolution == "tuned" else None
        if jax.default_backend() == "cpu":
            allocation.keep_freed()

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
    ) -> "Cohort":
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
            other._programs, other._twins, other.routes = {}, {}, []
            other._result, other._checked, other._max_routes = None, checked, sys.maxsize
            if alone:
                other._mesh, other.devices = None, 1
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
            rows = jax.tree.map(lambda a: a[0], self._rows(plan, [0], 1)[1])
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
        if self._execution == "debug":
            return self._run_debug(acc, plan, start, common, version, staleness, data)
        groups: dict[Route, list[int]] = {}
        for i, route in enumerate(self.executed_routes(plan.routes)):
            groups.setdefault(route, []).append(i)
        acc, start, common, data = self._replicate((acc, start, common, data))
        versions = 0 if version is None else len(jax.tree.leaves(common)[0])
        outputs = []
        for route, members in groups.items():
            chunk = self._chunk_for(plan, len(members), varied=room > 1)
            size = self._bucket(route, chunk, max(len(members), room), versions)
            places, rows = self._rows(plan, members, size, version, staleness)
            arguments = (acc, start, data, rows, common)
            acc, out = self._program((route, chunk, size, versions), arguments)(*arguments)
            outputs.append((members, places, out))
        return acc, _collect(len(plan.clients), outputs)

    def finalize(
        self, acc: PyTree, variables: Variables, shared: PyTree
    ) -> tuple[Variables, dict[str, Any]]:
        """Compiled `merge.finalize`."""
        arguments = (self.on_one_device(acc), variables, jax.tree.map(jnp.asarray, shared))
        if self._finalize is None:
            self._finalize = self.compiler.compile(self._algorithm.merge.finalize, *arguments)
        return self._finalize(*arguments)

    def on_one_device(self, tree: PyTree) -> PyTree:
        """What lies on all devices, on the first of them."""
        if self._mesh is None:
            return tree
        return jax.device_put(tree, self._mesh.devices.flat[0])

    def _replicate(self, tree: PyTree) -> PyTree:
        if self._mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def _mask_shapes(self, plan: Plan) -> PyTree:
        if self._algorithm.mask is None:
            return None
        row = jax.tree.map(lambda a: jnp.asarray(a[0]), plan.rows)
        return jax.eval_shape(self._algorithm.mask, row, jax.tree.map(jnp.asarray, plan.shared))

    def executed_routes(self, planned: Any) -> list[Route]:
        """The route every client runs on: its own, or the cheapest covering one past the bound."""
        if self._execution == "masked":
            return [self.full] * len(planned)
        known = set(self.routes)
        chosen: dict[Route, Route] = {}
        for route in sorted(set(planned), key=self._route_price):
            # The last place is kept for the full route, which covers whatever comes later.
            room = self._max_routes - len(known | {self.full})
            if route in known or route == self.full or room > 0:
                chosen[route] = route
            else:
                covering = [r for r in known | {self.full} if r.covers(route)]
                chosen[route] = min(covering, key=self._route_price)
            known.add(chosen[route])
        self.routes += sorted(known - set(self.routes), key=self._route_price)
        return [chosen[route] for route in planned]

    def _route_price(self, route: Route) -> tuple[float, int]:
        """What orders routes: their work, and among equally dear ones the cut."""
        cut = -1 if route.cut is None else route.cut
        if route.exit is not None:
            return float(self._problem.cost.step_flops(route.first, route.exit)), cut
        # All exits are computed: dearer than any single one.
        exits = np.arange(self._problem.model.num_blocks)
        return float(np.sum(self._problem.cost.step_flops(np.zeros_like(exits), exits))), cut

    def side_by_side(self, batch: np.ndarray) -> int:
        """How many clients with such mini-batches to train at once, if there are as many."""
        if self._chunk is not None:
            return self._chunk
        cost = self._problem.cost
        last = self._problem.model.num_blocks - 1
        step_flops = float(cost.step_flops(0, last)) * float(np.max(batch))
        return choose_chunk(jax.default_backend(), step_flops, int(np.sum(cost.param_bytes)))

    def _chunk_for(self, plan: Plan, members: int, *, varied: bool) -> int:
        chunk = self.side_by_side(plan.batch)
        if self._chunk is not None:
            return chunk
        members = -(-members // self.devices)
        if not varied:
            return min(chunk, power_of_two(members, up=True))
        # Batches of asynchronous clients are of all sizes: 1, 8, 64 keeps the programs few.
        eights = np.log2(members) / 3
        on_cpu = jax.default_backend() == "cpu"
        fill = 8 ** int(np.floor(eights) if on_cpu else np.ceil(eights))
        return min(chunk, fill)

    def _bucket(self, route: Route, chunk: int, members: int, versions: int) -> int:
        """Padded length of a group: a power of two of chunks, or a larger one compiled already.

        Padding is never computed, so a bucket is only an upper bound.
        """
        per_device = -(-members // self.devices)
        need = self.devices * chunk * power_of_two(-(-per_device // chunk), up=True)
        kind = (route, chunk, versions)
        compiled = [b for r, c, b, v in self._programs if (r, c, v) == kind and b >= need]
        return min(compiled, default=need)

    def _rows(
        self,
        plan: Plan,
        members: list[int],
        size: int,
        version: np.ndarray | None = None,
        staleness: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Rows]:
        """Deals the members out over the devices and pads; returns their places and the rows."""
        order = np.arange(len(members))
        places = (order % self.devices) * (size // self.devices) + order // self.devices
        # Padding repeats a real client: a partly filled chunk never computes on nonsense.
        source = np.full(size, members[0])
        source[places] = members
        valid = np.zeros(size, bool)
        valid[places] = True
        last = self._problem.model.num_blocks - 1
        exits = np.asarray([last if r.exit is None else r.exit for r in plan.routes], np.int32)
        late = np.zeros(len(exits), np.int32) if staleness is None else staleness.astype(np.int32)
        rows = Rows(
            valid=valid,
            client=plan.clients.astype(np.int32)[source],
            steps=plan.steps.astype(np.int32)[source],
            batch=plan.batch.astype(np.int32)[source],
            weight=plan.weight.astype(np.float32)[source],
            exit=exits[source],
            row=jax.tree.map(lambda a: np.asarray(a)[source], plan.rows),
            staleness=late[source],
            version=None if version is None else version.astype(np.int32)[source],
        )
        return places, rows

    def _program(self, kind: tuple[Route, int, int, int], arguments: tuple) -> Callable:
        """The program for (route, chunk, rows, versions), compiled at its first use and counted."""
        program = self._programs.get(kind)
        if program is None:
            function = group_program(
                self._algorithm, kind[0], kind[1], self._mesh, checked=self._checked
            )
            with autotune.choosing(self.tuner, kind[1]):
                program = self.compiler.compile(function, *arguments, donate=(0,))
            self._programs[kind] = program
        return program

    def _run_debug(
        self,
        acc: PyTree,
        plan: Plan,
        start: Variables,
        common: Round,
        version: np.ndarray | None,
        staleness: np.ndarray | None,
        data: PyTree,
    ) -> tuple[PyTree, Outputs]:
        outputs = []
        for i, client in enumerate(plan.clients):
            _, rows = self._rows(plan, [i], 1, version, staleness)
            one = jax.tree.map(lambda a: jnp.asarray(a[0]), rows)
            stage = "local training"
            try:
                with jax.disable_jit():
                    result, mask = train_one(
                        self._algorithm,
                        plan.routes[i],
                        start,
                        data,
                        one,
                        one.steps,
                        common,
                    )
                    stage = "merge"
                    row, result, mask = jax.tree.map(lambda a: a[None], (one, result, mask))
                    acc, out = merge_chunk(
                        self._algorithm,
                        acc,
                        start,
                        row,
                        result,
                        mask,
                        common,
                        checked=self._checked,
                    )
            except InputError:
                raise
            except Exception as error:
                message = f"client {int(client)} failed in its {stage}: {error}"
                raise ClientError(message) from error
            outputs.append(([i], np.arange(1), out))
        return acc, _collect(len(plan.clients), outputs)


def _collect(k: int, groups: list[tuple[list[int], np.ndarray, Outputs]]) -> Outputs:
    """Fetches the groups' outputs and puts them back into the plan's order."""
    fetched = jax.device_get([out for _, _, out in groups])
    total = jax.tree.map(lambda a: np.zeros((k, *a.shape[1:]), a.dtype), fetched[0])
    for (members, places, _), out in zip(groups, fetched, strict=True):
        for target, source in zip(jax.tree.leaves(total), jax.tree.leaves(out), strict=True):
            target[members] = source[places]
    return total
