"""FedRolex: windows of hidden units that roll over the network."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import SIZES, assert_close, differ, digits, digits_problem, fleet, situation

from fedjax_het.algorithms import build
from fedjax_het.algorithms.fedrolex import fedrolex
from fedjax_het.algorithms.heterofl import heterofl
from fedjax_het.common.errors import InputError
from fedjax_het.contract import widths
from fedjax_het.models.resnet import resnet
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 8}


@pytest.fixture(scope="module")
def problem():
    """Hidden layers of 8 and 4 units."""
    return digits_problem(hidden=(8, 4))


def windows(method, problem, round, level=1):
    """The units that a client of a level holds in a round, in order, by layer."""
    plan = method.plan((), None, situation(problem, round=round))[0]
    orders = method.widths.orders(jnp.int32(level), None, plan.shared)
    counts = method.widths.counts[level]
    return [orders[group][: counts[group]].tolist() for group in method.widths.layout.sizes]


@pytest.mark.parametrize(("rate", "times"), [(0.25, 2), (0.5, 4), (0.3, 3)])
@pytest.mark.parametrize("direction", [1, -1])
def test_a_unit_is_trained_as_often_as_any_other(problem, rate, times, direction):
    """Over K = 8 rounds in a row, each unit ceil(rK) times, from any round on."""
    method = fedrolex(problem, rates=(1.0, rate), direction=direction, **TRAINING)
    for begin in (0, 5):
        held = [windows(method, problem, begin + t)[0] for t in range(8)]
        assert all(len(set(units)) == times for units in held)
        np.testing.assert_array_equal(np.bincount(np.concatenate(held), minlength=8), times)


def test_windows_roll_and_wrap(problem):
    method = fedrolex(problem, rates=(0.5,), **TRAINING)
    found = [windows(method, problem, t) for t in (0, 1, 5, 8)]
    first = [[0, 1, 2, 3], [1, 2, 3, 4], [5, 6, 7, 0], [0, 1, 2, 3]]
    second = [[0, 1], [1, 2], [1, 2], [0, 1]]  # of K = 4: shifts 0, 1, 1, 0
    assert found == [list(pair) for pair in zip(first, second, strict=True)]
    # The authors' roll of a list by +1 moves the window backwards.
    backwards = fedrolex(problem, rates=(0.5,), direction=-1, **TRAINING)
    assert windows(backwards, problem, 1) == [[7, 0, 1, 2], [3, 0]]
    assert np.roll(np.arange(8), 1)[:4].tolist() == [7, 0, 1, 2]


def test_clients_of_rate_one_hold_the_network_in_its_own_order(problem):
    method = fedrolex(problem, rates=(1.0, 0.5), **TRAINING)
    assert windows(method, problem, 3, level=0) == [list(range(8)), list(range(4))]


def test_a_residual_stage_shares_its_window():
    """Whatever adds to a stream, and whatever reads it, holds the same channels of it."""
    model = resnet((8, 8, 1), units_per_group=2, bottleneck=False, width=8)
    setting = Problem(model, digits(SIZES, (8, 8, 1)), fleet(len(SIZES)))
    method = fedrolex(setting, rates=(0.5,), **TRAINING)
    plan = method.plan((), None, situation(setting, round=3))[0]
    orders = method.widths.orders(jnp.int32(1), None, plan.shared)
    keep = widths.members(method.widths.layout, method.widths.counts[1], orders)
    blocks = dict(zip((block.name for block in model.blocks), keep.params["blocks"], strict=True))

    def channels(block, layer, axis):
        mask = np.asarray(blocks[block][layer]["Conv_0"]["kernel"])
        return np.flatnonzero(mask.any(axis=tuple(a for a in range(4) if a != axis))).tolist()

    assert channels("stem", "ConvNorm_0", 3) == [3, 4, 5, 6]
    for block in ("group1.1", "group1.2"):
        assert channels(block, "ConvNorm_0", 2) == [3, 4, 5, 6]
        assert channels(block, "ConvNorm_1", 3) == [3, 4, 5, 6]
    assert channels("group2.1", "ConvNorm_0", 2) == [3, 4, 5, 6]
    assert channels("group2.2", "ConvNorm_1", 3) == list(range(3, 11))


def after(method, problem, rounds):
    return simulate(method, problem, rounds=rounds).variables


def test_the_first_round_is_that_of_heterofl(problem):
    options = {"rates": (1.0, 0.5, 0.25), "levels": np.arange(8) % 3, **TRAINING}
    ours, theirs = fedrolex(problem, **options), heterofl(problem, masked_loss=False, **options)
    assert_close(after(ours, problem, 1), after(theirs, problem, 1), rtol=0, atol=1e-6)
    assert differ(after(ours, problem, 2).params, after(theirs, problem, 2).params)


def test_with_rates_of_one_it_is_fedavg(problem):
    ours = fedrolex(problem, rates=(1.0,), **TRAINING)
    fedavg = build("fedavg", problem, weighting="uniform", **TRAINING)
    assert_close(after(ours, problem, 3), after(fedavg, problem, 3), rtol=0, atol=1e-6)


def test_units_outside_the_window_keep_their_bits(problem):
    method = fedrolex(problem, rates=(0.25,), weight_decay=0.1, **TRAINING)
    start = problem.model.init(jax.random.key(0))
    end = simulate(method, problem, rounds=3, initial=start).variables
    old, new = (np.asarray(v.params["blocks"][0]["Dense_0"]["kernel"]) for v in (start, end))
    moved = np.flatnonzero((old != new).any(axis=0)).tolist()
    assert moved == [0, 1, 2, 3]  # windows (0, 1), (1, 2), (2, 3)


def test_the_direction_is_checked(problem):
    with pytest.raises(InputError, match="direction = 0: must be 1 or -1"):
        fedrolex(problem, direction=0, **TRAINING)


def test_a_new_width_method_costs_one_file_of_at_most_120_lines():
    path = Path(inspect.getsourcefile(inspect.unwrap(fedrolex)))
    assert path.name == "fedrolex.py"
    assert len(path.read_text().splitlines()) <= 120
