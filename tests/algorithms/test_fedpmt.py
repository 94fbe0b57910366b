"""FedPMT, check by check. Checks of methods/fedpmt.md; 15 is in test_feddrop.py."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    assert_close,
    differ,
    digits_problem,
    fleet,
    make_plan,
    one_round,
    scalar_problem,
    scalars,
    situation,
    values_of,
)

from fedjax_het.algorithms import build
from fedjax_het.algorithms.fedpmt import assign_depths
from fedjax_het.common.errors import InputError
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import ClientResult
from fedjax_het.contract.masks import Route
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet import presets
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4}
L = 3  # blocks of the digits problem


@pytest.fixture(scope="module")
def problem():
    return digits_problem()


@pytest.fixture(scope="module")
def start(problem):
    return problem.model.init(jax.random.key(0))


def depths_of(algorithm, problem, start, round=0):
    plan, _ = algorithm.plan((), start, situation(problem, round=round))
    return L - plan.rows["first"], plan


# ---- 1-3: what a client trains ---------------------------------------------------------------


def test_01_every_client_trains_a_suffix(problem, start):
    algorithm = build("fedpmt", problem, **TRAINING)
    depth, plan = depths_of(algorithm, problem, start)
    assert set(depth.tolist()) == {1, 2, 3}  # three speeds, three depths
    for k, row in enumerate(plan.rows["first"]):
        mask = algorithm.mask({"first": row}, None)
        upsilon = [{bool(leaf) for leaf in jax.tree.leaves(block)} for block in mask["blocks"]]
        assert all(len(flags) == 1 for flags in upsilon)  # a bias goes with its kernel
        flags = [flag.pop() for flag in upsilon]
        assert flags == sorted(flags)
        assert flags[-1]
        assert sum(flags) == depth[k]
        assert plan.routes[k] == Route(int(row), L - 1)


def test_02_with_every_depth_full_it_is_fedavg(problem):
    runs = [
        simulate(build(name, problem, **TRAINING, **options), problem, rounds=3)
        for name, options in (("fedavg", {}), ("fedpmt", {"capacity": np.ones(8)}))
    ]
    assert_close(runs[0].variables, runs[1].variables, rtol=0, atol=1e-6)
    assert [row["virtual_s"] for row in runs[0].record.metrics] == [
        row["virtual_s"] for row in runs[1].record.metrics
    ]


@pytest.fixture(scope="module")
def clients(problem, start):
    """Every client's own parameters after training at its depth, and the merged model."""
    algorithm = build("fedpmt", problem, **TRAINING)
    depth, plan = depths_of(algorithm, problem, start)

    def local(route, start, data, task):
        result = algorithm.local(route, start, data, task)
        trained, _ = masks.split(start.params, route)
        own = masks.join(jax.tree.map(jnp.add, trained, result.delta), start.params)
        return result._replace(info=own)

    engine = make_engine(algorithm._replace(local=local), problem, execution="masked")
    merged, outputs = one_round(algorithm, problem, start, plan, engine=engine)
    return depth, plan, merged, outputs.info


def test_03_frozen_layers_keep_their_bits(problem, start, clients):
    depth, _, _, own = clients
    for k, d in enumerate(depth):
        for b in range(L):
            mine = jax.tree.map(lambda leaf, k=k: leaf[k], own["blocks"][b])
            if b < L - d:
                chex.assert_trees_all_equal(mine, jax.device_get(start.params["blocks"][b]))
            else:
                assert differ(mine, start.params["blocks"][b])


# ---- 4-7: aggregation ------------------------------------------------------------------------

SAMPLES = (10, 20, 30)
FIRST = np.int32([3, 1, 0])  # depths 1, 3, 4 of 4
DELTA = np.float32([[0, 0, 0, 1], [0, 2, 3, 4], [5, 6, 7, 8]])


