"""The engine: three executions with one answer, few programs, and nobody's NaN in the model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    assert_close,
    batch_norm_problem,
    differ,
    exits_problem,
    make_plan,
    one_round,
    scalar_problem,
    scalars,
    values_of,
    windows,
)

from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import ClientResult, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.engine.debugging import ClientError
from fedjax_het.engine.engine import make_engine
from fedjax_het.engine.resources import Resources
from fedjax_het.engine.rows import Round, Rows
from fedjax_het.engine.work import clean_chunk
from fedjax_het.runtime.chunking import choose_chunk
from fedjax_het.simulation.simulate import simulate


def window_plan(problem, first, exit=None, **fields):
    last = problem.model.num_blocks - 1
    first = np.asarray(first, np.int32)
    exit = np.full(len(first), last, np.int32) if exit is None else np.asarray(exit, np.int32)
    routes = [Route(int(f), int(e)) for f, e in zip(first, exit, strict=True)]
    fields = {"steps": 2, **fields}
    return make_plan(problem, routes=routes, rows={"first": first, "exit": exit}, **fields)


# ---- routes and masks (debug and all registered methods: algorithms/test_sweep.py) -------------


def test_windows_and_exits_on_their_routes_equal_masks_alone():
    """Every client its own window and exit, in the manner of FedEL."""
    problem = exits_problem((5, 8, 6), hidden=(8,))
    algorithm, start = windows(problem), problem.model.init(jax.random.key(0))
    masked = make_engine(algorithm, problem, execution="masked", chunk=1)
    routed = make_engine(algorithm, problem, chunk=1)
    for exit in ([0, 1, 1], [1, 1, 1]):
        plan = window_plan(problem, first=[0, 1, 0], exit=exit, steps=[2, 1, 2])
        merged, outputs = one_round(algorithm, problem, start, plan, engine=masked)
        assert_close(one_round(algorithm, problem, start, plan, engine=routed), (merged, outputs))
        # The head of an exit moves if and only if somebody leaves there.
        assert differ(merged.params["exits"], start.params["exits"]) == (0 in exit)


@pytest.mark.parametrize("traced_train", [True, False])
def test_running_statistics_follow_the_mask(traced_train):
    """Frozen blocks run on stored statistics and keep them; trained ones are averaged."""
    problem = batch_norm_problem(traced_train=traced_train)
    algorithm, start = windows(problem), problem.model.init(jax.random.key(0))
    masked = make_engine(algorithm, problem, execution="masked", chunk=None if traced_train else 1)
    routed = make_engine(algorithm, problem, chunk=1)
    mixed = window_plan(problem, first=[0, 1, 1])
    merged = [one_round(algorithm, problem, start, mixed, engine=c)[0] for c in (masked, routed)]
    assert_close(*merged)
    assert differ(merged[0].stats["blocks"][0], start.stats["blocks"][0])
    # The statistics are those of the only client that trained the block.
    alone = window_plan(problem, first=[0], clients=[0])
    only, _ = one_round(algorithm, problem, start, alone, engine=routed)
    assert_close(only.stats, merged[0].stats)
    # Nobody trains block 0: its statistics and parameters keep their bits.
    for engine, k in ((masked, 3), (routed, 2)):
        deep = window_plan(problem, first=[1] * k, clients=range(k))
        out, _ = one_round(algorithm, problem, start, deep, engine=engine)
        chex.assert_trees_all_equal(out.stats, start.stats)
        chex.assert_trees_all_equal(out.params["blocks"][0], start.params["blocks"][0])
        assert differ(out.params["blocks"][1], start.params["blocks"][1])


# ---- programs --------------------------------------------------------------------------------


def row_update(problem, value, masked=False):
    """A local update that moves every parameter by `value(task)` and reports who it was."""

    def local(route, start, data, task):
        trained, _ = masks.split(start.params, route)
        delta = jax.tree.map(lambda w: jnp.broadcast_to(value(task), w.shape), trained)
        if task.mask is not None:
            delta = masks.apply(masks.split(task.mask, route)[0], delta)
        info = {"client": task.client, "draw": jax.random.uniform(task.key)}
        return ClientResult(delta, start.stats, value(task), task.steps, info=info)

    return windows(problem, local=local, masked=masked)


def by_work(task):
    return (task.steps * task.batch).astype(jnp.float32) * task.learning_rate_scale


@pytest.fixture(scope="module")
def suffixes():
    problem = scalar_problem((3, 5, 8, 6, 7, 4, 8, 2, 6))
    return problem, row_update(problem, by_work, masked=True), scalars([1.0, 2.0, 3.0, 4.0])


def test_sizes_steps_batches_and_cohorts_do_not_recompile(suffixes):
    problem, algorithm, start = suffixes
    engine = make_engine(algorithm, problem, chunk=2)

    def run(**plan):
        return one_round(algorithm, problem, start, window_plan(problem, **plan), engine=engine)

    run(first=[0] * 9)
    assert engine.programs == 1
    run(first=[0] * 9, steps=[1, 2, 3, 1, 2, 3, 1, 2, 3], batch=7)
    run(first=[0] * 4, clients=[8, 2, 5, 0], batch=1, learning_rate_scale=0.5)
    run(first=[0], clients=[3])
    assert engine.programs == 1
    run(first=[0, 1, 1], clients=[0, 1, 2])
    assert engine.programs == 2  # one more route
    seconds = engine.resources.compiler.seconds
    run(first=[1] * 9)  # a small group has left room for the whole cohort
    run(first=[1, 0, 1, 0], clients=[5, 6, 7, 8])
    assert engine.programs == 2
    assert engine.resources.compiler.seconds == seconds


def test_a_client_s_training_is_traced_once_per_program(suffixes):
    problem, algorithm, start = suffixes
    once = algorithm._replace(local=chex.assert_max_traces(algorithm.local, n=1))
    engine = make_engine(once, problem, chunk=2)
    for clients in (range(9), (3, 4)):
        plan = window_plan(problem, first=[0] * len(clients), clients=clients)
        one_round(once, problem, start, plan, engine=engine)
    rounds = build("fedavg", problem, learning_rate=0.1)
    rounds = rounds._replace(local=chex.assert_max_traces(rounds.local, n=1))
    simulate(rounds, problem, rounds=3, chunk=2, eval_every=3)


@pytest.mark.parametrize("bound", [1, 2])
def test_the_bound_on_routes_changes_nothing_but_the_programs(suffixes, bound):
    problem, algorithm, start = suffixes
    plan = window_plan(problem, first=[0, 1, 2, 3, 1, 2, 0, 1, 2])
    bounded = make_engine(algorithm, problem, max_routes=bound, chunk=2)
    free = make_engine(algorithm, problem, chunk=2)
    few, all_of_them = bounded.resources.routes(), free.resources.routes()
    assert_close(
        one_round(algorithm, problem, start, plan, engine=bounded, routes=few),
        one_round(algorithm, problem, start, plan, engine=free, routes=all_of_them),
    )
    assert len(all_of_them.known) == free.programs == 4
    assert len(few.known) == bounded.programs == bound
    later = window_plan(problem, first=[1] * 9)
    one_round(algorithm, problem, start, later, engine=bounded, routes=few)
    assert len(few.known) == bound  # also later


def test_masked_execution_runs_one_route(suffixes):
    problem, algorithm, start = suffixes
    engine = make_engine(algorithm, problem, execution="masked")
    plan = window_plan(problem, first=range(4), clients=range(4))
    one_round(algorithm, problem, start, plan, engine=engine)
    assert engine.programs == 1


def test_chunks_are_larger_where_steps_are_small():
    assert choose_chunk("cpu", 1e9, 10**7) == 1
    assert choose_chunk("cpu", 1e6, 10**5) == 16
    assert choose_chunk("cpu", 1.0, 10) == 256
    assert choose_chunk("gpu", 1e9, 10**6) == 256
    assert choose_chunk("gpu", 1e9, 10**9) == 2
    assert choose_chunk("gpu", 1e9, 10**11) == 1


@pytest.mark.parametrize(("chunk", "rows"), [(1, 1), (4, 4), (8, 8), (10**6, 8)])
def test_a_chunk_has_no_more_rows_than_there_are_clients(chunk, rows):
    problem = scalar_problem((3, 4, 5, 6, 7))
    resources = Resources(problem, chunk=chunk)
    assert resources.side_by_side(np.asarray([2])) == rows


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"execution": "fast"}, "routed"),
        ({"chunk": 0}, "chunk = 0"),
        ({"max_routes": 0}, "max_routes = 0"),
        ({"devices": 0}, "devices = 0"),
        ({"devices": 99}, "99"),
    ],
)
def test_engine_arguments_are_checked(suffixes, engine, words):
    problem, algorithm, _ = suffixes
    with pytest.raises(InputError, match=words):
        make_engine(algorithm, problem, **engine)


# ---- what comes back per client --------------------------------------------------------------


@pytest.mark.parametrize("engine", [{"chunk": 3}, {"chunk": 1}, {"devices": 2, "chunk": 2}])
def test_outputs_are_in_the_order_of_the_plan(engine):
    problem = scalar_problem((3, 4, 5, 6, 7))
    algorithm = row_update(problem, lambda task: task.client.astype(jnp.float32))
    clients = [4, 0, 3, 1, 2]
    plan = make_plan(problem, clients=clients, weight=np.ones(5), steps=[9, 5, 8, 6, 7])
    merged, outputs = one_round(algorithm, problem, scalars([0, 0, 0, 0]), plan, **engine)
    np.testing.assert_array_equal(outputs.loss, clients)
    np.testing.assert_array_equal(outputs.samples, [9, 5, 8, 6, 7])
    np.testing.assert_array_equal(outputs.info["client"], clients)
    np.testing.assert_allclose(values_of(merged), [2.0] * 4)
    # A client's randomness is its own: it depends neither on its place nor on who else is there.
    plan = make_plan(problem, clients=[3])
    alone, out = one_round(algorithm, problem, scalars([0] * 4), plan, **engine)
    assert out.info["draw"][0] == outputs.info["draw"][2]
    assert len(set(outputs.info["draw"].tolist())) == 5
    np.testing.assert_allclose(values_of(alone), [3.0] * 4)


@pytest.mark.parametrize("engine", [{}, {"chunk": 1}, {"devices": 2}, {"execution": "debug"}])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_updates_that_are_not_finite_never_reach_the_model(engine, poison):
    problem = scalar_problem((3, 4, 5, 6))

    def value(task):
        return jnp.where(task.client == 2, jnp.float32(poison), jnp.float32(1.0))

    algorithm = row_update(problem, value)
    start = scalars([0.5] * 4)
    merged, outputs = one_round(algorithm, problem, start, make_plan(problem), **engine)
    np.testing.assert_array_equal(outputs.finite, [True, True, False, True])
    np.testing.assert_allclose(values_of(merged), [1.5] * 4)
    only = make_plan(problem, clients=[2])
    merged, outputs = one_round(algorithm, problem, start, only, **engine)
    assert not outputs.finite.any()
    chex.assert_trees_all_equal(merged, start)


def test_code_that_leaves_clients_out_grows_with_the_tensors_not_with_their_square():
    one = np.ones(1, np.int32)
    rows = Rows(one > 0, one, one, one, np.ones(1, np.float32), *[one] * 5)
    common = Round(jax.random.key(0), jnp.float32(1), None)

    def lines(tensors):
        def merged(delta, acc):
            result = ClientResult(delta, [], jnp.ones(1), jnp.ones(1))
            start = Variables(acc, [])
            chunk, _ = clean_chunk(start, rows, result, None, common, checked=False)
            return [a + x[0] for a, x in zip(acc, chunk.delta, strict=True)]

        def loop(delta, acc):
            def body(_, acc):
                return merged([x + a[None] for x, a in zip(delta, acc, strict=True)], acc)

            return jax.lax.fori_loop(0, 9, body, acc)

        # Of several sizes, so that no two tensors share their code.
        acc = [jnp.ones(5 + i) for i in range(tensors)]
        text = jax.jit(loop).lower([a[None] for a in acc], acc).compile().as_text()
        return text.count("\n")

    assert lines(48) < 5 * lines(12)


# ---- debug names the client and the stage ----------------------------------------------------


def test_debug_names_the_client_whose_training_failed():
    problem = scalar_problem((3, 4, 5))

    def value(task):
        if int(task.client) == 1:
            raise ZeroDivisionError("a bug of the method")
        return jnp.float32(1.0)

    algorithm = row_update(problem, value)
    with pytest.raises(ClientError, match=r"client 1 failed in its local training: a bug"):
        one_round(algorithm, problem, scalars([0] * 4), make_plan(problem), execution="debug")


def test_debug_names_the_client_whose_merge_failed():
    problem = scalar_problem((3, 4, 5))
    algorithm = row_update(problem, lambda task: jnp.float32(1.0))
    mean = masked_mean()

    def add(acc, chunk):
        if int(chunk.client[0]) == 2:
            raise TypeError("shapes do not fit")
        return mean.add(acc, chunk)

    algorithm = algorithm._replace(merge=mean._replace(add=add))
    with pytest.raises(ClientError, match=r"client 2 failed in its merge: shapes"):
        one_round(algorithm, problem, scalars([0] * 4), make_plan(problem), execution="debug")
