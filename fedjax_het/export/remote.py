"""The engine of a deployment: clients train on devices, the server merges what they send."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from fedjax_het.common.errors import InputError
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Question
from fedjax_het.data.batches import DeviceData
from fedjax_het.engine.engine import Engine
from fedjax_het.engine.packing import Packed, collect, pack
from fedjax_het.engine.resources import Resources
from fedjax_het.engine.rows import Outputs, Round, Rows
from fedjax_het.engine.steps import Now
from fedjax_het.engine.work import Work, client_mask, sub_network, training
from fedjax_het.export.device import MEASURE, start_shapes, training_of
from fedjax_het.export.message import (
    Message,
    UnusableError,
    Word,
    leaf_parts,
    leaves_like,
    tree_parts,
)
from fedjax_het.export.supported import require_exportable
from fedjax_het.export.update import model_parts, nothing_of, result_of
from fedjax_het.problem import Problem

# `(kind, messages by client) -> answers by client`, without those that did not answer.
Exchange = Callable[[Literal["train", "query"], Mapping[int, Message]], Mapping[int, Message]]


class Remote(Engine):
    """An engine whose clients are devices at the other end of an exchange of messages.

    A client that does not answer, or not as it should, counts like one whose update is not finite:
    the merge leaves it out. The info of every step has the bytes of the arrays that were sent and
    received, `payload_bytes_down` and `payload_bytes_up`, and the number of `silent_clients`.

    Args:
      algorithm: method to run.
      problem: problem of the server. Of the clients' samples only their numbers are read.
      exchange: function that sends messages and waits for the answers.

    Raises:
      InputError: if the method cannot be exported.
    """

    def __init__(self, algorithm: Algorithm, problem: Problem, exchange: Exchange):
        require_exportable(algorithm, problem)
        super().__init__(algorithm, Resources(problem, stream=True))
        self.batches, self._exchange = False, exchange
        if algorithm.measure is not None:
            self.measure = self._measure
        self._merging = training(self._algorithm, narrow=False)
        self._counted = _nothing_sent()
        self._results: dict[Route, ClientResult] = {}

    def train(
        self,
        state: PyTree,
        variables: Variables,
        plan: Plan,
        key: jax.Array,
        routes: Sequence[Route] | None = None,
    ) -> tuple[PyTree, Outputs]:
        """Lets every client of a plan train on its device, and merges the results.

        The arguments are those of `Engine.train`. A device has no programs of wider routes that it
        could use, so each runs its planned route.
        """
        del routes
        common = Round(
            key,
            jnp.float32(plan.learning_rate_scale),
            jax.tree.map(jnp.asarray, plan.shared),
        )
        model = jax.device_get(variables)
        tasks = [self._task_of(plan, i, variables, model, common) for i in range(len(plan.clients))]
        sent = {task.client: task.message for task in tasks}
        received, faults = self._sent("train", sent), []
        acc, packed, outputs = self.begin(state, variables, plan), [], []
        for task in tasks:
            try:
                result = task.result(received)
            except UnusableError as error:
                faults.append(f"client {task.client}: {error}")
                logging.warning("the update of %s; it is left out", faults[-1])
                result = nothing_of(task.like, task.start)
            acc, out = self._take(task, acc, variables, result, common)
            packed.append(task.place)
            outputs.append(out)
        self._note(faults, len(tasks))
        return acc, collect(packed, jax.device_get(outputs))

    def close(
        self, acc: PyTree, state: PyTree, variables: Variables, shared: PyTree, now: Now
    ) -> tuple[PyTree, Variables, Mapping[str, Any]]:
        """Finishes a merge, see `Engine.close`; the info tells what was sent and received."""
        state, variables, info = super().close(acc, state, variables, shared, now)
        counted, self._counted = self._counted, _nothing_sent()
        return state, variables, {**info, **counted}

    def _sent(
        self, kind: Literal["train", "query"], messages: Mapping[int, Message]
    ) -> Mapping[int, Message]:
        """Sends messages, waits for the answers, and counts the bytes of both."""
        received = self._exchange(kind, messages)
        for way, several in (("down", messages), ("up", received)):
            total = sum(message.payload_bytes for message in several.values())
            self._counted[f"payload_bytes_{way}"] += total
        return received

    def _measure(self, variables: Variables, asked: Question) -> PyTree:
        """`Situation.measure`: every client answers on its device; a silent one with zeros."""
        measure = self._algorithm.measure
        assert measure is not None
        scale = float(np.float32(asked.learning_rate_scale))
        start = leaf_parts("start", jax.device_get(variables))
        start["key"] = np.asarray(jax.random.key_data(asked.key))
        messages, rows = {}, []
        for i, client in enumerate(np.asarray(asked.client).tolist()):
            row = jax.tree.map(lambda a, i=i: np.asarray(a)[i], asked.row)
            arrays, words = tree_parts("row", row)
            told: dict[str, Word] = {"ask": MEASURE, "learning_rate_scale": scale, **words}
            messages[client] = Message({**start, **arrays}, told)
            rows.append(row)
        one = Question(np.int32(0), asked.key, _canonical(rows[0]), np.float32(scale))
        like = jax.eval_shape(measure, variables, self._abstract_data(), one)
        received, faults, answers = self._sent("query", messages), [], []
        for client in messages:
            try:
                if client not in received:
                    raise UnusableError("no answer")
                answers.append(leaves_like("answer", received[client], like))
            except UnusableError as error:
                faults.append(f"client {client}: {error}")
                logging.warning("the measurement of %s; zeros stand for it", faults[-1])
                answers.append(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like))
        self._note(faults, len(messages))
        return jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *answers)

    def _note(self, faults: Sequence[str], asked: int) -> None:
        """Counts the clients that did not answer; raises `InputError` if none of them did."""
        if len(faults) == asked:
            raise InputError(
                f"no client of {asked} answered ({faults[0]}); look at the logs of the devices and "
                "start the server again, which continues from the checkpoint of its workdir"
            )
        self._counted["silent_clients"] += len(faults)

    def _abstract_data(self) -> DeviceData:
        """Samples of a device as `ShapeDtypeStruct`s; their number does not matter here."""
        data = self.resources.problem.data

        def of(a: Any, count: int) -> Any:
            return jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype)

        x, y = jax.tree.map(lambda a: of(a, 1), (data.x, data.y))
        clients = of(data.count, data.num_clients)
        return DeviceData(x, y, of(data.order, 1), clients, clients, streamed=True)

    def _task_of(
        self, plan: Plan, i: int, variables: Variables, model: Variables, common: Round
    ) -> "_Task":
        """What the i-th client of a plan is given, and how its result is read."""
        algorithm, route = self._algorithm, plan.routes[i]
        place, padded = pack(plan, [i], 1, self.resources.last)
        rows = jax.tree.map(lambda a: _canonical(a[0]), padded)
        start, mask = model, None
        if algorithm.mask is not None or algorithm.widths is not None:
            open_ = self._program(
                ("open", self._kind_of(route)),
                lambda: functools.partial(_opened, algorithm, route),
                (variables, rows, common),
            )
            own, mask = jax.device_get(open_(variables, rows, common))
            start = model if own is None else own
        arrays, words = tree_parts("row", rows.row)
        more, told = tree_parts("shared", common.shared)
        arrays |= {**more, **model_parts(route, start)}
        arrays["key"] = np.asarray(jax.random.key_data(common.key))
        columns = ("steps", "batch", "exit", "width")
        words |= {**told, **{name: int(getattr(rows, name)) for name in columns}}
        words["route"] = json.dumps(route.code)
        words["learning_rate_scale"] = float(common.learning_rate_scale)
        live = self.resources.problem.model.stats_policy == "mean"
        like, message = self._result_like(route, rows, common), Message(arrays, words)
        return _Task(int(rows.client), route, message, start, mask, like, live, place, padded)

    def _result_like(self, route: Route, rows: Rows, common: Round) -> ClientResult:
        """Shapes of the result of a client of a route."""
        if route not in self._results:
            algorithm, shapes = self._algorithm, self.resources.problem.model.shapes
            outline = start_shapes(algorithm, shapes, route, rows, common)
            local = training_of(algorithm, shapes, route, outline)
            found = jax.eval_shape(local, outline, self._abstract_data(), rows, common)
            self._results[route] = found[0]
        return self._results[route]

    def _take(
        self, task: "_Task", acc: PyTree, variables: Variables, result: ClientResult, common: Round
    ) -> tuple[PyTree, Outputs]:
        """Adds the result of one client to the accumulator of the merge."""
        arguments = acc, variables, task.rows, result, common
        make = functools.partial(_taking, self._algorithm, self._merging, task.route)
        kind = "take", self._kind_of(task.route)
        return self._program(kind, make, arguments, donate=(0,))(*arguments)

    def _kind_of(self, route: Route) -> Route | None:
        """The route of a sub-network by width, which has programs of its own; else None."""
        return None if self._algorithm.widths is None else route


class _Task(NamedTuple):
    """A task as it is sent, and what is needed to read its result.

    Attributes:
      client: id of the client.
      route: planned route.
      message: task as it is sent.
      start: tensors with which the client starts, NumPy.
      mask: mask in their shapes, NumPy, or None.
      like: shapes of the result.
      live: whether running statistics are sent.
      place, rows: result of `packing.pack`.
    """

    client: int
    route: Route
    message: Message
    start: Variables
    mask: PyTree
    like: ClientResult
    live: bool
    place: Packed
    rows: Rows

    def result(self, received: Mapping[int, Message]) -> ClientResult:
        """The result among the answers; raises `UnusableError` without a usable one."""
        if self.client not in received:
            raise UnusableError("no answer")
        answer = received[self.client]
        return result_of(answer, self.like, self.mask, self.start, stats=self.live)


def _opened(
    algorithm: Algorithm, route: Route, whole: Variables, rows: Rows, common: Round
) -> tuple[Variables | None, PyTree]:
    """The tensors of a client's sub-network, None for the whole model, and its mask; traced."""
    own, mask = sub_network(algorithm, route, whole.params, rows, common)
    return None if own is None else own.tensors(whole), mask


def _taking(algorithm: Algorithm, work: Work, route: Route) -> Callable[..., Any]:
    """The function `(acc, whole, rows, result, common) -> (acc, outputs)` of one client, traced."""

    def run(
        acc: PyTree, whole: Variables, rows: Rows, result: ClientResult, common: Round
    ) -> tuple[PyTree, Outputs]:
        row = jax.tree.map(lambda a: a[0], rows)
        own, mask = sub_network(algorithm, route, whole.params, row, common)
        if own is not None:
            result = own.completed(result, whole, own.tensors(whole))
            mask = client_mask(algorithm, row, common)
        result, mask = jax.tree.map(lambda a: a[None], (result, mask))
        return work.consume(acc, route, whole, rows, result, mask, common)

    return run


def _nothing_sent() -> dict[str, int]:
    return {"payload_bytes_down": 0, "payload_bytes_up": 0, "silent_clients": 0}


def _canonical(tree: PyTree) -> PyTree:
    """Numbers in the width in which programs compute, as in a message."""
    return jax.tree.map(
        lambda a: np.asarray(a).astype(jax.dtypes.canonicalize_dtype(np.asarray(a).dtype)), tree
    )
