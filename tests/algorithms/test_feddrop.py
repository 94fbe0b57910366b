"""FedDrop (methods/baselines.md 13, check 13; methods/fedpmt.md check 15): thin sub-networks."""

import dataclasses

import jax
import numpy as np
import pytest
from problems import (
    assert_close,
    batch_norm_problem,
    digits_problem,
    exits_problem,
    fleet,
    one_round,
    situation,
)

from fedjax_het.algorithms import build
from fedjax_het.algorithms.feddrop import MAX_RATE, capacity_rate, latency_rate, thin_cost
from fedjax_het.common.errors import InputError
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet import presets
from fedjax_het.models.cnn import leaf_cnn
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4}


@pytest.fixture(scope="module")
def problem():
    return digits_problem()


@pytest.fixture(scope="module")
def start(problem):
    return problem.model.init(jax.random.key(0))


def factors(algorithm, problem, start, round=0, seed=0):
    plan, _ = algorithm.plan((), start, situation(problem, round=round, seed=seed))
    return plan.rows, plan


def test_without_dropout_it_is_fedavg(problem):
    fedavg = simulate(build("fedavg", problem, **TRAINING), problem, rounds=2, chunk=1)
    feddrop = build("feddrop", problem, capacity=np.ones(8), **TRAINING)
    result = simulate(feddrop, problem, rounds=2, chunk=1)
    assert_close(result.variables, fedavg.variables, rtol=0, atol=1e-6)
    times = [[row["virtual_s"] for row in r.record.metrics] for r in (result, fedavg)]
    assert times[0] == times[1]


def test_kept_units_make_up_for_the_dropped_ones(problem, start):
    """E[mask / (1 - p)] = 1 within three standard deviations, for every device."""
    algorithm = build("feddrop", problem, **TRAINING)
    draws = [factors(algorithm, problem, start, round=t)[0] for t in range(120)]
    for b, width in (("0", 12), ("1", 8)):
        drawn = np.stack([draw[b] for draw in draws])  # [rounds, clients, units]
        assert drawn.shape == (120, 8, width)
        for k in range(8):
            values = drawn[:, k]
            keep = 1.0 / values.max()
            assert set(np.unique(values)) <= {0.0, values.max()}
            sigma = np.sqrt((1 - keep) / keep / values.size)
            assert abs(values.mean() - 1.0) <= 3 * sigma + 1e-6
    # The three speeds have three rates, the fastest none.
    largest = np.stack([draw["0"] for draw in draws]).max(axis=(0, 2))
    assert largest[0] > largest[1] > largest[2] == 1.0
    np.testing.assert_array_equal(largest, np.resize(largest[:3], 8))


def test_masks_differ_across_devices_rounds_and_seeds_but_not_repetitions(problem, start):
    algorithm = build("feddrop", problem, capacity=np.full(8, 0.5), **TRAINING)
    first = factors(algorithm, problem, start)[0]["0"]
    assert len({row.tobytes() for row in first}) > 4
    assert np.any(first != factors(algorithm, problem, start, round=1)[0]["0"])
    assert np.any(first != factors(algorithm, problem, start, seed=1)[0]["0"])
    np.testing.assert_array_equal(first, factors(algorithm, problem, start)[0]["0"])
    # A device's draw does not depend on who else was sampled.
    few, _ = algorithm.plan((), start, situation(problem, clients=[5, 6]))
    np.testing.assert_array_equal(few.rows["0"], first[5:7])


def test_dropped_coordinates_have_no_update(problem, start):
    """What reaches or leaves a dropped unit keeps its bits; the rest of the layer moves."""
    algorithm = build("feddrop", problem, capacity=np.full(8, 0.5), **TRAINING)
    engine = make_engine(algorithm, problem, chunk=1)
    plan, _ = algorithm.plan((), start, situation(problem, clients=[2]))
    merged, _ = one_round(algorithm, problem, start, plan, engine=engine)
    old, new = jax.device_get((start.params["blocks"], merged.params["blocks"]))
    moved = [
        {name: new[b]["Dense_0"][name] != old[b]["Dense_0"][name] for name in ("kernel", "bias")}
        for b in range(3)
    ]
    for b in (0, 1):
        dropped = plan.rows[str(b)][0] == 0
        assert dropped.any()
        assert not dropped.all()
        assert not moved[b]["kernel"][:, dropped].any()
        assert not moved[b]["bias"][dropped].any()
        assert not moved[b + 1]["kernel"][dropped].any()
        assert moved[b]["kernel"][:, ~dropped].any()
    assert moved[2]["bias"].all()  # outputs are never dropped


