"""DTFL's study: geometry of its networks, prices by network, and habits of the authors' code."""

import inspect

import chex
import jax
import numpy as np
import pytest
from problems import exits_problem

from benchmarks.reproduce import dtfl, dtfl_habits, dtfl_timing
from fedjax_het.algorithms import build
from fedjax_het.algorithms.dtfl import Scheduler
from fedjax_het.algorithms.dtfl.scheduler import first_tiers
from fedjax_het.algorithms.registry import option_names
from fedjax_het.fleet import splits
from fedjax_het.simulation.simulate import simulate

SGD = {"learning_rate": 0.1, "batch_size": 4}


def activations(model):
    """Bytes that each tier but the head sends for a sample, over those of the largest."""
    sent = [np.prod(shape.shape) for shape in model.activation_shapes(1)[: model.num_blocks - 1]]
    return np.asarray(sent) / max(sent)


def test_activations_are_to_each_other_as_in_resnet56():
    """Links are scaled by md2 alone, so md1 must send a quarter of it."""
    wanted = [0.25, 1, 1, 0.5, 0.5, 0.25, 0.25]
    np.testing.assert_allclose(activations(dtfl.network("plain")), wanted)
    assert activations(dtfl.network("resnet"))[:2] == pytest.approx([0.25, 1.0])
    first, second = activations(dtfl.network("plain_half"))[:2]
    assert first / second == 0.5  # what the published runs had


@pytest.fixture
def blank_images(monkeypatch):
    shape = (dtfl.SIDE, dtfl.SIDE, 3)

    def images(train):
        x, y = np.zeros((train, *shape), np.float32), np.arange(train) % 10
        return np.zeros((20, *shape), np.float32), np.arange(20) % 10, x, y

    monkeypatch.setattr(dtfl, "_images", images)


def round_ratio(problem, speed, **training):
    """Seconds of a round of FedAvg over those of DTFL, once its scheduler has settled."""
    whole, tiered = (
        dtfl_timing.mean_round_s(name, problem, 6, **own, **training)
        for name, own in (("fedavg", {}), ("dtfl", {"server_flops_per_s": speed}))
    )
    return whole / tiered


@pytest.mark.parametrize(("net", "ratio"), [("plain", 4.10), ("plain_half", 2.14)])
def test_rounds_of_the_reduced_network_gain_what_the_paper_s_do(blank_images, net, ratio):
    """ResNet-56 gains 3.53; with activations of a half, the published runs gained 2.14."""
    problem, speed, _ = dtfl.setting(net)
    assert round_ratio(problem, speed, batch_size=20) == pytest.approx(ratio, abs=0.02)


@pytest.mark.slow
def test_the_networks_of_the_paper_differ_in_the_time_of_a_batch():
    """ResNet-110's ratio is near the paper's 5.08, if its batch takes what Table 1 implies."""
    assert dtfl_timing.BATCH_S == {56: 0.16, 110: 0.29}
    assert round_ratio(*dtfl_timing.setting(56)) == pytest.approx(3.53, abs=0.05)
    assert round_ratio(*dtfl_timing.setting(110)) == pytest.approx(5.4, abs=0.3)


@pytest.mark.parametrize(("tiers", "first"), [(None, 2), (7, 2), (6, 1), (3, 1), (1, 1)])
def test_tiers_count_within_those_allowed_and_begin_with_two_blocks(tiers, first):
    """Tier 2 of 7, the authors' start, is tier 1 of 6."""
    cut = splits.cuts(8, tiers)
    holds = np.ones((3, len(cut)), bool)
    assert first_tiers(Scheduler(), holds, cut).tolist() == [first - 1] * 3
    if tiers != 1:
        assert first_tiers(Scheduler(initial_tier=2), holds, cut).tolist() == [1] * 3
    assert cut[-1] == 6  # the deepest client half holds all but the head


def test_the_last_client_s_model_is_evaluated_before_the_merge():
    problem = exits_problem()
    plain = build("dtfl", problem, **SGD)
    last = dtfl_habits.last_client(plain)
    options = {"rounds": 1, "execution": "masked"}
    usual, habit = simulate(plain, problem, **options), simulate(last, problem, **options)
    assert usual.faults == habit.faults == []
    chex.assert_trees_all_close(usual.variables, habit.variables, rtol=1e-6)
    # A round of the last client alone gives its model.
    n = problem.num_clients
    alone = plain._replace(select=lambda candidates: np.asarray([n - 1]), cohort_size=1)
    (seen,) = last.evaluated(habit.state, habit.variables)
    wanted = simulate(alone, problem, **options).variables
    chex.assert_trees_all_close(seen, wanted, rtol=2e-5, atol=1e-6)
    accuracy = [run.record.metrics[-1]["accuracy"] for run in (usual, habit)]
    assert accuracy[0] != accuracy[1]


def test_the_server_s_half_may_step_further():
    problem = exits_problem()
    sgd = {**SGD, "client_optimizer": "sgd", "local_steps": 1}
    same = {"rounds": 1, "execution": "masked"}
    start = problem.model.init(jax.random.key(0))
    moved = []
    for options in (sgd, dtfl_habits.eager_server(sgd, cut=1, factor=5.0)):
        method = build("dtfl", problem, scheduler={"fixed_tier": 2}, **options)
        end = simulate(method, problem, initial=start, **same).variables
        moved.append(jax.tree.map(lambda a, b: np.asarray(a - b), end, start).params["blocks"])
    chex.assert_trees_all_close(moved[1][:2], moved[0][:2], rtol=1e-5, atol=1e-7)
    five = jax.tree.map(lambda step: 5.0 * step, moved[0][2])
    chex.assert_trees_all_close(moved[1][2], five, rtol=1e-4, atol=1e-6)


def test_heads_may_start_alike():
    model = dtfl.network("plain")
    variables = dtfl_habits.alike(model, 0)
    chex.assert_trees_all_equal(variables.params["blocks"][-1], variables.params["exits"][-1])
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, model.shapes)


def test_every_arm_says_what_its_setting_takes():
    known = {
        "last_client",
        "heads_alike",
        "server_rate",
        *inspect.signature(dtfl.setting).parameters,
    }
    for arms in dtfl.ARMS.values():
        for name, options, where in arms.values():
            assert set(where) <= known
            assert set(options) <= {*option_names(name), "clients_per_round"}
