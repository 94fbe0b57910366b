"""FedEL as an algorithm: budgets, equivalences, frozen tensors, execution and resume."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import problems
import pytest

from fedjax_het.algorithms import build, fedavg
from fedjax_het.algorithms.fedel import Budget, Extensions, Probe, fedel
from fedjax_het.algorithms.fedel.fedel import mask_bias
from fedjax_het.algorithms.fedel.tensors import tensor_times
from fedjax_het.common.errors import InputError
from fedjax_het.contract.masks import Route
from fedjax_het.fleet import presets
from fedjax_het.fleet.device import Fleet
from fedjax_het.models import build as build_model
from fedjax_het.models.exits import with_exits
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.05, "batch_size": 4, "local_steps": 2}
ONE_START = Extensions(starts_per_exit=1)


@functools.cache
def _problem(slowdowns=(1.0, 2.0, 3.0, 4.0), clients=9, hidden=(16, 16, 16, 16)):
    model = with_exits(mlp((64,), 10, hidden=hidden))
    data = problems.digits((8,) * clients)
    devices = presets.build("fedel", clients, slowdowns=slowdowns, assignment="cyclic")
    return Problem(model, data, devices)


def _plans(problem, rounds, **options):
    """Plans of so many rounds, without training in between."""
    algorithm = fedel(problem, **{**TRAINING, **options})
    variables = problem.model.init(jax.random.key(0))
    state = algorithm.init(variables, jax.random.key(0))
    for round in range(rounds):
        situation = problems.situation(problem, round=round)
        plan, state = algorithm.plan(state, variables, situation)
        yield plan, state


@pytest.mark.parametrize("clients", [10, 100])
@pytest.mark.parametrize("spread", [2.0, 4.0])
def test_a_round_lasts_as_long_as_the_budget(clients, spread):
    # methods/fedel.md A1: FedAvg takes the slowest device's time, FedEL the fastest one's.
    problem = _problem((1.0, spread), clients)
    full = fedavg(problem, **TRAINING)
    whole, _ = full.plan((), None, problems.situation(problem))
    budget_s = np.max(whole.timing.total_s[problem.fleet.groups == 0])
    assert np.max(whole.timing.total_s) == pytest.approx(spread * budget_s)
    for plan, _ in _plans(problem, 4):
        round_s = np.max(plan.timing.total_s)
        assert 0.8 * budget_s <= round_s <= 1.1 * budget_s


def test_windows_select_inside_and_routes_cover():
    blocks = 5
    visited = np.zeros((9, blocks), bool)
    for plan, state in _plans(_problem(), 8):
        for i, route in enumerate(plan.routes):
            trained = np.flatnonzero(state.selected[i])
            assert state.lo[i] <= trained.min()
            assert trained.max() <= state.hi[i] == route.exit
            assert route.first == trained.min()
        visited |= state.selected
        assert np.all(plan.timing.bytes_up > 0)
    # methods/fedel.md A4: every block is trained by slow clients too.
    slow = _problem().fleet.groups == 3
    assert visited[slow].all(axis=1).any()


def test_elastic_trainer_leaves_the_front_to_fast_clients():
    # methods/fedel.md A4
    problem = _problem()
    slow = problem.fleet.groups == 3
    for _, state in _plans(problem, 3, variant="elastic_only"):
        assert not state.selected[slow, 0].any()
        assert np.all(state.hi == 4)


def test_total_budget_reports_the_overrun_of_forward_passes():
    # methods/fedel.md check 16: four times slower, the forward pass alone exceeds a budget of 3/2
    # backward passes.
    plans = [plan for plan, _ in _plans(_problem(), 4, budget=Budget(counts="total"))]
    ratios = np.stack([plan.notes["budget_ratio"] for plan in plans])
    groups = _problem().fleet.groups
    assert np.all(ratios[:, groups == 0] <= 1 + 1e-6)
    assert ratios[:, groups == 3].max() > 1.1
    assert all(plan.rows["chosen"].any(axis=1).all() for plan in plans)


def test_starts_per_exit_bounds_the_routes():
    routes = set()
    for plan, state in _plans(_problem(), 6, extensions=ONE_START):
        routes |= set(plan.routes)
        assert all(r.first <= s.argmax() for r, s in zip(plan.routes, state.selected, strict=True))
    assert {r.first for r in routes} == {0}


def test_bandwidth_aware_budget_includes_the_upload():
    problem = _problem()
    slow_link = Fleet(
        flops_per_s=problem.fleet.flops_per_s,
        uplink_bytes_per_s=np.where(np.arange(9) % 2, 4e7, 4e8),
    )
    here = Problem(problem.model, problem.data, slow_link)
    full, _ = fedavg(here, **TRAINING).plan((), None, problems.situation(here))
    best = np.flatnonzero((problem.fleet.groups == 0) & (np.arange(9) % 2 == 0))
    budget_s = full.timing.total_s[best].max()
    unaware, _ = next(_plans(here, 1))
    aware, _ = next(_plans(here, 1, extensions=Extensions(bandwidth_aware=True)))
    assert np.max(unaware.timing.total_s) > 1.1 * budget_s
    assert np.max(aware.timing.total_s) <= 1.1 * budget_s


def test_profiles_that_are_wrong_by_a_fifth_change_the_round_by_at_most_a_fifth():
    for plan, state in _plans(_problem(), 4, extensions=Extensions(profile_noise=0.2)):
        assert np.max(plan.notes["budget_ratio"]) <= 1.2 + 1e-6
        assert state.selected.any(axis=1).all()


def test_without_limits_it_is_federated_averaging():
    # methods/fedel.md check 10: a tiny step makes every importance positive.
    equal = Problem(_problem().model, _problem().data, Fleet(flops_per_s=np.full(9, 1e6)))
    training = {**TRAINING, "learning_rate": 1e-3, "local_steps": 3}
    variables = equal.model.init(jax.random.key(3))
    mean = fedavg(equal, **training, weighting="uniform")
    expected, _ = problems.one_round(mean, equal, variables, execution="masked")
    for variant in ("fedel", "elastic_only"):
        ours = fedel(equal, threshold=float("inf"), variant=variant, **training)
        state = ours.init(variables, None)
        plan, _ = ours.plan(state, variables, problems.situation(equal))
        assert plan.rows["chosen"].all()
        merged, _ = problems.one_round(ours, equal, variables, plan, execution="masked")
        problems.assert_close(merged.params["blocks"], expected.params["blocks"], rtol=1e-6)


def test_tensors_outside_the_selection_keep_their_bits_and_executions_agree():
    # methods/fedel.md check 11, with momentum; masked runs all exits and multiplies, routed never
    # builds the rest.
    problem = _problem(clients=3)
    algorithm = fedel(problem, **TRAINING, momentum=0.9, mu=0.1, extensions=ONE_START)
    variables = problem.model.init(jax.random.key(0))
    state = algorithm.init(variables, None)
    plan, state = algorithm.plan(state, variables, problems.situation(problem))
    plan, state = algorithm.plan(state, variables, problems.situation(problem, round=1))
    # Without the fast client no one reaches the end of the network.
    some = plan.take(np.asarray([1, 2]))
    results = {
        execution: problems.one_round(algorithm, problem, variables, some, execution=execution)[0]
        for execution in ("routed", "masked", "debug")
    }
    problems.assert_close(results["routed"], results["debug"])
    problems.assert_close(results["routed"], results["masked"])
    chosen = some.rows["chosen"].any(axis=0)
    order = []
    for execution in results.values():
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), execution.params, variables.params)
        flat = [
            moved["blocks"][b][d][t]
            for b in range(5)
            for d in ("Dense_0",)
            for t in ("kernel", "bias")
        ]
        order.append(flat)
        assert not np.any(np.asarray(flat) & ~chosen)
        exits = {int(e) for e in some.rows["exit"]}
        heads = {b for b in range(4) if any(jax.tree.leaves(moved["exits"][b]))}
        assert heads == exits - {4}
    assert order[0] == order[1] == order[2]
    assert np.asarray(order[0]).sum() == chosen.sum()


def test_mask_bias():
    # methods/fedel.md check 15
    full = np.ones((3, 4), bool)
    assert mask_bias(full) == pytest.approx(0.0)
    part = full.copy()
    part[0, 2:] = False
    assert mask_bias(part) > 0.1


def test_a_tensor_nobody_trained_stays_out_at_beta_zero():
    # methods/fedel.md check 13: a tensor that never moved, and what adaptive_beta does about it.
    problem = _problem((1.0,), 9)
    for adaptive in (False, True):
        algorithm = fedel(
            problem, **TRAINING, beta=0.0, extensions=Extensions(adaptive_beta=adaptive)
        )
        variables = problem.model.init(jax.random.key(0))
        state = algorithm.init(variables, None)
        moved = np.ones(10, np.float32)
        moved[4] = 0.0
        state = state._replace(moved=jax.numpy.asarray(moved))
        plan, _ = algorithm.plan(state, variables, problems.situation(problem))
        assert plan.rows["chosen"][:, 4].any() == adaptive
        assert plan.rows["chosen"][:, 5].all()


def test_windows_move_only_when_a_client_takes_part_and_runs_resume(tmp_path):
    problem = _problem()
    options = {**TRAINING, "clients_per_round": 4, "extensions": ONE_START}
    engine = {"execution": "masked", "checkpoint_every": 2, "eval_every": 5}
    whole = simulate(fedel(problem, **options), problem, rounds=5, **engine)
    assert whole.faults == []
    taken = np.zeros(9, bool)
    taken[[row["client"] for row in whole.record.clients]] = True
    np.testing.assert_array_equal(whole.state.lo >= 0, taken)
    info = whole.record.metrics[-1]["info"]
    assert info["budget_ratio"] <= 1 + 1e-6 <= info["true_budget_ratio"]
    assert np.sum(info["trained_blocks"]) > 0

    algorithm = fedel(problem, **options)
    simulate(algorithm, problem, rounds=3, workdir=tmp_path, **engine)
    resumed = simulate(algorithm, problem, rounds=5, workdir=tmp_path, **engine)
    chex.assert_trees_all_equal(resumed.variables, whole.variables)
    chex.assert_trees_all_equal(resumed.state, whole.state)


def _with_memory(problem, memory):
    fleet = dataclasses.replace(problem.fleet, memory_bytes=memory.copy())
    return Problem(problem.model, problem.data, fleet)


def test_little_memory_limits_how_far_back_a_window_reaches():
    problem = _problem()
    cost, batch = problem.cost, TRAINING["batch_size"]
    memory = np.full(9, np.inf)
    # Device 0, the fastest, has windows of the whole network; give it room for its last two blocks.
    memory[0] = float(cost.memory_bytes(3, 4, batch))
    small = _with_memory(problem, memory)
    (plan, _), *_ = _plans(small, 1)
    trained = np.flatnonzero(plan.rows["chosen"][0])
    block = tensor_times(problem.model, cost).block
    assert plan.rows["exit"][0] == 4
    assert set(block[trained]) == {3, 4}
    (free, _), *_ = _plans(problem, 1)
    np.testing.assert_array_equal(plan.rows["chosen"][1:], free.rows["chosen"][1:])
    memory[0] = float(cost.memory_bytes(4, 4, batch)) - 1
    poor = _with_memory(problem, memory)
    with pytest.raises(InputError, match=r"clients \[0\] .* memory: cannot hold block .4. alone"):
        fedel(poor, **TRAINING)


def test_the_moments_of_adaptive_clients_take_memory():
    problem = _problem()
    memory = np.full(9, np.inf)
    memory[0] = float(problem.cost.memory_bytes(3, 4, TRAINING["batch_size"], optimizer_slots=3))
    small = _with_memory(problem, memory)
    block = tensor_times(problem.model, problem.cost).block
    shallowest = {}
    for optimizer in ("sgd", "amsgrad"):
        # A whole step of AMSGrad makes importances negative, and this is about memory.
        probe = Probe(measure="gradient")
        plan, _ = next(_plans(small, 1, client_optimizer=optimizer, probe=probe))
        shallowest[optimizer] = block[plan.rows["chosen"][0]].min()
    assert shallowest["sgd"] < shallowest["amsgrad"] == 3


def test_remedies_for_bad_options():
    plain = problems.digits_problem()
    with pytest.raises(InputError, match="exits = True"):
        build("fedel", plain, learning_rate=0.1)
    build("fedel", plain, learning_rate=0.1, variant="elastic_only")
    assert build_model("mlp", (64,), 10, exits=True).exits
    for options, word in (
        ({"beta": 1.5}, "beta"),
        ({"threshold": 0.0}, "threshold"),
        ({"variant": "D"}, "variant"),
        ({"agg": "median"}, "agg"),
        ({"mu": -1.0}, "mu"),
        ({"budget": {"counts": "forward"}}, "counts"),
        ({"budget": {"chain": "both"}}, "chain"),
        ({"budget": {"buckets": 0}}, "budget.buckets"),
        ({"budget": "total"}, "must be a Budget"),
        ({"probe": {"head": "middle"}}, "head"),
        ({"probe": {"step": 0.0}}, "probe.step"),
        ({"extensions": {"global_momentum": 1.0}}, "extensions.global_momentum"),
        ({"extensions": {"profile_noise": -0.1}}, "extensions.profile_noise"),
        ({"extensions": {"starts_per_exit": 0}}, "extensions.starts_per_exit"),
        ({"extensions": {"adaptive": True}}, "did you mean 'adaptive_beta'"),
    ):
        with pytest.raises(InputError, match=word):
            build("fedel", _problem(), **TRAINING, **options)


@pytest.mark.parametrize(
    ("group", "options"),
    [
        (Budget, {"counts": "forward"}),
        (Budget, {"buckets": 1.5}),
        (Probe, {"head": "middle"}),
        (Extensions, {"adaptive_beta": 1}),
    ],
)
def test_groups_of_options_check_themselves(group, options):
    with pytest.raises(InputError, match=next(iter(options))):
        group(**options)


def test_a_group_may_be_a_mapping():
    one = fedel(_problem(), **TRAINING, probe=Probe(step=1.0), extensions=ONE_START)
    other = build(
        "fedel", _problem(), **TRAINING, probe={"step": 1.0}, extensions={"starts_per_exit": 1}
    )
    variables = _problem().model.init(jax.random.key(0))
    plans = [
        algorithm.plan(algorithm.init(variables, None), variables, problems.situation(_problem()))
        for algorithm in (one, other)
    ]
    chex.assert_trees_all_equal(plans[0][0].rows, plans[1][0].rows)
    assert plans[0][0].routes == plans[1][0].routes


def test_route_of_elastic_trainer_needs_no_exits():
    plan, _ = next(_plans(problems.digits_problem(), 1, variant="elastic_only"))
    assert all(isinstance(r, Route) and r.exit == 2 for r in plan.routes)
