"""Flower apps of a method: a `ClientApp` for the devices and a `ServerApp` that runs the rounds."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.data.batches import DeviceData
from fedjax_het.export.device import Device, own_samples, require_client, samples_of
from fedjax_het.export.remote import Remote
from fedjax_het.export.supported import fingerprint, require_exportable
from fedjax_het.problem import Problem
from fedjax_het.simulation.options import MACHINE, RunKeywords
from fedjax_het.simulation.simulate import simulate

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

# Options of a run that have no meaning for devices: the server has no programs of clients.
_SIMULATED = (*MACHINE, "stream", "personal")


class Apps(NamedTuple):
    """The two components of a Flower app.

    Attributes:
      client: app of the devices, for `[tool.flwr.app.components] clientapp`.
      server: app of the server, for `serverapp`.
    """

    client: "ClientApp"
    server: "ServerApp"


def flower(
    algorithm: Algorithm,
    problem: Problem,
    *,
    client_data: Callable[[Any], tuple[PyTree, np.ndarray]] | None = None,
    wait_s: float = 600.0,
    timeout_s: float | None = None,
    **run: Any,
) -> Apps:
    """Flower apps that run a method on devices as the simulation does.

    The server selects, plans, merges and steps, writes records and checkpoints, and evaluates on
    the problem's test set, all with the code of the simulation. A client trains with the method's
    local update, under the same keys, and sends the coordinates that it trains. The model is that
    of `simulate` with the same options, up to the order in which floats are added.

    The clock stays virtual: deadlines, depths, windows and budgets follow the speeds of the
    problem's fleet. Give it measured speeds (`fleet.Fleet(flops_per_s=...)`, docs/fleets.md) for
    plans that fit the real devices. A device that does not answer in time is left out of the merge.

    Both sides call this function with the same method and options, at the top of a module of the
    Flower app. The client of a node is its `partition-id`, which is the number of its device in the
    fleet.

    Args:
      algorithm: method, made for this problem.
      problem: model, data, fleet and objective. Of the clients' samples the server reads only the
        numbers (and a method their labels, if its plan counts classes).
      client_data: function from the `Context` of a node to its samples, inputs [n, ...] and labels
        [n, ...] as `data.from_arrays` takes them; None takes those that the problem has of the
        client.
      wait_s: seconds for which the server waits at the start until every client has a node.
      timeout_s: seconds after which the server no longer waits for the answers of a round; None
        for no limit.
      **run: options of the run, fields of `RunOptions` except those of the simulating machine.
        Values of the same name in the app's run configuration come before them.

    Returns:
      The apps.

    Raises:
      InputError: if the method cannot run on devices unchanged, if an option is unknown, or if
        Flower is not installed.
    """
    require_exportable(algorithm, problem)
    require(wait_s >= 0, f"wait_s = {wait_s}", "must be at least 0 seconds", "use 600")
    require(
        timeout_s is None or timeout_s > 0,
        f"timeout_s = {timeout_s}",
        "must be a positive number of seconds",
        "leave it out to wait for every device",
    )
    for name in run:
        require_known(name, _options(), "run option of flower")
    try:
        from fedjax_het.export import transport
    except ImportError as error:
        raise InputError(
            f"export.flower: needs Flower, which cannot be imported ({error}); run: pip install "
            '"fedjax-het[flower]"'
        ) from None

    device: list[Device] = []

    def serving() -> Device:
        # Made for the first message: the process of the server needs no programs of clients.
        if not device:
            device.append(Device(algorithm, problem))
        return device[0]

    def samples(context: Any) -> tuple[int, DeviceData]:
        client = require_client(problem, context.node_config.get("partition-id"))
        if client_data is None:
            return client, samples_of(problem, client)
        return client, own_samples(problem, client, *client_data(context))

    def serve(grid: Any, context: Any) -> None:
        given = {name.replace("-", "_"): value for name, value in context.run_config.items()}
        options = {**run, **{name: given[name] for name in _options() if name in given}}
        exchange = transport.GridExchange(grid, problem.data.sizes, method, wait_s, timeout_s)
        exchange.wait()
        engine = Remote(algorithm, problem, exchange)
        result = simulate(algorithm, problem, engine=engine, **options)
        if options.get("workdir") is not None:
            from fedjax_het.report.page import write_report

            write_report(result.record, Path(options["workdir"]) / "report.html")

    # As named tuples do, to be found again from another process.
    module = sys._getframe(1).f_globals.get("__name__", "__main__")
    method = fingerprint(algorithm, problem)
    client = transport.client_app(serving, samples, (module, method))
    return Apps(client, transport.server_app(serve))


def _options() -> list[str]:
    return [name for name in RunKeywords.__annotations__ if name not in _SIMULATED]
