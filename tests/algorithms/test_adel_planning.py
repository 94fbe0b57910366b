"""ADEL-FL's planner: goldens, gradients, the pole, order, limits, and the bound itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.algorithms.adel.bound import Bound, Constants
from fedjax_het.algorithms.adel.depths import miss_probability
from fedjax_het.algorithms.adel.merging import LayerMerge
from fedjax_het.algorithms.adel.planning import (
    Limits,
    least_ratio,
    make_plan,
    plan_deadlines,
    require_feasible,
)
from fedjax_het.common.errors import InputError

USERS, LAYERS, ROUNDS = 20, 8, 50
POWER = np.full(USERS, 4096.0)
LIMITS = Limits(200.0, shortest_s=0.1, scale=(0.5, 1.2), max_miss=0.45)
STEPS = {"inverse": 0.5 / (np.arange(ROUNDS) + 2.0), "constant": np.full(ROUNDS, 0.1)}


def bound(schedule="inverse", *, power=POWER, layers=LAYERS, users=USERS, steps=None, **constants):
    c = Constants(**constants)
    steps = STEPS[schedule] if steps is None else steps
    return Bound(layers, users, steps, c.noise(power, users), c)


GOLDEN = {
    "inverse": (1.292071, 1.274319, 0.59779, [4.5407, 4.1683, 3.9549, 3.7696], 0.108681),
    "constant": (1.912339, 1.869767, 0.57061, [3.9090, 3.9432, 3.9988, 4.0884], 0.260645),
}


@pytest.mark.parametrize("schedule", GOLDEN)
def test_golden_plans(schedule):
    """methods/adel_fl.md 3.4, check 11."""
    f_equal, f_best, scale, some, weight = GOLDEN[schedule]
    b = bound(schedule)
    assert np.sum(b.weights) == pytest.approx(weight, abs=1e-6)
    assert b.value(np.full(ROUNDS, 4.0), 1.0) == pytest.approx(f_equal, abs=1e-6)
    plan = plan_deadlines(b, LIMITS)
    assert plan.bound == pytest.approx(f_best, abs=1e-6)
    assert plan.scale == pytest.approx(scale, abs=1e-5)
    np.testing.assert_allclose(plan.deadlines_s[[0, 9, 24, 49]], some, atol=1e-4)
    assert np.sum(plan.deadlines_s) == pytest.approx(200.0, rel=1e-12)
    assert np.max(plan.missed) <= 0.45
    assert plan.bound <= b.value(np.full(ROUNDS, 4.0), 1.0)


def test_golden_values_of_the_parts():
    b = bound()
    assert least_ratio(LAYERS, USERS, 0.45) == pytest.approx(3.78077, abs=1e-5)
    assert b.value(np.full(ROUNDS, 4.0), 0.8) == pytest.approx(1.275261, abs=1e-6)
    price = b.missing_factor * b.missing(np.asarray(5.0))
    assert price == pytest.approx(0.345551, abs=1e-6)


@pytest.mark.parametrize("schedule", STEPS)
def test_both_solvers_agree(schedule):
    b = bound(schedule)
    filled = plan_deadlines(b, LIMITS)
    searched = plan_deadlines(b, LIMITS, "trust_constr")
    np.testing.assert_allclose(searched.deadlines_s, filled.deadlines_s, atol=2e-5)
    assert searched.scale == pytest.approx(filled.scale, abs=3e-6)
    assert filled.bound <= searched.bound + 1e-12


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), stretch=st.floats(1.02, 2.0), scale=st.floats(0.3, 1.5))
def test_the_gradient_is_that_of_the_bound(seed, stretch, scale):
    rng = np.random.default_rng(seed)
    b = bound(power=rng.uniform(400, 8192, USERS), steps=STEPS["inverse"][:6])
    times = scale * least_ratio(LAYERS, USERS, 0.45) * stretch * rng.uniform(1.0, 1.3, 6)
    by_time, by_scale = b.gradient(times, scale)
    step = 1e-5

    def difference(ahead, behind):
        return (b.excess(*ahead) - b.excess(*behind)) / (2 * step)

    for t in range(6):
        e = step * np.eye(6)[t]
        wanted = difference((times + e, scale), (times - e, scale))
        assert by_time[t] == pytest.approx(wanted, rel=1e-5, abs=1e-9)
    wanted = difference((times, scale + step), (times, scale - step))
    assert by_scale == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_deadlines_are_ordered_like_the_weight_of_their_round():
    """methods/adel_fl.md check 12."""
    falling = plan_deadlines(bound("inverse"), LIMITS).deadlines_s
    rising = plan_deadlines(bound("constant"), LIMITS).deadlines_s
    assert np.all(np.diff(falling) < 0)
    assert np.all(np.diff(rising) > 0)
    even = bound(steps=np.full(ROUNDS, 0.1), strong_convexity=0.0)
    np.testing.assert_allclose(even.weights, even.weights[0])
    np.testing.assert_allclose(plan_deadlines(even, LIMITS).deadlines_s, 4.0, rtol=1e-9)


def test_beyond_the_pole_the_bound_is_infinite_not_negative():
    """methods/adel_fl.md check 13: at p = 1/2 the authors' objective changes sign."""
    b = bound()
    pole = least_ratio(LAYERS, USERS, 0.5)
    near, at, beyond = (
        b.missing(np.asarray(x)) for x in (1.001 * pole, pole * (1 - 1e-9), 0.9 * pole)
    )
    assert 100 < near < np.inf
    assert at == beyond == np.inf
    assert b.value(np.full(ROUNDS, 0.9 * pole), 1.0) == np.inf


