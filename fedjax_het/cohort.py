"""Runs a cohort: groups clients by route, pads groups to buckets, compiles, and collects.

Steps, batch sizes, cohort sizes and depths are data, not shapes, so they never recompile; the
number of programs is bounded by the routes (a setting) times the logarithm of the largest cohort
(its square where the chunk is chosen, for the chunk may then vary with the batch size).
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_het.algorithm import Algorithm, Plan, Variables
from fedjax_het.compiling import Compiler
from fedjax_het.errors import InputError, require, require_known
from fedjax_het.group import AXIS, Outputs, Round, Rows, group_program, merge_chunk, train_one
from fedjax_het.masks import Route, full_route
from fedjax_het.problem import Problem

PyTree = Any
Execution = Literal["routed", "masked", "debug"]

# A local step of this many FLOPs keeps a CPU's matrix units busy on its own.
CPU_STEP_FLOPS = 2e7
# Memory that stacked parameters, gradients and optimiser state may take on an accelerator.
ACCELERATOR_CHUNK_BYTES = 8e9


class ClientError(RuntimeError):
    """A client's work failed in `debug` execution; the message names the client and the stage."""


def choose_chunk(backend: str, step_flops: float, param_bytes: int) -> int:
    """How many clients to train side by side, a power of two up to 256.

    On a CPU a large step runs fastest alone, with its activations in cache (McMahan CNN, batch 20:
    174 GFLOP/s alone, 112 vmapped); smaller steps are batched until they are large. Accelerators
    want as many clients as memory allows.

    Args:
      backend: `jax.default_backend()`.
      step_flops: FLOPs of one local step of one client on the full model.
      param_bytes: bytes of the model's parameters.
    """
    if backend == "cpu":
        side_by_side = CPU_STEP_FLOPS / max(step_flops, 1.0)
    else:
        side_by_side = ACCELERATOR_CHUNK_BYTES / max(4.0 * param_bytes, 1.0)
    return _power_of_two(min(side_by_side, 256.0), up=False)


def check_engine(execution: str, chunk: int | None, max_routes: int, devices: int) -> None:
    """Raises `InputError` unless a `Cohort` can be made with these arguments."""
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


