"""TimelyFL: intervals, epochs and shares by hand; durations, coverage, equality with FedAvg."""

import chex
import jax
import numpy as np
import pytest
from problems import differ, digits, digits_problem, fleet, one_round, situation

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.algorithms.timelyfl import workloads
from fedjax_het.common.errors import InputError
from fedjax_het.contract.masks import Route
from fedjax_het.fleet import presets
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem

TRAINING = {"learning_rate": 0.1, "batch_size": 4}
L = 3  # blocks of the digits problem
NO_LINKS = {"downlink_bytes_per_s": np.inf, "uplink_bytes_per_s": np.inf}


def slower(factors, hidden=(12, 8), **columns):
    """Clients of equal sizes whose epoch takes 1, 2 ... times as long."""
    n = len(factors)
    speed = 1e6 / np.asarray(factors, float)
    devices = fleet(n, flops_per_s=speed, **columns)
    return Problem(mlp((64,), 10, hidden=hidden), digits((8,) * n), devices)


def planned(problem, round=0, clients=None, **options):
    method = build("timelyfl", problem, **{**TRAINING, **options})
    plan, _ = method.plan((), None, situation(problem, round=round, clients=clients))
    return plan


def firsts(plan):
    return plan.rows["first"].tolist()


def test_interval_epochs_and_shares_by_hand():
    found = workloads(np.asarray([1.0, 2.0, 4.0, 8.0]), np.zeros(4), 2)
    assert found.interval_s == 2.0
    assert found.epochs.tolist() == [2, 1, 1, 1]
    assert found.share.tolist() == [1.0, 1.0, 0.5, 0.25]
    # Transfers are no epochs: T = 5, and (5 - 1) / 1, (5 - 2) / 3, at least 1.
    found = workloads(np.asarray([1.0, 3.0, 8.0]), np.asarray([1.0, 2.0, 2.0]), 2)
    assert found.interval_s == 5.0
    assert found.epochs.tolist() == [4, 1, 1]
    assert found.share.tolist() == [1.0, 1.0, 0.5]
    # 0.3 / 0.1 is below 3 in floats.
    assert workloads(np.asarray([0.1, 0.3]), np.zeros(2), 2).epochs.tolist() == [3, 1]


def test_the_plan_follows_the_golden_of_four_devices():
    problem = slower((1, 2, 4, 8), **NO_LINKS)
    plan = planned(problem)
    epoch_s = 8 * problem.cost.step_flops(0) / 1e6
    assert plan.info["interval_s"] == pytest.approx(2 * epoch_s)
    assert plan.steps.tolist() == [4, 2, 2, 2]
    # Half of the FLOPs are enough for a suffix, a quarter not even for the forward pass.
    share = problem.cost.step_flops(np.arange(L)) / problem.cost.step_flops(0)
    third = int(np.argmax(share <= 0.5))
    assert share[-1] > 0.25
    assert firsts(plan) == [0, 0, third, L - 1]
    assert plan.info["late_clients"] == 1
    assert plan.routes == [Route(f, L - 1) for f in firsts(plan)]
    assert plan.info["clients_per_block"] == [
        sum(f <= block for f in firsts(plan)) for block in range(L)
    ]
    # Work and bytes are those of the epochs and of the suffix.
    np.testing.assert_allclose(plan.timing.compute_s[:2], 2 * epoch_s)
    np.testing.assert_array_equal(
        plan.timing.bytes_up, problem.cost.upload_bytes(np.asarray(firsts(plan)))
    )


@pytest.mark.parametrize("fastest", [1, 3, 6, None])
def test_tasks_end_with_the_interval_unless_they_are_late(fastest):
    """With transfers: the download does not shrink, so less than the share may be computed."""
    problem = slower((1, 1.3, 1.7, 2.1, 2.6, 9), hidden=(32, 24, 16, 12))
    plan = planned(problem, fastest=fastest)
    interval_s, total_s = plan.info["interval_s"], plan.timing.total_s
    on_time = total_s <= interval_s * (1 + 1e-6)
    assert int(np.sum(~on_time)) == plan.info["late_clients"]
    assert np.all(np.asarray(firsts(plan))[~on_time] == 4)
    # Neither one more epoch nor one more block would have fitted.
    steps = np.asarray(plan.steps)
    whole = np.asarray(firsts(plan)) == 0
    one_more_s = plan.timing.compute_s * (steps + 2) / steps - plan.timing.compute_s
    assert np.all((total_s + one_more_s)[whole] > interval_s)
    for client, first in enumerate(firsts(plan)):
        if first:
            work = 8 * problem.cost.step_flops(first - 1)
            more = problem.fleet.timing(
                np.asarray([client]),
                work,
                problem.cost.download_bytes(),
                problem.cost.upload_bytes(first - 1),
                0.0,
                None,
            )
            assert more.total_s[0] > interval_s
    if fastest == 6:
        assert firsts(plan) == [0] * 6
        assert plan.info["late_clients"] == 0
        assert plan.steps[0] > 2


