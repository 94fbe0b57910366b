"""Flower's transport: messages as records, nodes as clients; the one module that imports Flower."""

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from absl import logging
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.app import Message as Envelope
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedjax_het.common.errors import InputError
from fedjax_het.data.batches import DeviceData
from fedjax_het.export.device import WHO, Device
from fedjax_het.export.message import Message

# Seconds between two looks at the nodes that are connected.
_PATIENCE_S = 1.0
# Names of the records of a message.
_ARRAYS, _WORDS = "arrays", "config"


def records(message: Message) -> RecordDict:
    """The records of a message."""
    # `numpy.ascontiguousarray` would give a scalar an axis.
    arrays = {name: Array(np.asarray(a, order="C")) for name, a in message.arrays.items()}
    return RecordDict({_ARRAYS: ArrayRecord(arrays), _WORDS: ConfigRecord(dict(message.words))})


def message_of(content: RecordDict) -> Message:
    """The message in records; inverse of `records`."""
    arrays = {name: array.numpy() for name, array in content.array_records[_ARRAYS].items()}
    return Message(arrays, dict(content.config_records[_WORDS]))


# Handlers of this process by their places.
_HANDLERS: dict[tuple[str, str, str], "Handler"] = {}


class Handler:
    """A function of a `ClientApp`, which travels to another process as the place of its app.

    Flower's simulation sends the app to the processes of its clients, but neither compiled programs
    nor closures over them can be sent. The other process imports the module of the app instead.

    Args:
      place: name of the module that makes the app, digest of its method, and kind of the messages.
      answer: function from an envelope and the context of a node to the reply.
    """

    def __init__(self, place: tuple[str, str, str], answer: Callable[..., Envelope]):
        self._place, self._answer = place, answer
        _HANDLERS[place] = self

    def __call__(self, envelope: Envelope, context: Context) -> Envelope:
        """Answers one message."""
        return self._answer(envelope, context)

    def __reduce__(self) -> tuple[Callable[..., "Handler"], tuple[str, str, str]]:
        return handler_at, self._place


def handler_at(module: str, method: str, kind: str) -> Handler:
    """The handler that a module makes when it is imported."""
    importlib.import_module(module)
    if (module, method, kind) not in _HANDLERS:
        raise InputError(
            f"export.flower in module {module!r}: does not make this app when it is imported; call "
            "it at the top of a module of the Flower app, with options that do not change"
        )
    return _HANDLERS[module, method, kind]


def client_app(
    device: Callable[[], Device],
    samples: Callable[[Context], tuple[int, DeviceData]],
    place: tuple[str, str],
) -> ClientApp:
    """The app of a node.

    Args:
      device: function that returns the device.
      samples: function from the context of a node to its client and the client's samples.
      place: name of the module that makes the app, and digest of the method.
    """
    app = ClientApp()

    def train(envelope: Envelope, context: Context) -> Envelope:
        content = device().train(message_of(envelope.content), *samples(context))
        return Envelope(content=records(content), reply_to=envelope)

    def query(envelope: Envelope, context: Context) -> Envelope:
        content = device().answer(message_of(envelope.content), *samples(context))
        return Envelope(content=records(content), reply_to=envelope)

    app.train()(Handler((*place, "train"), train))
    app.query()(Handler((*place, "query"), query))
    return app


def server_app(serve: Callable[[Grid, Context], None]) -> ServerApp:
    """The app of the server, which calls a function with the grid and the context of a run."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context)

    return app


class GridExchange:
    """Messages to the clients of a problem by the nodes of a Flower grid; see `remote.Exchange`.

    A node is asked once which client it is. One that holds another number of samples than the
    server plans with, or another method, is not used.

    Args:
      grid: grid of the run.
      sizes: number of samples of every client, int64[n].
      method: digest of the method, `supported.fingerprint`.
      wait_s: seconds for which `wait` waits.
      timeout_s: seconds for which an exchange waits for answers; None for no limit.
    """

    def __init__(
        self, grid: Grid, sizes: np.ndarray, method: str, wait_s: float, timeout_s: float | None
    ):
        self._grid, self._sizes, self._method = grid, sizes, method
        self._wait_s, self._timeout_s = wait_s, timeout_s
        self._node: dict[int, int] = {}  # by client
        self._refused: dict[int, str] = {}  # by node

    def wait(self) -> None:
        """Waits until every client has a node; raises `InputError` if some never get one."""
        began, missing = time.monotonic(), self._missing()
        while missing:
            if time.monotonic() - began > self._wait_s:
                why = "".join(f"; node {node} {said}" for node, said in self._refused.items())
                raise InputError(
                    f"clients {missing[:5]} (of {len(missing)}): have no node after "
                    f"{self._wait_s:g} s{why}; start a SuperNode for each with --node-config "
                    "'partition-id=K', or wait longer (wait_s)"
                )
            time.sleep(_PATIENCE_S)
            missing = self._missing()

    def __call__(
        self, kind: Literal["train", "query"], messages: Mapping[int, Message]
    ) -> dict[int, Message]:
        """Sends messages to clients and waits for their answers."""
        if any(client not in self._node for client in messages):
            self._missing()
        sent = {self._node[c]: m for c, m in messages.items() if c in self._node}
        client = {node: c for c, node in self._node.items()}
        received = self._answers(kind, sent)
        return {client[node]: message for node, message in received.items()}

    def _missing(self) -> list[int]:
        """The clients without a node, after new nodes have been asked who they are."""
        known = {*self._node.values(), *self._refused}
        new = [node for node in self._grid.get_node_ids() if node not in known]
        if new:
            asked = Message({}, {"ask": WHO})
            for node, answer in self._answers("query", dict.fromkeys(new, asked)).items():
                self._meet(node, answer.words)
        return [client for client in range(len(self._sizes)) if client not in self._node]

    def _meet(self, node: int, told: Mapping[str, Any]) -> None:
        client, held, wanted = int(told["client"]), int(told["samples"]), None
        if 0 <= client < len(self._sizes):
            wanted = int(self._sizes[client])
        if told["method"] != self._method:
            self._refused[node] = "has another method or model"
        elif held != wanted:
            self._refused[node] = f"has {held} samples of client {client}, planned are {wanted}"
        else:
            # A node that comes in place of another one serves its client from now on.
            self._node[client] = node
            return
        logging.warning("node %d %s; it is not used", node, self._refused[node])

    def _answers(
        self, kind: Literal["train", "query"], messages: Mapping[int, Message]
    ) -> dict[int, Message]:
        """The answers of nodes, without those that failed or were late."""
        envelopes = [
            Envelope(content=records(message), message_type=kind, dst_node_id=node)
            for node, message in messages.items()
        ]
        answers = {}
        for reply in self._grid.send_and_receive(envelopes, timeout=self._timeout_s):
            node = reply.metadata.src_node_id
            if reply.has_error():
                error = reply.error
                logging.warning("node %d failed (%s): %s", node, error.code, error.reason)
            else:
                answers[node] = message_of(reply.content)
        return answers