def test_evaluation_uses_the_whole_network(problem):
    """The engine's model is not thinned: inverted dropout needs no scaling at inference."""
    algorithm = build("feddrop", problem, capacity=np.full(8, 0.5), **TRAINING)
    assert algorithm.mask is None
    result = simulate(algorithm, problem, rounds=1, chunk=1)
    x = problem.data.test_x
    logits, _ = jax.jit(problem.model.apply)(result.variables, x)
    accuracy = np.mean(np.argmax(logits, axis=1) == problem.data.test_y)
    assert result.record.metrics[-1]["accuracy"] == pytest.approx(accuracy)


# ---- rates and prices ------------------------------------------------------------------------


@pytest.mark.parametrize(("latency_s", "rate"), [(12, 0), (10, 0), (6, 0.29289), (3, 0.64645)])
def test_latency_rate_golden(latency_s, rate):
    assert latency_rate(latency_s, 2.0, 8.0) == pytest.approx(rate, abs=5e-6)


def test_latency_below_the_fixed_part_is_infeasible():
    with pytest.raises(InputError, match="must exceed the 2 s"):
        latency_rate(2.0, 2.0, 8.0)


@pytest.fixture(scope="module")
def cnn():
    problem = digits_problem((2, 2))
    images = np.zeros((4, 28, 28, 1), np.uint8)
    data = dataclasses.replace(
        problem.data, x=images, y=np.zeros(4, np.int32), test_x=images, test_y=np.zeros(4, np.int32)
    )
    return thin_cost(Problem(leaf_cnn(), data, fleet(2)))


HIDDEN = np.asarray([True, True, True, False])
FC = np.asarray([False, False, True, False])


@pytest.mark.parametrize(
    ("dropped", "shares"),
    [
        (HIDDEN, {0.75: 0.5691, 0.5: 0.2588, 0.25: 0.0691}),
        (FC, {0.75: 0.9666, 0.5: 0.9332, 0.25: 0.8999}),
    ],
)
def test_cost_of_thin_networks_golden(cnn, dropped, shares):
    full = cnn.step_flops(np.ones(4))
    assert full == 72_384_512
    for keep, share in shares.items():
        thin = cnn.step_flops(np.where(dropped, keep, 1.0))
        assert thin / full == pytest.approx(share, abs=5e-5)


def test_capacity_rate_is_the_smallest_that_is_enough(cnn):
    full = cnn.step_flops(np.ones(4))
    for capacity in (0.9, 0.5, 0.2):
        rate = capacity_rate(cnn, HIDDEN, capacity)
        share = cnn.step_flops(np.where(HIDDEN, 1 - rate, 1.0)) / full
        assert share == pytest.approx(capacity, rel=1e-6)
    assert capacity_rate(cnn, HIDDEN, 1.0) == 0.0
    assert capacity_rate(cnn, HIDDEN, 1e-6) == MAX_RATE
    assert capacity_rate(cnn, FC, 0.5) == MAX_RATE  # convolutions alone cost more than that
    rates = [capacity_rate(cnn, HIDDEN, kappa) for kappa in np.linspace(0.05, 1, 20)]
    assert np.all(np.diff(rates) <= 0)


def test_the_clock_charges_what_was_drawn(problem, start):
    algorithm = build("feddrop", problem, **TRAINING)
    rows, plan = factors(algorithm, problem, start)
    whole = build("fedavg", problem, **TRAINING).plan((), start, situation(problem))[0]
    kept0, kept1 = (np.count_nonzero(rows[b], axis=1) for b in ("0", "1"))
    matrices = 64 * kept0 + kept0 * kept1 + kept1 * 10
    vectors = kept0 + kept1 + 10
    assert plan.timing.bytes_up.tolist() == (4 * (matrices + vectors)).tolist()
    forward = 2 * matrices
    step = 3 * forward - 2 * 64 * kept0  # the first layer needs no input gradient
    np.testing.assert_allclose(plan.timing.flops, step * problem.data.sizes, rtol=1e-12)
    assert np.all(plan.timing.total_s <= whole.timing.total_s)


