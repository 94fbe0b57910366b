"""Routes of sub-networks by width: one answer in debug, masked and routed execution."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, differ, digits_problem, situation

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.contract.aggregation import masked_mean, plain_mean
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.contract.clock import arrivals, barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Schedule
from fedjax_het.contract.widths import Axes, Layout, Span, Widths
from fedjax_het.engine.engine import make_engine
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block
from fedjax_het.simulation.simulate import simulate

HIDDEN = 12
UNIT = (Span("hidden"),)
LEVELS = ({"hidden": 12}, {"hidden": 6}, {"hidden": 3})


def free(n):
    return (Span(None, n),)


def dense(name, features, relu):
    """A layer that runs at the sizes of the tensors that it is given."""

    def init(key, x):
        scale = 1.0 / np.sqrt(x.shape[-1])
        return {
            "bias": jnp.zeros((features,), jnp.float32),
            "kernel": scale * jax.random.normal(key, (x.shape[-1], features), jnp.float32),
        }, {}

    def apply(params, stats, x, *, train, key):
        y = x @ params["kernel"] + jnp.broadcast_to(
            params["bias"][None], (len(x), params["bias"].size)
        )
        return (jax.nn.relu(y) if relu else y), stats

    return Block(name, init, apply)


MODEL = BlockModel("pure", (dense("hidden", HIDDEN, True), dense("out", 10, False)), (64,), 10)
LAYOUT = Layout(
    {"hidden": HIDDEN},
    Variables(
        {
            "blocks": (
                {"bias": Axes((UNIT,)), "kernel": Axes((free(64), UNIT))},
                {"bias": Axes((free(10),)), "kernel": Axes((UNIT, free(10)))},
            ),
            "exits": (),
        },
        {"blocks": ({}, {}), "exits": ()},
    ),
)


@functools.cache
def problem():
    return dataclasses.replace(digits_problem(), model=MODEL)


def method(*, rolled=True, pace=None, masked=None, by_row=False, merge=masked_mean, **training):
    """Clients train levels 0, 1, 2 in turn, with units that roll if `rolled`."""
    options = TrainingOptions(learning_rate=0.1, batch_size=4, weighting="uniform", **training)

    def tasks(now):
        level = now.clients % 3
        rows = {"shift": (now.clients * 5).astype(np.int32)} if by_row else None
        plan = parts.plan_tasks(problem(), options, now, rows=rows)
        shared = {"round": np.int32(now.round)}
        front = 1 if masked == "front" else 0
        routes = [Route(front, 1, width=int(each)) for each in level]
        return plan._replace(routes=routes, shared=shared)

    def order(row, shared):
        shift = shared["round"] + (row["shift"] if by_row else 0)
        return {"hidden": (jnp.arange(HIDDEN, dtype=jnp.int32) + 4 + shift) % HIDDEN}

    def mask(row, shared):
        del row, shared
        whole = jnp.asarray(masked == "rows")  # of one scalar, which holds for every unit
        frozen = {"bias": whole, "kernel": whole}
        rows = {"bias": jnp.arange(10) < 7, "kernel": jnp.arange(10) < 7}
        return {"blocks": (frozen, rows), "exits": ()}

    return Algorithm(
        name="narrow",
        init=parts.stateless,
        plan=Schedule(tasks),
        mask=mask if masked else None,
        local=options.local_update(problem()),
        merge=merge(),
        update=parts.replace,
        pace=pace or barrier(),
        cohort_size=options.cohort_size(problem()),
        widths=Widths(LAYOUT, LEVELS, (1.0, 0.5, 0.25), order if rolled else None),
    )


def run(algorithm, rounds=2, **options):
    engine = make_engine(algorithm, problem(), **options)
    return simulate(algorithm, problem(), rounds=rounds, engine=engine)


KINDS = {
    "first units": {"rolled": False},
    "rolled": {},
    "rolled by client": {"by_row": True},
    "frozen front": {"masked": "front"},
    "some classes": {"masked": "rows", "rolled": False},
    "some classes, rolled": {"masked": "rows"},
    "mean over everyone": {"by_row": True, "merge": plain_mean},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 0.01},
}


@pytest.mark.parametrize("kind", KINDS)
def test_debug_masked_and_routed_agree(kind):
    algorithm = method(**KINDS[kind])
    routed = run(algorithm)
    for other in ({"execution": "masked"}, {"execution": "debug"}, {"chunk": 1}, {"max_routes": 2}):
        found = run(algorithm, **other)
        assert_close(found.variables, routed.variables, rtol=2e-5, atol=2e-6)
        assert found.record.clients[-1]["loss"] == pytest.approx(
            routed.record.clients[-1]["loss"], rel=1e-4
        )


def test_a_round_is_the_mean_over_those_who_hold_a_coordinate():
    """By NumPy, from each client's own training of a network of its size."""
    algorithm = method(by_row=True)
    start = MODEL.init(jax.random.key(0))
    result = simulate(algorithm, problem(), rounds=1, initial=start)
    plan, _ = algorithm.plan((), start, situation(problem()))
    num = jax.tree.map(np.zeros_like, start.params)
    den = jax.tree.map(np.zeros_like, start.params)
    for client, route in enumerate(plan.routes):
        alone = method(by_row=True)
        only = choose(alone, client)
        one = simulate(only, problem(), rounds=1, initial=start)
        delta = jax.tree.map(lambda a, b: np.asarray(a - b), one.variables, start).params
        order = np.roll(np.arange(HIDDEN), -(4 + client * 5) % HIDDEN)
        keep = np.zeros(HIDDEN, bool)
        keep[order[: LEVELS[route.width]["hidden"]] if route.width else order] = True
        held = {
            "blocks": (
                {"bias": keep, "kernel": np.tile(keep, (64, 1))},
                {"bias": np.ones(10, bool), "kernel": np.tile(keep[:, None], (1, 10))},
            ),
            "exits": (),
        }
        jax.tree.map(lambda k, d: np.testing.assert_array_equal(d[~k], 0), held, delta)
        num = jax.tree.map(lambda n, k, d: n + k * d, num, held, delta)
        den = jax.tree.map(lambda n, k: n + k, den, held)
    want = jax.tree.map(lambda w, n, d: w + n / np.maximum(d, 1), start.params, num, den)
    assert_close(result.variables.params, want, rtol=1e-4, atol=1e-6)


