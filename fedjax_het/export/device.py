"""A device: it trains on its own samples what the server sends, with the method's own function."""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Variables
from fedjax_het.contract.masks import Route, decoded
from fedjax_het.contract.plan import Question
from fedjax_het.data.batches import DeviceData
from fedjax_het.data.checks import as_labels, as_storage, num_samples
from fedjax_het.data.streaming import part_of
from fedjax_het.engine.rows import Round, Rows
from fedjax_het.engine.work import sub_network, train_alone
from fedjax_het.export.message import Message, leaf_parts, leaves_like, tree_of
from fedjax_het.export.supported import fingerprint, require_exportable
from fedjax_het.export.update import model_of, result_message
from fedjax_het.problem import Problem
from fedjax_het.runtime.compiling import Compiler
from fedjax_het.transforms.sending import attached

# The words of the questions that a server asks.
WHO, MEASURE = "who", "measure"


class Device:
    """The part of a method that runs where the samples of a client are.

    It keeps nothing between two messages but compiled programs, so one object may serve several
    clients, and a client may be served by a new process every time.

    Args:
      algorithm: method, made with the same options as that of the server.
      problem: problem whose model, preprocessing and objective are those of the server. Of its
        data only the numbers of samples are read.

    Raises:
      InputError: if the method cannot be exported.
    """

    def __init__(self, algorithm: Algorithm, problem: Problem):
        require_exportable(algorithm, problem)
        self._method = fingerprint(algorithm, problem)
        self._algorithm, self._problem = attached(algorithm, problem), problem
        self._compiler = Compiler()
        self._programs: dict[Any, Callable[..., Any]] = {}
        self._outlines: dict[Route, Variables] = {}

    def train(self, message: Message, client: int, data: DeviceData) -> Message:
        """The update of a client for the task in a message.

        Args:
          message: task, from `Remote`.
          client: id of the client.
          data: samples of the client, from `samples_of` or `own_samples`.
        """
        words = message.words
        route = decoded(json.loads(str(words["route"])))
        common = Round(
            jax.random.wrap_key_data(jnp.asarray(message.arrays["key"])),
            np.float32(words["learning_rate_scale"]),
            tree_of("shared", message),
        )
        rows = row_of(message, client)
        algorithm, shapes = self._algorithm, self._problem.model.shapes
        if route not in self._outlines:
            self._outlines[route] = start_shapes(algorithm, shapes, route, rows, common)
        outline = self._outlines[route]
        start = model_of(route, message, outline)
        make = functools.partial(training_of, algorithm, shapes, route, outline)
        result, mask = jax.device_get(self._run("train", route, make, start, data, rows, common))
        live = self._problem.model.stats_policy == "mean"
        return result_message(result, mask, stats=live)

    def answer(self, message: Message, client: int, data: DeviceData) -> Message:
        """The answer to a question: who the client is, or what the method measures on its samples.

        The arguments are those of `train`.
        """
        if message.words["ask"] == WHO:
            held = int(data.count[client])
            return Message({}, {"client": client, "samples": held, "method": self._method})
        measure, shapes = self._algorithm.measure, self._problem.model.shapes
        assert measure is not None
        start = leaves_like("start", message, shapes)
        key = jax.random.wrap_key_data(jnp.asarray(message.arrays["key"]))
        scale = np.float32(message.words["learning_rate_scale"])
        asked = Question(np.int32(client), key, tree_of("row", message), scale)

        def run(start: Variables, data: DeviceData, asked: Question) -> PyTree:
            own = jax.random.fold_in(asked.key, asked.client)
            return measure(start, data, asked._replace(key=own))

        answer = self._run("measure", None, lambda: run, start, data, asked)
        return Message(leaf_parts("answer", jax.device_get(answer)), {})

    def _run(
        self, kind: str, route: Route | None, make: Callable[[], Callable], *arguments: Any
    ) -> Any:
        """Runs a function that is compiled at its first use for arguments of these shapes."""
        leaves, structure = jax.tree.flatten(arguments)
        place = kind, route, structure, tuple((jnp.shape(a), jnp.result_type(a)) for a in leaves)
        arguments = jax.tree.map(jnp.asarray, arguments)
        if place not in self._programs:
            self._programs[place] = self._compiler.compile(make(), *arguments)
        return self._programs[place](*arguments)


