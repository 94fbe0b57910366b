"""FedPMT: what it computes, sends and waits for. Checks of methods/fedpmt.md."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    assert_close,
    digits_problem,
    fleet,
    make_plan,
    one_round,
    situation,
)

from fedjax_het.algorithms import build
from fedjax_het.algorithms.fedpmt import assign_depths
from fedjax_het.contract.masks import Route
from fedjax_het.data.federated import from_arrays
from fedjax_het.engine.engine import make_engine
from fedjax_het.engine.packing import pack
from fedjax_het.engine.programs import group_program
from fedjax_het.engine.rows import Round
from fedjax_het.engine.work import training
from fedjax_het.fleet.cost import cost_table
from fedjax_het.models.cnn import leaf_cnn
from fedjax_het.models.lowering import lowering
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


# ---- 8-10: what it costs ---------------------------------------------------------------------


def test_08_the_subtree_s_gradient_is_the_masked_full_gradient(problem, start):
    """One step of one client at every depth, against the step of the whole network."""
    algorithm = build("fedpmt", problem, local_steps=1, **TRAINING)
    cohorts = {
        e: make_engine(algorithm, problem, execution=e, chunk=1) for e in ("routed", "masked")
    }

    def step(first, execution):
        plan = make_plan(
            problem, clients=[2], routes=[Route(first, L - 1)], rows={"first": np.int32([first])}
        )
        merged, _ = one_round(algorithm, problem, start, plan, engine=cohorts[execution])
        return jax.tree.map(np.subtract, *jax.device_get((merged.params, start.params)))

    full = step(0, "masked")
    for first in range(L):
        routed = step(first, "routed")
        assert_close(routed["blocks"][first:], full["blocks"][first:], rtol=1e-5, atol=1e-7)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(routed["blocks"][:first]))


@pytest.fixture(scope="module")
def cnn_cost():
    return cost_table(leaf_cnn())


def test_09_flop_table(cnn_cost):
    assert cnn_cost.names == ("conv1", "conv2", "fc1", "fc2")
    assert cnn_cost.param_count.tolist() == [832, 51_264, 1_606_144, 5_130]
    assert cnn_cost.forward_flops.tolist() == [1_254_400, 20_070_400, 3_211_264, 10_240]
    depth = np.arange(1, 5)
    total = cnn_cost.step_flops(4 - depth, np.full(4, 3))
    assert total.tolist() == [24_556_544, 27_778_048, 51_059_712, 72_384_512]
    forward = cnn_cost.forward_flops.sum()
    assert (total - forward).tolist() == [10_240, 3_231_744, 26_513_408, 47_838_208]
    np.testing.assert_allclose(total / total[-1], [0.3393, 0.3838, 0.7054, 1.0], atol=5e-5)
    assert forward / total[-1] == pytest.approx(0.33911, abs=5e-6)
    assert np.all(np.diff(total) > 0)


@pytest.fixture(scope="module")
def cnn_problem():
    """The CNN of the table on two clients of 32 random images."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 28, 28, 1), np.uint8)
    y = rng.integers(0, 10, 64)
    data = from_arrays(x, y, x[:2], y[:2], clients=np.repeat([0, 1], 32), num_classes=10)
    return Problem(leaf_cnn(), data, fleet(2))


def test_10_the_compiled_programs_really_leave_work_out(cnn_problem, full_compile):
    """FLOPs that the compiler counts in the cohort's own programs, relative to FedAvg's."""
    options = {"learning_rate": 0.1, "batch_size": 32}
    methods = {name: build(name, cnn_problem, **options) for name in ("fedavg", "fedpmt")}
    start = cnn_problem.model.shapes
    data = cnn_problem.data.device()

    def flops(method, depth):
        engine = make_engine(methods[method], cnn_problem)
        row = None if method == "fedavg" else {"first": np.int32([4 - depth])}
        plan = make_plan(cnn_problem, clients=[0], rows=row, batch=32)
        shapes = engine._mask_shapes(plan)
        acc = jax.eval_shape(lambda: methods[method].merge.init((), start, shapes))
        _, rows = pack(plan, [0], 1, 3)
        common = Round(jax.random.key(0), jnp.float32(1.0), None)
        program = group_program(training(methods[method]), Route(4 - depth, 3), 1, None)
        # Counted as XLA's own; the engine's ways multiply more or fewer zeros of the padding.
        with lowering("lax"):
            lowered = jax.jit(program).lower(acc, start, data, rows, common)
        return lowered.compile().cost_analysis()["flops"]

    full = flops("fedavg", 4)
    share = {depth: flops("fedpmt", depth) / full for depth in (1, 2, 3, 4)}
    for depth, wanted in {1: 0.339, 2: 0.384, 3: 0.705}.items():
        assert share[depth] == pytest.approx(wanted, rel=0.05), share
    # The full route with a mask of depth 1 is what a mask-only method would run: nothing saved.
    assert share[4] == pytest.approx(1.0, rel=0.02), share