def choose(algorithm, client):
    def tasks(now):
        plan = algorithm.plan.tasks(now)
        return plan.take(np.flatnonzero(plan.clients == client))

    return algorithm._replace(plan=Schedule(tasks))


def test_coordinates_that_nobody_holds_keep_their_value():
    algorithm = method()

    def narrow(now):
        plan = algorithm.plan.tasks(now)
        return plan._replace(routes=[Route(0, 1, width=2)] * len(plan.clients))

    start = MODEL.init(jax.random.key(0))
    few = algorithm._replace(plan=Schedule(narrow))
    after = simulate(few, problem(), rounds=1, initial=start).variables.params["blocks"][0]
    before = start.params["blocks"][0]["kernel"]
    moved = np.any(np.asarray(after["kernel"] != before), axis=0)
    assert np.flatnonzero(moved).tolist() == [4, 5, 6]


def test_results_that_wait_are_those_of_sub_networks():
    algorithm = method(by_row=True, pace=arrivals(3))
    routed, debug = run(algorithm, rounds=4), run(algorithm, rounds=4, execution="debug")
    assert_close(debug.variables, routed.variables, rtol=2e-5, atol=2e-6)
    assert differ(routed.variables.params, MODEL.init(jax.random.key(0)).params)


@pytest.mark.parametrize("merge", [masked_mean, plain_mean])
def test_merging_at_the_sizes_of_sub_networks_changes_nothing(merge):
    algorithm = method(by_row=True, merge=merge)
    assert algorithm.merge.add_narrow is not None
    whole = algorithm._replace(merge=algorithm.merge._replace(narrow=None))
    assert_close(run(algorithm).variables, run(whole).variables, rtol=2e-5, atol=2e-6)


def test_one_program_per_level():
    algorithm = method()
    engine = make_engine(algorithm, problem())
    simulate(algorithm, problem(), rounds=3, engine=engine)
    assert engine.programs == 1  # a batch of rounds, with a loop for each of three levels


def test_the_log_has_the_level_of_every_client():
    rows = run(method(), rounds=1).record.clients
    assert [row["width_level"] for row in rows] == [row["client"] % 3 for row in rows]