@pytest.mark.parametrize("make", [exits_problem, batch_norm_problem])
def test_what_belongs_to_the_whole_model_travels_too(make):
    """Running statistics and exit heads: without dropout every byte of FedAvg is charged."""
    whole = make()
    start = whole.model.init(jax.random.key(0))
    full = build("feddrop", whole, capacity=np.ones(whole.num_clients), **TRAINING)
    plans = [
        algorithm.plan((), start, situation(whole))[0]
        for algorithm in (full, build("fedavg", whole, **TRAINING))
    ]
    for ours, theirs in zip(plans[0].timing, plans[1].timing, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_rates_and_prices_follow_a_fleet_that_is_redrawn(start):
    constant = digits_problem()
    devices = presets.build("dtfl", 8, redraw_every=1, redraw_share=1.0)
    moving = Problem(constant.model, constant.data, devices)
    later = 3
    frozen = dataclasses.replace(devices.at(later), redraw=None)
    now = Problem(constant.model, constant.data, frozen)
    assert np.any(now.fleet.flops_per_s != devices.flops_per_s)
    for options in ({}, {"scope": "fc", "latency_s": 2.0}):
        plans = [
            build("feddrop", where, **options, **TRAINING).plan(
                (), start, situation(where, round=later)
            )[0]
            for where in (moving, now)
        ]
        for b in ("0", "1"):
            np.testing.assert_array_equal(plans[0].rows[b], plans[1].rows[b])
        for ours, theirs in zip(plans[0].timing, plans[1].timing, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_device_that_draws_nothing_still_takes_time(start):
    """At the largest rate whole layers are dropped; with free links that must not cost 0 s."""
    setting = digits_problem()
    free = {"downlink_bytes_per_s": np.inf, "uplink_bytes_per_s": np.inf}
    setting = Problem(setting.model, setting.data, fleet(8, **free))
    algorithm = build("feddrop", setting, capacity=np.full(8, 1e-4), **TRAINING)
    for t in range(5):
        rows, plan = factors(algorithm, setting, start, round=t)
        assert np.all(plan.timing.total_s > 0)
    assert any(not row.any() for row in rows["0"])


def test_latency_budgets_are_met_on_average(start):
    setting = digits_problem()
    fedavg = build("fedavg", setting, **TRAINING).plan((), start, situation(setting))[0]
    latency_s = 0.6 * float(fedavg.timing.total_s.max())
    algorithm = build("feddrop", setting, scope="fc", latency_s=latency_s, **TRAINING)
    draws = [factors(algorithm, setting, start, round=t)[1].timing.total_s for t in range(30)]
    mean_s = np.mean(draws, axis=0)
    fast = fedavg.timing.total_s <= latency_s
    assert fast.any()
    assert not fast.all()
    np.testing.assert_allclose(mean_s[fast], fedavg.timing.total_s[fast])
    # A matrix at the edge of the thinned part shrinks with (1 - p), not its square.
    assert np.all(mean_s[~fast] < fedavg.timing.total_s[~fast])


def test_no_rate_shortens_the_latency_of_the_links():
    setting = digits_problem()
    far = Problem(setting.model, setting.data, fleet(8, latency_s=0.5))
    with pytest.raises(InputError, match="must exceed the 1 s of the layers"):
        build("feddrop", far, scope="fc", latency_s=0.9, **TRAINING)
    build("feddrop", far, scope="fc", latency_s=1.1, **TRAINING)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scope": "conv"}, "scope 'conv'"),
        ({"latency_s": 1.0}, "set scope='fc'"),
        ({"scope": "fc", "latency_s": 1.0, "capacity": np.ones(8)}, "leave capacity out"),
        ({"capacity": np.ones(2)}, "each of the 8 clients"),
        ({"capacity": np.full(8, 2.0)}, r"\(0, 1\]"),
    ],
)
def test_options_are_checked(problem, options, words):
    with pytest.raises(InputError, match=words):
        build("feddrop", problem, **TRAINING, **options)


def test_a_model_without_hidden_layers_has_nothing_to_thin():
    with pytest.raises(InputError, match="has no hidden layer"):
        build("feddrop", digits_problem(hidden=()), **TRAINING)