# ---- 13, 14, 16: the clock, the link, the assignment -----------------------------------------


def round_s(problem, start, name, **options):
    algorithm = build(name, problem, **TRAINING, **options)
    plan, _ = algorithm.plan((), start, situation(problem))
    return plan.timing.total_s


def test_13_completion_time(problem, start):
    fedavg = round_s(problem, start, "fedavg")
    partial = round_s(problem, start, "fedpmt")
    depth, _ = depths_of(build("fedpmt", problem, **TRAINING), problem, start)
    # A client that trains less is done sooner; one that trains everything takes as long.
    assert np.all(partial[depth < L] < fedavg[depth < L])
    np.testing.assert_array_equal(partial[depth == L], fedavg[depth == L])
    assert partial.max() < fedavg.max()
    # Equal capacities, equal times.
    np.testing.assert_array_equal(round_s(problem, start, "fedpmt", capacity=np.ones(8)), fedavg)
    # Equality if and only if the slowest has full depth.
    slowest = int(np.argmax(fedavg))
    only_slowest = np.where(np.arange(8) == slowest, 1.0, 0.5)
    assert round_s(problem, start, "fedpmt", capacity=only_slowest).max() == fedavg.max()
    # The order of the devices is no information.
    turned = Problem(problem.model, problem.data, fleet(8, flops_per_s=np.full(8, 1e6)))
    assert round_s(turned, start, "fedavg").max() == round_s(turned, start, "fedavg")[::-1].max()


def test_13_the_completion_time_never_falls_with_a_depth(problem, start):
    times = [
        round_s(problem, start, "fedpmt", depths=(depth,), capacity=np.ones(8))
        for depth in (1, 2, 3)
    ]
    for shallow, deep in itertools.pairwise(times):
        assert np.all(shallow < deep)


def test_14_uplink_bytes(problem, start):
    algorithm = build("fedpmt", problem, **TRAINING)
    depth, plan = depths_of(algorithm, problem, start)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(b)) for b in start.params["blocks"]]
    wanted = [4 * sum(sizes[L - d :]) for d in depth]
    assert plan.timing.bytes_up.tolist() == wanted
    whole = 4 * sum(sizes)
    assert max(wanted) == whole
    assert plan.timing.bytes_down.tolist() == [whole] * 8


def test_14_uplink_bytes_of_the_cnn(cnn_cost):
    up = cnn_cost.upload_bytes(np.int64([3, 2, 1, 0]), np.full(4, 3))
    assert (up // 4).tolist() == [5_130, 1_611_274, 1_662_538, 1_663_370]
    np.testing.assert_allclose(up / up[-1], [0.0031, 0.9687, 0.9995, 1.0], atol=5e-5)


@pytest.mark.parametrize(
    ("kappa", "allowed", "depth", "feasible"),
    [
        (1.0, (1, 2, 3, 4), 4, True),
        (0.5, (1, 2, 3, 4), 2, True),
        (0.5, (1, 3, 4), 1, True),
        (0.71, (1, 2, 3, 4), 3, True),
        (0.71, (1, 3, 4), 3, True),
        (0.34, (1, 2, 3, 4), 1, True),
        (0.2, (1, 2, 3, 4), 1, False),
        (0.2, (3, 4), 3, False),
    ],
)
def test_16_width_semantics(cnn_cost, kappa, allowed, depth, feasible):
    got = assign_depths(cnn_cost, np.asarray([kappa]), allowed)
    assert (got[0].tolist(), got[1].tolist()) == ([depth], [feasible])


def test_16_depth_grows_with_capacity(cnn_cost):
    kappa = np.linspace(0.01, 1.0, 200)
    depth, feasible = assign_depths(cnn_cost, kappa, (1, 2, 3, 4))
    assert np.all(np.diff(depth) >= 0)
    assert np.all(np.diff(feasible.astype(int)) >= 0)
    # The exact cost of a depth affords it, in spite of rounding.
    share = cnn_cost.step_flops(np.int64([3, 2, 1, 0]), np.full(4, 3)) / 72_384_512
    assert assign_depths(cnn_cost, share, (1, 2, 3, 4))[0].tolist() == [1, 2, 3, 4]


def test_16_infeasible_devices_are_reported(problem):
    algorithm = build("fedpmt", problem, capacity=[0.1] * 2 + [1.0] * 6, **TRAINING)
    result = simulate(algorithm, problem, rounds=1)
    assert result.record.metrics[-1]["info"]["infeasible_clients"] == 2
