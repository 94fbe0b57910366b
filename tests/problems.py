"""Tiny problems and helpers that the tests of the core share; importable as `problems`."""

import functools
from collections.abc import Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm, Chunk, ClientResult, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Situation, Timing
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.engine.engine import Engine, make_engine
from fedjax_het.engine.routes import Routes
from fedjax_het.engine.steps import Now
from fedjax_het.fleet.device import Fleet
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block, flax_block
from fedjax_het.models.exits import with_exits
from fedjax_het.models.mlp import Dense, mlp
from fedjax_het.models.norm import BatchNorm
from fedjax_het.problem import Problem

SIZES = (3, 5, 8, 6, 7, 4, 8, 2)  # samples per client: unequal, at most two batches of four
SPEEDS = (0.5, 0.8, 1.0)  # relative; with the networks below FedPMT gives depths 1, 2 and 3
TEST_SAMPLES = 40


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y


@functools.cache
def digits(sizes: Sequence[int] = SIZES, shape: tuple[int, ...] = (64,)) -> FederatedData:
    """The first of scikit-learn's 8x8 digits, dealt out in order."""
    x, y = _digits()
    x = x.reshape(-1, *shape)
    n = sum(sizes)
    held_out = slice(n, n + TEST_SAMPLES)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return from_arrays(x[:n], y[:n], x[held_out], y[held_out], clients=owner, num_classes=10)


def fleet(n: int, **columns: Any) -> Fleet:
    """Three speeds in turn, links of 100 kB/s."""
    speed = np.resize(np.asarray(SPEEDS) * 1e6, n)
    links = {"downlink_bytes_per_s": 2e5, "uplink_bytes_per_s": 1e5}
    return Fleet(**{"flops_per_s": speed, **links, **columns})


@functools.cache
def digits_problem(sizes: Sequence[int] = SIZES, hidden: Sequence[int] = (12, 8)) -> Problem:
    """A small ReLU network on a few digits; three blocks, eight clients, three speeds."""
    return Problem(mlp((64,), 10, hidden=hidden), digits(sizes), fleet(len(sizes)))


@functools.cache
def exits_problem(sizes: Sequence[int] = SIZES, hidden: Sequence[int] = (12, 8)) -> Problem:
    """The same with an exit head after every block."""
    model = with_exits(mlp((64,), 10, hidden=hidden))
    return Problem(model, digits(sizes), fleet(len(sizes)))


class _DenseBatchNorm(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool | jax.Array) -> jax.Array:
        x = nn.Dense(self.features)(x)
        return nn.relu(BatchNorm()(x, train=train))


@functools.cache
def batch_norm_problem(
    sizes: Sequence[int] = (5, 8, 6), *, traced_train: bool = True, exits: bool = False
) -> Problem:
    """A hidden layer with batch normalisation, hence running statistics, and a linear one."""
    blocks = (
        flax_block("fc1", _DenseBatchNorm(8), traced_train=traced_train),
        flax_block("fc2", Dense(10)),
    )
    model = BlockModel("batch_norm_mlp", blocks, (64,), 10)
    return Problem(with_exits(model) if exits else model, digits(sizes), fleet(len(sizes)))


def scalar_block(name: str) -> Block:
    def init(key: jax.Array, x: Any) -> tuple[Any, Any]:
        del key, x
        return {"w": jnp.zeros((), jnp.float32)}, {}

    def apply(params: Any, stats: Any, x: jax.Array, *, train: Any, key: Any) -> Any:
        del train, key
        return x @ params["w"].reshape(1, 1), stats

    return Block(name, init, apply)


@functools.cache
def scalar_problem(sizes: Sequence[int] = (10, 20, 30), blocks: int = 4) -> Problem:
    """Blocks of one parameter each, y = x w_1 ... w_L, inputs zero; for goldens by hand."""
    n = sum(sizes)
    x, y = np.zeros((n, 1), np.float32), np.zeros(n, np.int32)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    data = from_arrays(x, y, x[:1], y[:1], clients=owner, num_classes=1)
    model = BlockModel("scalars", tuple(scalar_block(f"w{b}") for b in range(blocks)), (1,), 1)
    return Problem(model, data, fleet(len(sizes)))


def scalars(values: Sequence[float]) -> Variables:
    """Variables of `scalar_problem` with these parameters."""
    blocks = tuple({"w": jnp.asarray(v, jnp.float32)} for v in values)
    nothing: tuple[Any, ...] = tuple({} for _ in values)
    return Variables({"blocks": blocks, "exits": ()}, {"blocks": nothing, "exits": ()})


def values_of(variables: Variables) -> np.ndarray:
    """Inverse of `scalars`, float32[L]."""
    return np.asarray([block["w"] for block in variables.params["blocks"]])