def test_a_round_lasts_as_long_as_the_interval_or_the_latest():
    for factors in ((1, 2, 2.5, 2.6), (1, 2, 4, 80)):
        problem = slower(factors)
        result = fh.simulate(build("timelyfl", problem, **TRAINING), problem, rounds=2)
        assert result.faults == []
        first, second = result.record.metrics[1:]
        info = first["info"]
        lasts_s = second["virtual_s"] - first["virtual_s"]
        late = info["late_clients"]
        assert late == (1 if factors[-1] == 80 else 0)
        assert (lasts_s > info["interval_s"] * (1 + 1e-6)) == bool(late)
        assert info["clients_per_block"][-1] == 4
        assert {row["staleness"] for row in result.record.clients} == {0}


def test_with_equal_devices_it_is_fedavg_bit_for_bit():
    problem = slower((1, 1, 1, 1))
    runs = [
        fh.simulate(build(name, problem, **TRAINING), problem, rounds=3)
        for name in ("timelyfl", "fedavg")
    ]
    chex.assert_trees_all_equal(runs[0].variables, runs[1].variables)
    assert runs[0].record.clients == runs[1].record.clients


def test_layers_that_a_client_does_not_train_are_not_averaged_in():
    """The first block becomes that of the clients that train it, as if they were alone."""
    problem = slower((1, 1, 1.8, 1.8))
    start = problem.model.init(jax.random.key(0))
    method = build("timelyfl", problem, **TRAINING)
    plan, _ = method.plan((), start, situation(problem))
    assert [f > 0 for f in firsts(plan)] == [False, False, True, True]
    merged, _ = one_round(method, problem, start, plan)
    alone, _ = one_round(method, problem, start, plan.take(np.arange(2)))
    blocks = merged.params["blocks"], alone.params["blocks"]
    chex.assert_trees_all_close(blocks[0][0], blocks[1][0], rtol=1e-6)
    assert differ(blocks[0][-1], blocks[1][-1])


def test_a_layer_without_time_in_any_client_keeps_its_bits():
    problem = slower((1, 1, 60, 60))
    start = problem.model.init(jax.random.key(0))
    method = build("timelyfl", problem, **TRAINING)
    plan, _ = method.plan((), start, situation(problem))
    slow, _ = one_round(method, problem, start, plan.take(np.arange(2, 4)))
    assert plan.info["late_clients"] == 2
    chex.assert_trees_all_equal(slow.params["blocks"][:-1], start.params["blocks"][:-1])
    assert differ(slow.params["blocks"][-1], start.params["blocks"][-1])


def test_the_epochs_multiply_the_local_work_and_have_a_limit():
    problem = slower((1, 2, 4, 8), **NO_LINKS)
    assert planned(problem, fastest=4).steps.tolist() == [16, 8, 4, 2]
    assert planned(problem, fastest=4, max_epochs=3).steps.tolist() == [6, 6, 4, 2]
    assert planned(problem, fastest=4, local_steps=3).steps.tolist() == [24, 12, 6, 3]
    assert planned(problem, fastest=4, epochs=2).steps.tolist() == [32, 16, 8, 4]


def test_intervals_are_those_of_the_cohort_and_of_the_fleet_of_the_round():
    problem = slower((1, 2, 4, 8), **NO_LINKS)
    one, other = (planned(problem, clients=c) for c in ((0, 1), (2, 3)))
    assert other.info["interval_s"] == pytest.approx(4 * one.info["interval_s"])
    # Fewer clients than asked for: the slowest of them.
    few = planned(problem, clients=(2, 3), fastest=4)
    assert firsts(few) == [0, 0]
    devices = presets.build("dtfl", 8, redraw_every=1, redraw_share=1.0)
    base = digits_problem()
    moving = Problem(base.model, base.data, devices)
    plans = [planned(moving, round=r) for r in range(4)]
    assert len({tuple(firsts(plan)) for plan in plans}) > 1
    for round, plan in enumerate(plans):
        work = moving.data.sizes * moving.cost.step_flops()
        whole_s = moving.fleet.at(round).timing(
            np.arange(8),
            work,
            moving.cost.download_bytes(),
            moving.cost.upload_bytes(),
            0.0,
            None,
        )
        assert plan.info["interval_s"] == pytest.approx(np.sort(whole_s.total_s)[3])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fastest": 0}, "between 1 and the 8 clients"),
        ({"fastest": 5, "clients_per_round": 4}, "between 1 and the 4 clients"),
        ({"max_epochs": 0}, "at least 1"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(InputError, match=words):
        build("timelyfl", digits_problem(), **TRAINING, **options)