@pytest.mark.parametrize("seed", range(6))
def test_no_draw_of_the_users_sends_a_solver_beyond_the_pole(seed):
    """With the authors' bounds, m <= 1.2 and deadlines >= 3.4, theirs goes there in 6 of 20."""
    rng = np.random.default_rng(seed)
    power, noise = rng.uniform(0, 8192, USERS), 5 * rng.uniform(0, 1, USERS)
    b = bound(power=power, gradient_noise=noise.tolist())
    limits = Limits(200.0, shortest_s=3.4, scale=(1e-3, 1.2), max_miss=0.45)
    plan = plan_deadlines(b, limits)
    assert b.floor < plan.bound < b.floor + 1.0
    assert np.max(plan.missed) <= 0.45 * (1 + 1e-9)
    assert np.min(plan.deadlines_s) >= 3.4 - 1e-9


@pytest.mark.parametrize(
    ("limits", "rounds", "words"),
    [
        (Limits(50.0), 50, ("total_s = 50", "rounds = 50", "8 layers", "20 users", "batch_scale")),
        (Limits(200.0, shortest_s=5.0), 50, ("5 s are needed", "shortest deadline")),
        (Limits(200.0, max_miss=0.5), 50, ("max_miss",)),
        (Limits(200.0, scale=(1.2, 0.5)), 50, ("scale",)),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_before_solving(limits, rounds, words):
    with pytest.raises(InputError) as error:
        require_feasible(bound(steps=STEPS["inverse"][:rounds]), limits)
    for word in words:
        assert word in str(error.value)


def test_what_the_error_proposes_is_enough():
    with pytest.raises(InputError) as error:
        plan_deadlines(bound(), Limits(50.0))
    proposed = float(str(error.value).split("total_s >= ")[1].split(",")[0])
    plan_deadlines(bound(), Limits(proposed * 1.0001))
    fewer = int(str(error.value).split("rounds <= ")[1].split(",")[0])
    plan_deadlines(bound(steps=STEPS["inverse"][:fewer]), Limits(50.0))


def test_more_time_is_better_and_the_scale_goes_where_it_should():
    """methods/adel_fl.md check 14."""
    values = [
        plan_deadlines(bound(), Limits(total)).bound for total in (100.0, 150.0, 200.0, 400.0)
    ]
    assert np.all(np.diff(values) < 0)
    quiet = plan_deadlines(bound(gradient_noise=0.0), LIMITS)
    assert quiet.scale == pytest.approx(0.5)
    careless = plan_deadlines(bound(gradient_norm=1e-7), LIMITS)
    widest = 4.0 / least_ratio(LAYERS, USERS, 0.45)
    assert careless.scale == pytest.approx(min(1.2, widest), rel=1e-3)


def test_very_long_and_very_tight_budgets():
    long = plan_deadlines(bound(), Limits(10_000.0))
    assert np.max(long.missed) < 1e-12
    assert np.sum(long.deadlines_s) == pytest.approx(10_000.0)
    ratio = least_ratio(LAYERS, USERS, 0.45)
    tight = plan_deadlines(bound(), Limits(ROUNDS * ratio * 0.5))
    np.testing.assert_allclose(tight.deadlines_s, 0.5 * ratio)
    assert tight.scale == 0.5
    floored = plan_deadlines(bound(), Limits(200.0, shortest_s=3.9))
    assert np.min(floored.deadlines_s) == pytest.approx(3.9)
    assert np.sum(floored.deadlines_s) == pytest.approx(200.0)
    one = plan_deadlines(bound(steps=STEPS["inverse"][:1]), Limits(4.0))
    np.testing.assert_allclose(one.deadlines_s, 4.0)


def test_a_step_or_cohort_that_the_bound_cannot_describe_is_refused():
    with pytest.raises(InputError, match="at least 2"):
        bound(users=1, power=POWER[:1])
    with pytest.raises(InputError, match="strong_convexity"):
        bound(steps=np.full(3, 5.0))
    with pytest.raises(InputError, match="gradient_noise"):
        bound(gradient_noise=[1.0, 2.0])


def test_the_error_on_a_quadratic_stays_below_the_bound():
    """methods/adel_fl.md check 17: F_u(w) = |w - c_u|^2 / 2 in L layers.

    G, Gamma, rho and the noise are the true ones.
    """
    rng = np.random.default_rng(0)
    users, layers, rounds, width, replicas = 6, 4, 25, 3, 400
    centre = rng.normal(0, 0.5, (users, layers, width))
    optimum, spread = centre.mean(axis=0), 0.3  # std of a gradient entry over mini-batches
    heterogeneity = 0.5 * np.mean(np.sum((centre - optimum) ** 2, axis=(1, 2)))
    steps = 0.2 / (1.0 + 0.1 * np.arange(rounds))
    ratio = least_ratio(layers, users, 0.3)
    missed = np.repeat(miss_probability(layers, ratio)[None], users, axis=0)
    start = optimum + rng.normal(0, 1.0, (layers, width))
    errors, largest = [], 0.0
    for _ in range(replicas):
        depths = np.minimum(rng.poisson(ratio, (rounds, users)), layers)
        noise = rng.normal(0, spread, (rounds, users, layers, width))
        w = start
        for t in range(rounds):
            gradients = w[None] - centre + noise[t]
            largest = max(largest, float(np.max(np.sum(gradients**2, axis=(1, 2)))))
            entering = LayerMerge("corrected").weights(missed, depths[t]) / users
            w = w - steps[t] * np.sum(entering[..., None] * gradients, axis=0)
        errors.append(np.sum((w - optimum) ** 2))
    c = Constants(
        gradient_norm=np.sqrt(largest),
        gradient_noise=spread * np.sqrt(layers * width),
        smoothness=1.0,
        strong_convexity=1.0,
        heterogeneity=heterogeneity,
        initial_gap=float(np.sum((start - optimum) ** 2)),
    )
    b = Bound(layers, users, steps, c.noise(np.ones(users), users), c)
    assert np.mean(errors) <= make_plan(b, np.full(rounds, ratio), 1.0).bound
