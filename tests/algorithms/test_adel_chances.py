"""ADEL-FL's depth process: Poisson tails, the batch rule, and what the fleet really does."""

import numpy as np
import pytest
from adel_helpers import adel_problem, draws, situations
from scipy.stats import gamma, poisson

from fedjax_het.algorithms.adel.baselines import straggler_misses
from fedjax_het.algorithms.adel.depths import (
    batch_sizes,
    depths_reached,
    log_miss,
    log_miss_slope,
    miss_probability,
    whole_batches,
)
from fedjax_het.algorithms.adel.workload import Layered, prepare
from fedjax_het.common.errors import InputError
from fedjax_het.fleet.presets import build as build_fleet

TRAINING = {"learning_rate": 0.1}
OPTIONS = {
    "schedule": "inverse",
    "decay_rounds": 1.0,
    "granularity": "module",
    "virtual_layers": 0,
    "rates": "ideal",
}


@pytest.mark.parametrize("layers", [1, 3, 8, 13])
@pytest.mark.parametrize("rate", [0.0, 0.3, 4.0, 25.0])
def test_a_miss_is_a_poisson_tail_and_an_erlang_tail(layers, rate):
    """methods/adel_fl.md check 1."""
    ell = np.arange(1, layers + 1)
    q = miss_probability(layers, rate)
    np.testing.assert_allclose(q, poisson.cdf(layers - ell, rate), rtol=0, atol=1e-12)
    if rate > 0:
        np.testing.assert_allclose(q, gamma.sf(rate, layers + 1 - ell), rtol=0, atol=1e-12)


def test_golden_miss_probabilities():
    """methods/adel_fl.md check 1."""
    np.testing.assert_allclose(miss_probability(8, 4.0)[[0, 7]], [0.9488663842, 0.0183156389])
    assert miss_probability(11, 9.0)[2] == pytest.approx(0.4556526043)


def test_the_logarithms_agree_and_do_not_underflow():
    rate = np.asarray([0.2, 3.0, 60.0])
    np.testing.assert_allclose(np.exp(log_miss(8, rate)), miss_probability(8, rate), rtol=1e-12)
    step = 1e-6
    slope = (miss_probability(8, rate + step) - miss_probability(8, rate - step)) / (2 * step)
    np.testing.assert_allclose(-np.exp(log_miss_slope(8, rate)), slope, rtol=1e-6, atol=1e-9)
    assert np.all(np.isfinite(log_miss(8, np.asarray([5000.0]))))


@pytest.mark.parametrize(
    ("users", "layers", "rate", "wanted"),
    [
        (6, 5, 2.2, [0.63664, 0.30257, 0.05831, 0.00199, 0.0]),
        (20, 8, 4.0, [0.350027, 0.095768, 0.007922, 9.349e-5]),
    ],
)
def test_probability_that_nobody_finishes_a_layer(users, layers, rate, wanted):
    """methods/adel_fl.md check 2, check 3."""
    p = miss_probability(layers, rate) ** users
    np.testing.assert_allclose(p[: len(wanted)], wanted, atol=6e-6)
    deepest = draws(users, layers, rate, 200_000).max(axis=1)
    observed = np.mean(deepest[:, None] < layers - np.arange(layers), axis=0)
    np.testing.assert_allclose(observed, p, atol=4 * np.sqrt(0.25 / 200_000))


def test_p_grows_towards_the_input_and_with_m_and_falls_with_time_and_users():
    """methods/adel_fl.md check 4."""

    def p(deadline=4.0, scale=1.0, users=20):
        return miss_probability(8, deadline / scale) ** users

    assert np.all(np.diff(p()) < 0)
    assert np.all(p(scale=1.2) > p())
    assert np.all(p(deadline=5.0) < p())
    assert np.all(p(users=30) < p())


def test_the_batch_rule_makes_everyone_equally_deep():
    """methods/adel_fl.md check 10."""
    power, spent_s = np.asarray([100.0, 800.0, 3000.0]), np.asarray([0.0, 0.4, 0.9])
    samples = batch_sizes(0.7, power, 4.0, spent_s)
    np.testing.assert_allclose((4.0 - spent_s) * power / samples, 4.0 / 0.7)
    np.testing.assert_allclose(batch_sizes(1.4, power, 4.0, spent_s), 2 * samples)
    np.testing.assert_allclose(batch_sizes(0.7, power, np.inf, spent_s), 0.7 * power)
    assert batch_sizes(0.7, power, 0.4, spent_s).tolist()[1:] == [0.0, 0.0]
    whole = whole_batches(samples, np.asarray([10_000, 10_000, 500]))
    assert whole.tolist() == [70, 504, 500]
    assert whole_batches(np.zeros(1), np.ones(1)) == 1


def test_depth_counts_what_is_done_in_time():
    finished_s = np.asarray([[1.0, 2.0, 3.0], [0.5, 0.6, 0.7], [4.0, 5.0, 6.0]])
    assert depths_reached(finished_s, np.asarray([2.0, 1.0, 1.0])).tolist() == [2, 3, 0]


def test_the_uniform_depth_of_salf():
    """methods/adel_fl.md check 15, methods/baselines.md check 11.

    q = 1 - l/L for a straggler, so p = (1 - l/L)^U if all are.
    """
    q = straggler_misses(np.asarray([True, True, False]), 4)
    np.testing.assert_allclose(q[0], [0.75, 0.5, 0.25, 0.0])
    np.testing.assert_allclose(np.prod(q[:2], axis=0), np.asarray([0.75, 0.5, 0.25, 0.0]) ** 2)
    assert not q[2].any()


@pytest.mark.parametrize("rates", ["ideal", "physical"])
def test_exponential_fleets_do_what_the_planner_assumes(rates):
    """The depths drawn on the fleet have the frequencies that `missed` states."""
    problem = adel_problem(users=8)
    setting = prepare(problem, Layered(**{**TRAINING, **OPTIONS, "rates": rates}))
    layers = setting.layers.number
    work = setting.workload(np.arange(8), 4.0, 1.1, 10_000)
    missed = setting.missed(work)
    if rates == "ideal":
        np.testing.assert_allclose(missed, np.broadcast_to(missed[0], missed.shape))
    rounds = 2000
    observed = np.zeros_like(missed)
    for situation in situations(problem, rounds):
        depth = depths_reached(setting.layer_times(situation, work), work.window_s)
        observed += depth[:, None] < layers - np.arange(layers)
    np.testing.assert_allclose(observed / rounds, missed, atol=4.5 * np.sqrt(0.25 / rounds))


@pytest.mark.parametrize(("layers", "wanted"), [(6, 11.47), (8, 14.14), (13, 20.63)])
def test_waiting_for_twenty_users(layers, wanted):
    """methods/adel_fl.md check 15: the mean of the largest of 20 Erlang(L, 1) times."""
    fleet = build_fleet("exponential", 20, mean_flops_per_s=1.0, stages=layers)
    rng = np.random.default_rng(0)
    longest = [
        fleet.stage_times(np.arange(20), float(layers), layers, 0.0, rng)[:, -1].max()
        for _ in range(4000)
    ]
    assert np.mean(longest) == pytest.approx(wanted, abs=0.15)


def test_a_fleet_of_another_number_of_stages_is_refused():
    with pytest.raises(InputError, match="stages = 4"):
        build_fleet("exponential", 2, stages=3).stage_times(
            np.arange(2), 1.0, 4, 0.0, np.random.default_rng(0)
        )
