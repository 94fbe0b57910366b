"""Resources that all programs of a run share: data on the devices, compiler, choice of chunks."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import jax
import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.contract.masks import full_route
from fedjax_het.data.batches import DeviceData
from fedjax_het.data.streaming import part_of
from fedjax_het.engine.placement import check_devices, place
from fedjax_het.engine.routes import PRICES, Routes
from fedjax_het.models import autotune
from fedjax_het.problem import Problem
from fedjax_het.runtime import allocation, processes
from fedjax_het.runtime.chunking import choose_chunk, power_of_two
from fedjax_het.runtime.compiling import Compiler

Execution = Literal["routed", "masked", "debug"]
ConvolutionChoice = Literal["table", "tuned"]


class ResourceKeywords(TypedDict, total=False):
    """The options of `Resources` as keywords, for editors and type checkers."""

    execution: Execution
    chunk: int | None
    max_routes: int
    devices: int
    convolution: ConvolutionChoice
    stream: bool


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
    """The resources that the engines of several methods on one problem may share.

    Args:
      problem: model, data and fleet.
      execution: way to run the clients: "routed" skips the work that a route permits to skip;
        "masked" runs all clients on the full route; "debug" runs client by client without
        compiling, and its errors name the client and the stage.
      chunk: number of clients trained side by side, not more than there are; None chooses it by
        backend (`choose_chunk`).
      max_routes: largest number of routes compiled in a run; further routes are replaced by the
        cheapest covering one.
      devices: number of local devices of every process over which the clients are sharded.
      convolution: way to choose the lowering of every convolution: "table" reads it from a table of
        measurements, "tuned" measures on this device (`autotune`); "debug" execution always uses
        the table.
      stream: whether the samples stay where they are, perhaps in a file, and those of a cohort are
        copied to the devices for their round; otherwise all are on the devices from the start.

    Attributes:
      problem, execution, stream: the arguments of these names.
      place: placement on the devices.
      full: route that covers every other.
      last: index of the model's deepest block.
      compiler: compiler, which counts the seconds spent compiling.
      tuner: tuner that chooses and remembers the lowerings; None if the table does.
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
        stream: bool = False,
    ):
        check_resources(execution, chunk, max_routes, devices, convolution)
        self.problem, self.execution = problem, execution
        # More rows than clients would only take memory.
        most = power_of_two(problem.num_clients, up=True)
        self._chunk = None if chunk is None else min(chunk, most)
        self._max_routes = max_routes
        self.last = problem.model.num_blocks - 1
        self._sample_flops = float(problem.cost.step_flops(0, self.last))
        self._param_bytes = int(np.sum(problem.cost.param_bytes))
        self.full = full_route(problem.model.num_blocks, bool(problem.model.exits))
        self.place = place(devices)
        self.stream = stream
        self._data = None if stream else self.place.whole(problem.data.device())
        self.compiler = Compiler()
        self.tuner = autotune.Tuner(autotune.file()) if convolution == "tuned" else None
        if jax.default_backend() == "cpu":
            allocation.keep_freed()

    def routes(
        self,
        *,
        rents: bool = False,
        shares: Sequence[float] = (1.0,),
        saved: Mapping[str, Any] | None = None,
    ) -> Routes:
        """The routes of a run.

        Args:
          rents: whether a new route is rented before it gets a program; see `engine.routes`.
          shares: FLOPs of the network of each width relative to the complete model.
          saved: `Routes.saved` of the run's checkpoint, if it resumes.
        """
        bound = 0 if self.execution == "masked" else self._max_routes
        price = PRICES["cpu" if jax.default_backend() == "cpu" else "other"] if rents else None
        return Routes(bound, self.full, self.problem.cost, price, shares, saved)

    @functools.cached_property
    def _most_samples(self) -> np.ndarray:
        """The most samples that 1, 2, ... clients have together, int64[n]."""
        return np.cumsum(np.sort(self.problem.data.sizes)[::-1])

    def data_of(self, clients: np.ndarray, most: int) -> DeviceData:
        """The samples of some clients on every device.

        Args:
          clients: ids of the clients, int64[k].
          most: number of different clients in other calls for the same program, at least that of
            this one; arrays have room for the samples of any so many.
        """
        if self._data is not None:
            return self._data
        rows = int(self._most_samples[min(most, len(self._most_samples)) - 1])
        return self.place.whole(part_of(self.problem.data, np.unique(clients), rows))

    def side_by_side(self, batch: np.ndarray, share: float = 1.0) -> int:
        """Largest useful number of clients side by side.

        Args:
          batch: samples per mini-batch, int64[k].
          share: FLOPs of their network relative to the complete model.
        """
        if self._chunk is not None:
            return self._chunk
        step_flops = share * self._sample_flops * float(np.max(batch))
        return choose_chunk(jax.default_backend(), step_flops, self._param_bytes)

    def chunk_for(
        self, batch: np.ndarray, members: int, *, varied: bool = False, share: float = 1.0
    ) -> int:
        """Number of clients of a group to train side by side on each device.

        Args:
          batch: samples per mini-batch, int64[k].
          members: number of clients in the group.
          varied: whether later groups will have many different sizes, as with asynchronous clients.
          share: FLOPs of their network relative to the complete model.
        """
        chunk = self.side_by_side(batch, share)
        if self._chunk is not None:
            return chunk
        members = -(-members // self.place.size)
        if not varied:
            return min(chunk, power_of_two(members, up=True))
        # With only the sizes 1, 8 and 64 there are few programs.
        eights = np.log2(members) / 3
        on_cpu = jax.default_backend() == "cpu"
        fill = 8 ** int(np.floor(eights) if on_cpu else np.ceil(eights))
        return min(chunk, fill)

    def rows_for(self, chunk: int, members: int, devices: int | None = None) -> int:
        """Number of rows for a group of at most `members` clients; padding is never computed."""
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
        """Compiles a function for these arguments, with the lowerings chosen for its chunk."""
        with autotune.choosing(self.tuner, chunk):
            return self.compiler.compile(
                function, *arguments, donate=donate, side_by_side=side_by_side
            )
