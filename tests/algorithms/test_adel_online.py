"""Speeds learned from what devices finish, and plans that follow them."""

import jax
import numpy as np
import pytest
from adel_helpers import adel_problem, situations

from fedjax_het.algorithms import build
from fedjax_het.algorithms.adel.online import Speeds
from fedjax_het.fleet.speed import SpeedTrace
from fedjax_het.problem import Problem

ROUNDS = 120


def drifting(factor):
    """Half of the devices run at `factor` of their nominal speed, from the start."""
    problem = adel_problem(users=10, samples=60, mean_power=18)
    slow = np.where(np.arange(10) < 5, factor, 1.0)
    trace = SpeedTrace(np.zeros(1), slow[None])
    fleet = problem.fleet
    moved = type(fleet)(
        flops_per_s=fleet.flops_per_s,
        latency_s=fleet.latency_s,
        compute_distribution="exponential",
        compute_stages=3,
        speed_trace=trace,
    )
    return Problem(problem.model, problem.data, moved), slow


def run(problem, rounds=ROUNDS, **options):
    algorithm = build(
        "adel",
        problem,
        rounds=rounds,
        total_s=3.0 * rounds,
        learning_rate=0.5,
        batch_size=18,
        rates="physical",
        **options,
    )
    state = algorithm.init(problem.model.init(jax.random.key(0)), jax.random.key(1))
    states = [state]
    for situation in situations(problem, rounds, every_s=3.0):
        _, state = algorithm.plan(state, None, situation)
        states.append(state)
    return states


def test_the_estimate_finds_the_rate_although_work_is_cut_short():
    rng = np.random.default_rng(0)
    power, layers = np.asarray([20.0, 200.0]), 5
    speeds = Speeds(np.ones(2), np.ones(2))
    for _ in range(3000):
        batch = np.asarray([12, 90])
        finished_s = np.cumsum(rng.exponential(size=(2, layers)) * (batch / power)[:, None], axis=1)
        depth = np.sum(finished_s <= 2.0, axis=1)
        busy_s = np.minimum(finished_s[:, -1], 2.0)
        speeds = speeds.observe(np.arange(2), batch, depth, busy_s, memory_rounds=1e9)
    np.testing.assert_allclose(speeds.power, power, rtol=0.03)


def test_old_observations_fade():
    speeds = Speeds(np.asarray([100.0]), np.asarray([1.0]))
    for _ in range(60):
        speeds = speeds.observe(np.arange(1), np.asarray([10]), np.asarray([2]), np.ones(1), 5.0)
    assert speeds.power[0] == pytest.approx(20.0, rel=1e-3)


def test_learned_speeds_take_out_the_bias_that_drift_puts_in():
    problem, slow = drifting(0.3)
    blind, learning = run(problem)[-1], run(problem, online={})[-1]

    def weight(state):
        return np.mean(state.tally.weight / state.tally.seen[:, None], axis=1)

    # Unaware of it, the merge counts the slow half far too little.
    assert np.mean(weight(blind)[slow < 1]) < 0.75
    assert np.mean(weight(learning)[slow < 1]) == pytest.approx(1.0, abs=0.12)
    nominal = problem.fleet.flops_per_s * 3 / float(problem.cost.step_flops())
    found = learning.learned.speeds.power / (nominal * slow)
    assert np.median(np.abs(np.log(found))) < 0.35


def test_the_rest_of_the_time_is_planned_anew_when_speeds_change():
    problem, _ = drifting(0.1)
    states = run(problem, rounds=30, online={}, batch_scale=(0.5, 3.0))
    plans = [state.deadlines_s for state in states]
    changed = [t for t in range(30) if not np.array_equal(plans[t], plans[t + 1])]
    assert changed
    for t in changed:
        # Rounds that are over keep their deadlines, and the total stays what was given.
        np.testing.assert_array_equal(plans[t][: t + 1], plans[t + 1][: t + 1])
        assert np.sum(plans[t + 1]) == pytest.approx(90.0)
    # Slower devices make smaller batches, so that the noise term asks for a larger scale.
    assert states[changed[0] + 1].learned.noise > states[0].learned.noise
    assert states[changed[0] + 1].scale > states[0].scale
    steady = run(problem, rounds=30, online={"replan_tolerance": 1e9})
    np.testing.assert_array_equal(steady[-1].deadlines_s, steady[0].deadlines_s)


def test_the_state_is_arrays():
    problem, _ = drifting(0.5)
    state = run(problem, rounds=2, online={})[-1]
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state))