def _power_of_two(value: float, *, up: bool) -> int:
    exponent = np.log2(max(value, 1.0))
    return int(2 ** (np.ceil(exponent) if up else np.floor(exponent)))


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

    Attributes:
      programs: training programs compiled so far.
      routes: routes used so far in this run. With the bound they decide which later ones are
        widened, so a new run starts with none and a resumed one with those of its checkpoint.
      compiler: counts the seconds spent compiling.
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
    ):
        check_engine(execution, chunk, max_routes, devices)
        self._algorithm = algorithm
        self._problem = problem
        self._execution = execution
        self._chunk = chunk
        self._max_routes = max_routes
        self._devices = devices
        self._full = full_route(problem.model.num_blocks, bool(problem.model.exits))
        self._finalize: Callable | None = None
        self._programs: dict[tuple[Route, int, int], Callable] = {}
        self._mesh: jax.sharding.Mesh | None = None
        if devices > 1:
            self._mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:devices]), (AXIS,))
        self._data = self._replicate(problem.data.device())
        self.routes: list[Route] = []
        self.compiler = Compiler()

    @property
    def programs(self) -> int:
        """Training programs compiled so far."""
        return len(self._programs)

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
        acc = self._algorithm.merge.init(state, variables, self._mask_shapes(plan))
        common = Round(
            key, jnp.float32(plan.learning_rate_scale), jax.tree.map(jnp.asarray, plan.shared)
        )
        if self._execution == "debug":
            return self._train_debug(acc, variables, plan, common)
        groups: dict[Route, list[int]] = {}
        for i, route in enumerate(self._executed_routes(plan.routes)):
            groups.setdefault(route, []).append(i)
        acc, variables, common = self._replicate((acc, variables, common))
        outputs = []
        for route, members in groups.items():
            chunk = self._chunk_for(plan, len(members))
            size = self._bucket(route, chunk, len(members))
            places, rows = self._rows(plan, members, size)
            arguments = (acc, variables, self._data, rows, common)
            acc, out = self._program(route, chunk, size, arguments)(*arguments)
            outputs.append((members, places, out))
        return acc, _collect(len(plan.clients), jax.device_get(outputs))

    def finalize(
        self, acc: PyTree, variables: Variables, shared: PyTree
    ) -> tuple[Variables, dict[str, Any]]:
        """Compiled `merge.finalize`."""
        if self._mesh is not None:
            acc = jax.device_put(acc, self._mesh.devices.flat[0])
        arguments = (acc, variables, jax.tree.map(jnp.asarray, shared))
        if self._finalize is None:
            self._finalize = self.compiler.compile(self._algorithm.merge.finalize, *arguments)
        return self._finalize(*arguments)

    def _replicate(self, tree: PyTree) -> PyTree:
        if self._mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def _mask_shapes(self, plan: Plan) -> PyTree:
        if self._algorithm.mask is None:
            return None
        row = jax.tree.map(lambda a: jnp.asarray(a[0]), plan.rows)
        return jax.eval_shape(self._algorithm.mask, row, jax.tree.map(jnp.asarray, plan.shared))

    def _executed_routes(self, planned: Any) -> list[Route]:
        """The route every client runs on: its own, or the cheapest covering one past the bound."""
        if self._execution == "masked":
            return [self._full] * len(planned)
        known = set(self.routes)
        chosen: dict[Route, Route] = {}
        for route in sorted(set(planned), key=self._route_price):
            # The last place is kept for the full route, which covers whatever comes later.
            room = self._max_routes - len(known | {self._full})
            if route in known or route == self._full or room > 0:
                chosen[route] = route
            else:
                covering = [r for r in known | {self._full} if r.covers(route)]
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

    def _chunk_for(self, plan: Plan, members: int) -> int:
        if self._chunk is not None:
            return self._chunk
        cost = self._problem.cost
        last = self._problem.model.num_blocks - 1
        step_flops = float(cost.step_flops(0, last)) * float(np.max(plan.batch))
        chunk = choose_chunk(jax.default_backend(), step_flops, int(np.sum(cost.param_bytes)))
        return min(chunk, _power_of_two(-(-members // self._devices), up=True))

    def _bucket(self, route: Route, chunk: int, members: int) -> int:
        """Padded length of a group: a power of two of chunks, or a larger one compiled already.

        Padding is never computed, so a bucket is only an upper bound.
        """
        per_device = -(-members // self._devices)
        need = self._devices * chunk * _power_of_two(-(-per_device // chunk), up=True)
        compiled = [b for r, c, b in self._programs if (r, c) == (route, chunk) and b >= need]
        return min(compiled, default=need)

    def _rows(self, plan: Plan, members: list[int], size: int) -> tuple[np.ndarray, Rows]:
        """Deals the members out over the devices and pads; returns their places and the rows."""
        order = np.arange(len(members))
        places = (order % self._devices) * (size // self._devices) + order // self._devices
        # Padding repeats a real client: a partly filled chunk never computes on nonsense.
        source = np.full(size, members[0])
        source[places] = members
        valid = np.zeros(size, bool)
        valid[places] = True
        last = self._problem.model.num_blocks - 1
        exits = np.asarray([last if r.exit is None else r.exit for r in plan.routes], np.int32)
        rows = Rows(
            valid=valid,
            client=plan.clients.astype(np.int32)[source],
            steps=plan.steps.astype(np.int32)[source],
            batch=plan.batch.astype(np.int32)[source],
            weight=plan.weight.astype(np.float32)[source],
            exit=exits[source],
            row=jax.tree.map(lambda a: np.asarray(a)[source], plan.rows),
        )
        return places, rows

    def _program(self, route: Route, chunk: int, size: int, arguments: tuple) -> Callable:
        """The compiled program, compiled at its first use and counted."""
        program = self._programs.get((route, chunk, size))
        if program is None:
            function = group_program(self._algorithm, route, chunk, self._mesh)
            program = self.compiler.compile(function, *arguments, donate=(0,))
            self._programs[route, chunk, size] = program
        return program

    def _train_debug(
        self, acc: PyTree, variables: Variables, plan: Plan, common: Round
    ) -> tuple[PyTree, Outputs]:
        outputs = []
        for i, client in enumerate(plan.clients):
            _, rows = self._rows(plan, [i], 1)
            one = jax.tree.map(lambda a: jnp.asarray(a[0]), rows)
            stage = "local training"
            try:
                with jax.disable_jit():
                    result, mask = train_one(
                        self._algorithm,
                        plan.routes[i],
                        variables,
                        self._data,
                        one,
                        one.steps,
                        common,
                    )
                    stage = "merge"
                    row, result, mask = jax.tree.map(lambda a: a[None], (one, result, mask))
                    acc, out = merge_chunk(
                        self._algorithm, acc, variables, row, result, mask, common
                    )
            except InputError:
                raise
            except Exception as error:
                message = f"client {int(client)} failed in its {stage}: {error}"
                raise ClientError(message) from error
            outputs.append(([i], np.arange(1), out))
        return acc, _collect(len(plan.clients), jax.device_get(outputs))


def _collect(k: int, groups: list[tuple[list[int], np.ndarray, Outputs]]) -> Outputs:
    """Puts the groups' outputs back into the plan's order."""
    total = jax.tree.map(lambda a: np.zeros((k, *a.shape[1:]), a.dtype), groups[0][2])
    for members, places, out in groups:
        for target, source in zip(jax.tree.leaves(total), jax.tree.leaves(out), strict=True):
            target[members] = source[places]
    return total