def row_of(message: Message, client: int) -> Rows:
    """The row of a client in a message, as far as its training reads it."""
    columns = ("steps", "batch", "exit", "width")
    return Rows(
        valid=np.asarray(True),
        client=np.int32(client),
        weight=np.float32(0),
        row=tree_of("row", message),
        staleness=np.int32(0),
        place=np.int32(0),
        **{name: np.int32(message.words[name]) for name in columns},
    )


def start_shapes(
    algorithm: Algorithm, shapes: Variables, route: Route, rows: Rows, common: Round
) -> Variables:
    """Shapes of the tensors with which a client of a route starts."""
    if algorithm.widths is None:
        return shapes

    def tensors(whole: Variables, rows: Rows, common: Round) -> Variables:
        own, _ = sub_network(algorithm, route, whole.params, rows, common)
        assert own is not None
        return own.tensors(whole)

    return jax.eval_shape(tensors, shapes, rows, common)


def training_of(
    algorithm: Algorithm, shapes: Variables, route: Route, outline: Variables
) -> Callable[[Variables, DeviceData, Rows, Round], tuple[ClientResult, PyTree]]:
    """The function `(start, data, rows, common) -> (result, mask)` of a device, traced.

    Args:
      algorithm: method.
      shapes: shapes of the model.
      route: route that is compiled in.
      outline: shapes of the tensors with which the client starts.
    """

    def run(
        held: Variables, data: DeviceData, rows: Rows, common: Round
    ) -> tuple[ClientResult, PyTree]:
        _, mask = sub_network(algorithm, route, shapes.params, rows, common)
        # Tensors that the route never reads have no values, and no place in the program.
        start = jax.tree.map(
            lambda own, like: jnp.zeros(like.shape, like.dtype) if own is None else own,
            held,
            outline,
            is_leaf=lambda leaf: leaf is None,
        )
        result = train_alone(algorithm, route, start, mask, data, rows, rows.steps, common)
        return result, mask

    return run


def samples_of(problem: Problem, client: int) -> DeviceData:
    """The samples that the problem has of a client, on the device.

    All clients have arrays of one size, that of the largest, for which one program serves.
    """
    return part_of(problem.data, np.asarray([client]), int(np.max(problem.data.sizes)))


def own_samples(problem: Problem, client: int, x: PyTree, y: np.ndarray) -> DeviceData:
    """A device's own samples.

    Args:
      problem: problem, whose data tell the kind, the shape and the number of the samples.
      client: id of the client.
      x: inputs, [n, ...] as they are stored in `FederatedData`.
      y: labels, [n, ...].

    Raises:
      InputError: if they are of another kind or number than the problem says.
    """
    data = problem.data
    x, y = as_storage(x, "client_data x"), as_labels(y, "client_data y")
    told = jax.tree.map(lambda a: (a.dtype, a.shape[1:]), (x, y))
    known = jax.tree.map(lambda a: (a.dtype, a.shape[1:]), (data.x, data.y))
    require(
        told == known,
        f"client_data of client {client} with samples {told}",
        f"must be like those of the problem, {known}",
        "convert them as the problem's test samples are",
    )
    count = int(data.sizes[client])
    require(
        num_samples(x) == len(y) == count,
        f"client_data of client {client} with {num_samples(x)} inputs and {len(y)} labels",
        f"must be the {count} samples with which the server plans and weighs this client",
        "state the real number of samples in the problem's data",
    )
    places, begin = np.arange(count, dtype=np.int32), np.zeros(data.num_clients, np.int32)
    held: Any = jax.device_put((x, y, places, begin, data.count))
    inputs, labels, order, start, sizes = held
    return DeviceData(inputs, labels, order, start, sizes, streamed=True)


def require_client(problem: Problem, client: Any) -> int:
    """The id of a client of the problem; `InputError` if it is none."""
    number = int(client) if str(client).isdigit() else -1
    if not 0 <= number < problem.num_clients:
        raise InputError(
            f"partition-id = {client!r}: must be a client, 0 to {problem.num_clients - 1}; start "
            "the node with --node-config 'partition-id=0'"
        )
    return number
