"""Levels, prices and limits that methods on sub-networks by width share."""

import dataclasses

import jax
import numpy as np
import pytest
from problems import digits_problem, situation

from fedjax_het.algorithms import build
from fedjax_het.algorithms.networks import networks
from fedjax_het.algorithms.training import UniformTraining
from fedjax_het.common.errors import InputError
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4}


def test_a_price_is_that_of_the_level_that_trains():
    """Selections price a plan of their own, with another generator and the key of the round."""
    problem = digits_problem()
    method = build("heterofl", problem, rates=(1.0, 0.5, 0.25), dynamic=True, **TRAINING)
    one = situation(problem)
    other = one._replace(rng=np.random.default_rng(99))
    levels = [[r.width for r in method.plan.tasks(now).routes] for now in (one, other)]
    assert levels[0] == levels[1]
    assert len(set(levels[0])) > 1
    later = method.plan.tasks(situation(problem, round=1)).routes
    assert [route.width for route in later] != levels[0]


def test_memory_is_checked_for_the_devices_of_every_round():
    problem = digits_problem()
    own = networks(problem, (1.0, 0.25))
    n = problem.num_clients
    need = [
        cost.memory_bytes(0, problem.model.num_blocks - 1, 4, 0)
        for cost in (own.costs[0], own.costs[1])
    ]
    memory = np.full(n, float(need[0]) - 1)
    small = dataclasses.replace(
        problem, fleet=dataclasses.replace(problem.fleet, memory_bytes=memory)
    )
    assert need[1] < memory[0]
    later = build(
        "feddrop",
        small,
        rates=(1.0, 0.25),
        capacity=lambda round: np.full(n, 0.2 if round == 0 else 1.0),
        **TRAINING,
    )
    later.plan.tasks(situation(small))
    with pytest.raises(InputError, match="exceed the memory"):
        later.plan.tasks(situation(small, round=1))
    options, small_own = UniformTraining.parse(TRAINING), networks(small, (1.0, 0.25))
    with pytest.raises(InputError, match="exceed the memory"):
        small_own.assignment(options, levels=[0] * n, shares=None, dynamic=False)


@pytest.mark.parametrize("name", ["heterofl", "fedrolex", "fjord", "feddrop", "fiarse"])
def test_the_complete_network_is_not_taken_for_that_of_a_client(name):
    problem = digits_problem()
    method = build(name, problem, **TRAINING)
    with pytest.raises(InputError, match="personal = True"):
        simulate(method, problem, rounds=1, client_eval="last", personal=True)


def test_personal_models_of_several_devices():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    problem = digits_problem()
    method = build("fedavg", problem, **TRAINING)
    options = {"rounds": 1, "client_eval": "last", "personal": True}
    one, two = (simulate(method, problem, devices=d, **options) for d in (1, 2))
    rows = [[r["personal_accuracy"] for r in run.record.client_evaluations] for run in (one, two)]
    assert rows[0] == pytest.approx(rows[1])