def windows(
    problem: Problem, *, local: Any = None, masked: bool = True, **training: Any
) -> Algorithm:
    """A method with windows and, where the model has them, exits, in the manner of FedEL.

    Client k trains the blocks `first..exit` with the head after `exit`; both vary over clients.
    Plans by hand have the rows `first` and `exit`.
    """
    options = TrainingOptions.parse({"learning_rate": 0.1, "batch_size": 4, **training})
    structure = problem.model.shapes.params
    blocks, has_exits = problem.model.num_blocks, bool(problem.model.exits)

    def plan(state: Any, variables: Variables, situation: Situation) -> tuple[Plan, Any]:
        del variables
        odd = (situation.clients + situation.round) % 2
        exit = blocks - 1 - odd if has_exits else np.full(len(odd), blocks - 1)
        first = 1 - odd
        rows = {"first": first.astype(np.int32), "exit": exit.astype(np.int32)}
        tasks = parts.plan_tasks(problem, options, situation, rows=rows)
        routes = [Route(int(f), int(e)) for f, e in zip(first, exit, strict=True)]
        return tasks._replace(routes=routes), state

    def mask(row: Any, shared: Any) -> Any:
        del shared
        return masks.suffix(structure, jnp.asarray(row["first"]), jnp.asarray(row["exit"]))

    return Algorithm(
        name="windows",
        init=parts.stateless,
        plan=plan,
        mask=mask if masked else None,
        local=local or options.local_update(problem),
        merge=masked_mean(),
        update=parts.replace,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
    )


def nudge(problem: Problem, *, value: Any = lambda task: jnp.float32(1.0), **training: Any) -> Any:
    """A method whose clients move every parameter by `value(task)`; compiles in no time."""

    def local(route: Route, start: Variables, data: Any, task: Any) -> ClientResult:
        del data
        trained = masks.split(start.params, route)[0]
        delta = jax.tree.map(lambda w: jnp.broadcast_to(value(task), w.shape), trained)
        draw = jax.random.key_data(task.key)
        return ClientResult(delta, start.stats, value(task), task.steps, info={"key": draw})

    return windows(problem, local=local, masked=False, **training)


def one_by_one(algorithm: Algorithm) -> Algorithm:
    """The method with a plan that says nothing of itself: no batches of rounds."""
    return algorithm._replace(plan=lambda *arguments: algorithm.plan(*arguments))


def make_plan(
    problem: Problem,
    *,
    clients: Sequence[int] | None = None,
    routes: Sequence[Route] | None = None,
    rows: Any = None,
    weight: Sequence[float] | None = None,
    steps: Sequence[int] | int = 1,
    batch: int = 4,
    **fields: Any,
) -> Plan:
    """A plan by hand; tasks of one second each. By default everyone trains everything."""
    chosen = np.arange(problem.num_clients) if clients is None else np.asarray(clients)
    k = len(chosen)
    sizes = problem.data.sizes[chosen]
    second, none = np.ones(k), np.zeros(k)
    amount = np.ones(k, np.int64)
    return Plan(
        clients=chosen,
        routes=[Route(0, problem.model.num_blocks - 1)] * k if routes is None else list(routes),
        steps=np.broadcast_to(np.asarray(steps, np.int32), (k,)),
        batch=np.minimum(batch, sizes).astype(np.int32),
        weight=np.asarray(sizes if weight is None else weight, np.float32),
        timing=Timing(none, second, none, amount, amount, second),
        rows=rows,
        **fields,
    )


def make_chunk(start: Variables, weight: Any, delta: Any, **fields: Any) -> Chunk:
    """A chunk by hand; clients 0, 1, ... that all started from `start` and share `shared`."""
    weight = jnp.asarray(weight, jnp.float32)
    clients = weight.shape
    nothing = {"blocks": tuple({} for _ in start.params["blocks"]), "exits": ()}
    shared = jax.tree.map(
        lambda a: jnp.broadcast_to(a, clients + jnp.shape(a)), fields.pop("shared", None)
    )
    defaults: dict[str, Any] = {"stats_delta": nothing, "mask": None, "row": None}
    return Chunk(
        client=jnp.arange(clients[0], dtype=jnp.int32),
        weight=weight,
        delta=delta,
        start=jax.tree.map(lambda a: jnp.broadcast_to(a, clients + a.shape), start),
        shared=shared,
        staleness=jnp.zeros(clients, jnp.int32),
        **{**defaults, **fields},
    )


def situation(problem: Problem, *, round: int = 0, clients: Any = None, seed: int = 0) -> Situation:
    """What `plan` is given at the start of a round."""
    chosen = np.arange(problem.num_clients) if clients is None else np.asarray(clients)
    key = jax.random.fold_in(jax.random.key(seed), round)
    return Situation(round, 0.0, chosen, key, np.random.default_rng(seed))


# A moment of a server's step, for methods to which it does not matter.
NOW = Now(np.int32(0), jax.random.key(1))


def one_round(
    algorithm: Algorithm,
    problem: Problem,
    variables: Variables,
    plan: Plan | None = None,
    *,
    engine: Engine | None = None,
    routes: Routes | None = None,
    seed: int = 1,
    **resources: Any,
) -> tuple[Variables, Any]:
    """Trains and merges one round without a clock; returns the merged model and the outputs."""
    engine = engine or make_engine(algorithm, problem, **resources)
    state = algorithm.init(variables, jax.random.key(0))
    if plan is None:
        plan, state = algorithm.plan(state, variables, situation(problem))
    executed = (routes or engine.resources.routes()).execute(plan)
    acc, outputs = engine.train(state, variables, plan, jax.random.key(seed), executed)
    _, merged, _ = engine.close(acc, state, variables, plan.shared, NOW)
    return merged, outputs


# Equal structure, and equal values up to the rounding of float32.
assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def differ(a: Any, b: Any) -> bool:
    """Whether any leaf differs."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(bool(np.any(np.asarray(x) != np.asarray(y))) for x, y in pairs)
