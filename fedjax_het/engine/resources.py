"""What all programs of a run share: data on the devices, the compiler, the choice of chunks."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.contract.masks import Route, full_route
from fedjax_het.engine.placement import check_devices, place
from fedjax_het.engine.routes import Routes
from fedjax_het.models import autotune
from fedjax_het.problem import Problem
from fedjax_het.runtime import allocation, processes
from fedjax_het.runtime.chunking import choose_chunk, power_of_two
from fedjax_het.runtime.compiling import Compiler

Execution = Literal["routed", "masked", "debug"]
ConvolutionChoice = Literal["table", "tuned"]


def check_resources(
    execution: str, chunk: int | None, max_routes: int, devices: int, convolution: str
) -> None:
    """Raises `InputError` unless `Resources` can be made with these arguments."""
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


class Resources:
    """What the engines of several methods on one problem may share.

    Args:
      problem: model, data and fleet.
      execution: "routed" leaves out the work a route permits; "masked" runs everyone on the full
        route; "debug" runs client by client without compiling, names the client and stage that
        fail, and is the oracle of the other two.
      chunk: clients trained side by side; None chooses per backend (`choose_chunk`).
      max_routes: bound on the routes compiled in a run; past it, routes are widened to the cheapest
        covering one.
      devices: local devices of every process that the clients are sharded over.
      convolution: "table" takes the lowering of every convolution from a table of measurements,
        "tuned" measures on this device (`autotune`); "debug" execution always takes the table.

    Attributes:
      problem, execution: as given.
      place: the devices.
      data: the samples on all of them.
      full: the route that covers every other.
      last: index of the network's deepest block.
      compiler: counts the seconds spent compiling.
      tuner: what chooses the lowerings, and remembers them; None if the table does.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        execution: Execution = "routed",
        chunk: int | None = None,
        max_routes: int = 32,
        devices: int = 1,
        convolution: ConvolutionChoice = "table",
    ):
        check_resources(execution, chunk, max_routes, devices, convolution)
        self.problem, self.execution = problem, execution
        self._chunk, self._max_routes = chunk, max_routes
        self.last = problem.model.num_blocks - 1
        self._sample_flops = float(problem.cost.step_flops(0, self.last))
        self._param_bytes = int(np.sum(problem.cost.param_bytes))
        self.full = full_route(problem.model.num_blocks, bool(problem.model.exits))
        self.place = place(devices)
        self.data = self.place.whole(problem.data.device())
        self.compiler = Compiler()
        self.tuner = autotune.Tuner(autotune.file()) if convolution == "tuned" else None
        if jax.default_backend() == "cpu":
            allocation.keep_freed()

    def routes(self, known: Sequence[Route] = ()) -> Routes:
        """The routes of a run, which starts with none or with those of its checkpoint."""
        bound = 0 if self.execution == "masked" else self._max_routes
        return Routes(bound, self.full, self.problem.cost, known)

    def side_by_side(self, batch: np.ndarray) -> int:
        """How many clients with mini-batches int64[k] to train at once, if there are as many."""
        if self._chunk is not None:
            return self._chunk
        step_flops = self._sample_flops * float(np.max(batch))
        return choose_chunk(jax.default_backend(), step_flops, self._param_bytes)

    def chunk_for(self, batch: np.ndarray, members: int, *, varied: bool = False) -> int:
        """Clients of a group of so many members to train side by side, on each device.

        Args:
          batch: int64[k], samples per mini-batch.
          members: clients of the group.
          varied: whether groups of all sizes are to come, as those of asynchronous clients.
        """
        chunk = self.side_by_side(batch)
        if self._chunk is not None:
            return chunk
        members = -(-members // self.place.size)
        if not varied:
            return min(chunk, power_of_two(members, up=True))
        # Chunks of 1, 8 and 64 keep the programs few.
        eights = np.log2(members) / 3
        on_cpu = jax.default_backend() == "cpu"
        fill = 8 ** int(np.floor(eights) if on_cpu else np.ceil(eights))
        return min(chunk, fill)

    def rows_for(self, chunk: int, members: int, devices: int | None = None) -> int:
        """Rows of a group of at most so many members; padding is never computed."""
        side_by_side = (self.place.size if devices is None else devices) * chunk
        return side_by_side * power_of_two(-(-members // side_by_side), up=True)

    def compile(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        *,
        chunk: int = 1,
        side_by_side: bool = False,
        donate: tuple[int, ...] = (),
    ) -> Callable[..., Any]:
        """The function compiled for these arguments, with the lowerings of its chunk."""
        with autotune.choosing(self.tuner, chunk):
            return self.compiler.compile(
                function, *arguments, donate=donate, side_by_side=side_by_side
            )