def golden_algorithm(problem, zero_fill=False):
    """FedPMT whose clients move by the rows of DELTA instead of training."""
    algorithm = build("fedpmt", problem, **TRAINING)

    def local(route, start, data, task):
        del data
        moved = {
            "blocks": tuple({"w": task.row["delta"][b]} for b in range(4)),
            "exits": (),
        }
        trained = masks.split(moved, route)[0]
        mask = None if task.mask is None else masks.split(task.mask, route)[0]
        loss = jnp.float32(0.0)
        return ClientResult(masks.apply(mask, trained), start.stats, loss, task.steps)

    algorithm = algorithm._replace(local=local)
    return algorithm._replace(mask=None) if zero_fill else algorithm


def golden_plan(problem, weight, full_routes=False):
    routes = [Route(0 if full_routes else int(f), 3) for f in FIRST]
    rows = {"first": FIRST, "delta": DELTA}
    return make_plan(problem, routes=routes, rows=rows, weight=weight)


@pytest.mark.parametrize(
    ("weight", "wanted"), [(SAMPLES, [5, 4.4, 5.4, 5.5]), ((1, 1, 1), [5, 4, 5, 13 / 3])]
)
@pytest.mark.parametrize("execution", ["routed", "masked"])
def test_04_aggregation_golden(weight, wanted, execution):
    problem = scalar_problem(SAMPLES)
    algorithm = golden_algorithm(problem)
    plan = golden_plan(problem, weight)
    merged, _ = one_round(algorithm, problem, scalars([0] * 4), plan, execution=execution)
    np.testing.assert_allclose(values_of(merged), wanted, rtol=1e-6)


def test_04_both_weightings_are_what_the_plan_says():
    problem = digits_problem()
    start = problem.model.init(jax.random.key(0))
    for weighting, weight in (("samples", problem.data.sizes), ("uniform", np.ones(8))):
        algorithm = build("fedpmt", problem, weighting=weighting, **TRAINING)
        np.testing.assert_array_equal(depths_of(algorithm, problem, start)[1].weight, weight)


def test_04_dividing_by_everybody_is_caught():
    """The negative control: averaging absent layers as zeros gives the golden's wrong row."""
    problem = scalar_problem(SAMPLES)
    algorithm = golden_algorithm(problem, zero_fill=True)
    plan = golden_plan(problem, SAMPLES, full_routes=True)
    merged, _ = one_round(algorithm, problem, scalars([0] * 4), plan)
    np.testing.assert_allclose(values_of(merged), [2.5, 22 / 6, 4.5, 5.5], rtol=1e-6)


def test_04_the_columns_of_a_sum_to_one():
    """If all contributors agree on a change, that is the change, whatever their weights."""
    problem = scalar_problem(SAMPLES)
    algorithm = golden_algorithm(problem)
    plan = golden_plan(problem, SAMPLES)._replace(
        rows={"first": FIRST, "delta": np.full((3, 4), 7.0, np.float32)}
    )
    merged, _ = one_round(algorithm, problem, scalars([1] * 4), plan)
    np.testing.assert_allclose(values_of(merged), [8.0] * 4, rtol=1e-6)


def test_05_layers_nobody_trains_never_change(problem):
    algorithm = build("fedpmt", problem, depths=(1, 2), **TRAINING)
    before = []

    def plan(state, variables, situation):
        before.append(variables)
        return algorithm.plan(state, variables, situation)

    result = simulate(algorithm._replace(plan=plan), problem, rounds=4)
    old, new = before[0].params["blocks"], result.variables.params["blocks"]
    chex.assert_trees_all_equal(new[0], old[0])
    assert differ(new[1], old[1])
    assert differ(new[2], old[2])


def test_06_a_layer_with_one_trainer_becomes_that_trainer_s(problem, start):
    algorithm = build("fedpmt", problem, capacity=[0.5] * 7 + [1.0], **TRAINING)
    depth, plan = depths_of(algorithm, problem, start)
    assert depth.tolist().count(3) == 1
    engine = make_engine(algorithm, problem)
    merged, _ = one_round(algorithm, problem, start, plan, engine=engine)
    only = plan._replace(
        **{
            name: jax.tree.map(lambda a: np.asarray(a)[-1:], getattr(plan, name))
            for name in ("clients", "steps", "batch", "weight", "timing", "rows")
        },
        routes=plan.routes[-1:],
    )
    alone, _ = one_round(algorithm, problem, start, only, engine=engine)
    assert_close(merged.params["blocks"][0], alone.params["blocks"][0])
    assert differ(merged.params["blocks"][2], alone.params["blocks"][2])


def test_07_averaging_updates_or_weights_is_the_same(start, clients):
    depth, plan, merged, own = clients
    for b in range(L):
        held = depth >= L - b
        weight = np.where(held, plan.weight, 0.0)
        for new, mine in zip(
            jax.tree.leaves(merged.params["blocks"][b]), jax.tree.leaves(own["blocks"][b])
        ):
            wanted = np.tensordot(weight / weight.sum(), mine, 1)
            np.testing.assert_allclose(new, wanted, rtol=1e-5, atol=1e-6)


# ---- options ---------------------------------------------------------------------------------


def test_capacities_may_change_over_time(problem, start):
    algorithm = build(
        "fedpmt", problem, capacity=lambda round: np.full(8, 1.0 if round else 0.5), **TRAINING
    )
    assert set(depths_of(algorithm, problem, start, round=0)[0].tolist()) == {1}
    assert set(depths_of(algorithm, problem, start, round=1)[0].tolist()) == {3}


def test_depths_follow_a_fleet_that_is_redrawn(problem, start):
    devices = presets.build("dtfl", 8, redraw_every=1, redraw_share=1.0)
    moving = Problem(problem.model, problem.data, devices)
    algorithm = build("fedpmt", moving, **TRAINING)
    seen = set()
    for round in range(4):
        speed = devices.at(round).flops_per_s
        wanted, _ = assign_depths(moving.cost, speed / speed.max(), range(1, L + 1))
        depth, _ = depths_of(algorithm, moving, start, round=round)
        np.testing.assert_array_equal(depth, wanted)
        seen.add(depth.tobytes())
    assert len(seen) > 1


def test_a_depth_that_grows_beyond_the_memory_is_refused(problem, start):
    cost, batch = problem.cost, TRAINING["batch_size"]
    little = float(cost.memory_bytes(L - 1, L - 1, batch))
    small = Problem(problem.model, problem.data, fleet(8, memory_bytes=little))
    growing = lambda round: np.full(8, 0.5 if round == 0 else 1.0)
    algorithm = build("fedpmt", small, capacity=growing, **TRAINING)
    assert np.all(depths_of(algorithm, small, start)[0] == 1)
    with pytest.raises(InputError, match="exceed the memory of their devices"):
        depths_of(algorithm, small, start, round=1)


def test_the_inverse_schedule_scales_the_step(problem, start):
    algorithm = build("fedpmt", problem, schedule="inverse", decay_rounds=4, **TRAINING)
    scales = [
        algorithm.plan((), start, situation(problem, round=t))[0].learning_rate_scale
        for t in (0, 4, 12)
    ]
    assert scales == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depths": ()}, "between 1 and the model's 3"),
        ({"depths": (0, 1)}, "between 1 and the model's 3"),
        ({"depths": (4,)}, "between 1 and the model's 3"),
        ({"capacity": np.ones(3)}, "each of the 8 clients"),
        ({"capacity": np.zeros(8)}, r"\(0, 1\]"),
        ({"capacity": np.full(8, np.nan)}, "each a finite number"),
        ({"schedule": "linear"}, "constant"),
        ({"decay_rounds": 0.0}, "decay_rounds = 0.0"),
    ],
)
def test_options_are_checked(problem, options, words):
    with pytest.raises(InputError, match=words):
        build("fedpmt", problem, **TRAINING, **options)
