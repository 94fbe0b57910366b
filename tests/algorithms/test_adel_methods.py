"""ADEL-FL and its relatives as algorithms: the clock, the records, and who wins at equal time."""

from dataclasses import fields
from typing import get_type_hints

import chex
import jax
import numpy as np
import pytest
from adel_helpers import adel_problem, situations
from problems import assert_close, differ, digits_problem
from scipy.stats import norm

from fedjax_het.algorithms import build
from fedjax_het.algorithms.adel.depths import miss_probability
from fedjax_het.algorithms.adel.workload import Layered, LayeredKeywords
from fedjax_het.common.errors import InputError
from fedjax_het.contract.clock import Status, dispatch
from fedjax_het.engine.engine import Engine
from fedjax_het.fleet.device import Fleet
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.simulate import simulate

ROUNDS, TOTAL_S = 12, 24.0
TRAINING = {"learning_rate": 1.0, "batch_size": 24}
BUDGET = {"rounds": ROUNDS, "total_s": TOTAL_S, **TRAINING}


def planned(algorithm, problem, rounds, **kind):
    """Plans, statuses and ends of many rounds, without training."""
    state = algorithm.init(problem.model.init(jax.random.key(0)), jax.random.key(1))
    for situation in situations(problem, rounds, **kind):
        plan, state = algorithm.plan(state, None, situation)
        closing = algorithm.pace.close(dispatch(plan, situation.now_s, situation.round))
        yield plan, closing, state


@pytest.mark.parametrize("rates", ["ideal", "physical"])
def test_a_round_lasts_until_its_deadline_and_who_has_nothing_is_dropped(rates):
    problem = adel_problem()
    algorithm = build("adel", problem, **BUDGET, rates=rates)
    dropped = 0
    for plan, closing, state in planned(algorithm, problem, ROUNDS, every_s=2.0):
        at_s = 2.0 * (int(state.tally.rounds) - 1)
        layers = 3 - plan.rows["first_layer"]
        late = np.asarray([status is Status.DROPPED for status in closing.status])
        np.testing.assert_array_equal(late, layers == 0)
        assert closing.at_s <= at_s + plan.deadline_s
        if np.any(layers < 3):
            assert closing.at_s == pytest.approx(at_s + plan.deadline_s, rel=1e-12)
        # A device is charged for the layers it did.
        cost = problem.cost.step_flops(np.minimum(plan.rows["first_layer"], 2))
        np.testing.assert_allclose(plan.timing.flops, plan.batch * cost)
        dropped += late.sum()
    assert dropped > 0
    deadlines = state.deadlines_s
    assert np.sum(deadlines) == pytest.approx(TOTAL_S)
    assert np.all(np.diff(deadlines) < 0)


def test_how_often_stragglers_are_dropped():
    """methods/adel_fl.md check 15: a user completes a round with probability 1 - Q(L, T)."""
    problem = adel_problem(users=20)
    rounds = 300
    algorithm = build("adel_drop", problem, rounds=rounds, total_s=rounds * 3.0, **TRAINING)
    late = [
        [status is Status.DROPPED for status in closing.status]
        for _, closing, _ in planned(algorithm, problem, rounds)
    ]
    wanted = miss_probability(3, 3.0)[0]
    assert np.mean(late) == pytest.approx(wanted, abs=4 * np.sqrt(0.25 / (20 * rounds)))


def test_waiting_lasts_as_long_as_the_slowest():
    problem = adel_problem(users=20)
    algorithm = build("adel_wait", problem, **TRAINING)
    took = []
    for plan, closing, _ in planned(algorithm, problem, 100):
        took.append(closing.at_s - 1.0 * len(took))
        assert all(status is Status.MERGED for status in closing.status)
        assert took[-1] == pytest.approx(np.max(plan.timing.total_s))
    fastest = problem.fleet.latency_s.min() * 2
    assert np.mean(took) > 3.0 + fastest


def test_salf_with_its_own_stragglers():
    problem = adel_problem()
    algorithm = build("salf", problem, **BUDGET, straggler_share=0.5)
    slow = np.argsort(problem.fleet.flops_per_s)[:4]
    depths = []
    for plan, closing, _ in planned(algorithm, problem, ROUNDS):
        depths.append(3 - plan.rows["first_layer"])
        assert all(status is Status.MERGED for status in closing.status)
        assert "inverse_propensity" in plan.rows
    fast = np.setdiff1d(np.arange(8), slow)
    assert np.all(np.asarray(depths)[:, fast] == 3)
    assert set(np.unique(np.asarray(depths)[:, slow])) == {1, 2, 3}
    everyone = build("salf", problem, **BUDGET, straggler_share=1.0)
    plan, _, _ = next(iter(planned(everyone, problem, 1)))
    np.testing.assert_allclose(
        1 - plan.shared["merge_probability"], [(2 / 3) ** 8, (1 / 3) ** 8, 0], atol=1e-6
    )
    assert set(plan.rows) == {"first_layer"}


@pytest.mark.slow
def test_debug_masked_and_routed_agree():
    """With tensors for layers and a weight per client and layer; the sweep has the defaults."""
    problem = adel_problem(users=3, samples=8, hidden=(4,), mean_power=5, stages=4)
    options = {**BUDGET, "batch_size": 5, "granularity": "tensor", "rates": "physical"}
    algorithm = build("adel", problem, **options)
    runs = [
        simulate(algorithm, problem, rounds=1, execution=execution)
        for execution in ("debug", "masked", "routed")
    ]
    for run in runs:
        assert not run.faults
        assert_close(run.variables, runs[0].variables, atol=1e-5)
    assert differ(runs[0].variables, problem.model.init(jax.random.split(jax.random.key(0), 4)[0]))


def test_unequal_batches_do_not_recompile():
    problem = adel_problem()
    algorithm = build("adel", problem, **BUDGET)
    run = simulate(
        algorithm, problem, rounds=ROUNDS, execution="masked", chunk=8, eval_every=ROUNDS
    )
    sizes = {row["samples"] for row in run.record.clients if row["steps"]}
    assert len(sizes) > 8
    assert run.record.metrics[-1]["compiled_programs"] == 1


def test_a_run_cannot_outlive_its_plan():
    problem = adel_problem()
    algorithm = build("adel", problem, **{**BUDGET, "rounds": 2, "total_s": 4.0})
    with pytest.raises(InputError, match=r"set run\.rounds = 2"):
        list(planned(algorithm, problem, 3))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"total_s": 5.0}, "total_s >= "),
        ({"total_s": np.inf}, "total_s"),
        ({"rounds": 0}, "rounds"),
        ({"aggregator": "median"}, "aggregator"),
        ({"rates": "real"}, "rates"),
        ({"granularity": "neuron"}, "granularity"),
        ({"solver": "guess"}, "solver"),
        ({"schedule": "linear"}, "schedule"),
        ({"batch_scale": (1.0,)}, "batch_scale"),
        ({"online": {}}, "physical"),
        ({"online": {"memory_rounds": 1.0}}, "memory_rounds"),
        ({"online": {"replan_tolerance": 0.0}}, "replan_tolerance"),
        ({"propensity_floor": 1.0}, "propensity_floor"),
        ({"max_batch": 0}, "max_batch"),
        ({"constants": {"gradient_norm": -1.0}}, "gradient_norm"),
        ({"constants": {"smothness": 1.0}}, "did you mean"),
        ({"clients_per_round": 1}, "sample more clients"),
        ({"local_steps": 2}, "local_steps"),
        ({"weighting": "samples"}, "weighting"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, word):
    with pytest.raises(InputError, match=word):
        build("adel", adel_problem(), **{**BUDGET, **options})


def test_options_of_the_relatives_that_cannot_be_used_are_named():
    problem = adel_problem()
    for name, options, word in (
        ("salf", {"straggler_share": 0.0}, "straggler_share"),
        ("salf", {"batch_scale": -1.0}, "batch_scale"),
        ("adel_drop", {"total_s": 1e-3}, "best client communicates"),
        ("adel_drop", {"rounds": 0}, "rounds"),
    ):
        with pytest.raises(InputError, match=word):
            build(name, problem, **{**BUDGET, **options})


def test_time_short_of_communication_leaves_a_client_out_only_when_asked():
    problem = adel_problem()
    slowest = 2 * problem.fleet.latency_s.max()
    tight = {"rounds": 10, "total_s": 10 * 0.9 * slowest, "learning_rate": 1.0}
    tight["batch_scale"] = (0.01, 0.05)
    with pytest.raises(InputError, match="slowest client's communication"):
        build("adel", problem, **tight)
    algorithm = build("adel", problem, **tight, shortest_s=0.01, max_batch=4)
    plan, closing, _ = next(iter(planned(algorithm, problem, 1)))
    out = 2 * problem.fleet.latency_s >= plan.deadline_s
    assert out.any()
    assert all(closing.status[u] is Status.DROPPED for u in np.flatnonzero(out))
    with_time = int(np.sum(~out))
    wanted = miss_probability(3, plan.deadline_s / 0.05)[0] ** with_time
    assert 1 - plan.shared["merge_probability"][0] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("law", ["constant", "lognormal"])
def test_times_that_are_not_exponential_show_as_bias_in_the_records(law):
    """The chance of a miss is not what the planner assumes, and the merge is off by as much."""
    base = digits_problem()
    jitter = 0.0 if law == "constant" else 0.5
    devices = Fleet(flops_per_s=base.fleet.flops_per_s, compute_jitter=jitter)
    problem = Problem(base.model, base.data, devices)
    # One and a half layers of the batch that a device of mean power is given fit into a round.
    mean_power = problem.fleet.flops_per_s.mean() * 3 / float(problem.cost.step_flops())
    total_s = 150 * 1.5 * 20 / mean_power
    options = {"rounds": 150, "total_s": total_s, "learning_rate": 0.5, "batch_size": 20}
    algorithm = build("salf", problem, **options)
    *_, (_, _, state) = planned(algorithm, problem, 150)
    _, _, info = algorithm.observe(state, None, _Report())
    users = problem.num_clients
    assumed = miss_probability(3, 1.5) ** users
    if law == "constant":
        # Everyone always finishes one layer of three.
        np.testing.assert_allclose(info["miss_observed"], [1.0, 1.0, 0.0])
        np.testing.assert_allclose(info["update_weight"], [0.0, 0.0, 1.0], atol=1e-4)
    else:
        expected = (1 - info["miss_observed"]) / (1 - assumed)
        np.testing.assert_allclose(info["update_weight"], expected, atol=1e-6)
        # All three layers fit if the factor is below 1/2: rarer than the Poisson tail says.
        rarely = 1 - norm.cdf((np.log(0.5) + 0.125) / 0.5)
        assert info["miss_observed"][0] == pytest.approx(rarely**users, abs=0.12)
        assert info["update_weight"][0] < 0.95


class _Report:
    class plan:  # noqa: N801
        shared = {"merge_probability": np.ones(3)}  # noqa: RUF012


def test_exponential_times_show_no_bias():
    problem = adel_problem(users=8)
    rounds = 800
    algorithm = build("salf", problem, rounds=rounds, total_s=2.0 * rounds, **TRAINING)
    *_, (_, _, state) = planned(algorithm, problem, rounds)
    _, _, info = algorithm.observe(state, None, _Report())
    np.testing.assert_allclose(info["update_weight"], 1.0, atol=0.05)


def test_adel_is_ahead_of_dropping_and_of_waiting_at_equal_time():
    """methods/adel_fl.md check 18: mean accuracy of three seeds.

    Of the six layers few fit into a round.
    """
    problem = adel_problem(users=20, samples=60, hidden=(32, 16), mean_power=18, stages=6)
    rounds, total_s = 20, 52.0
    settings = {"rounds": rounds, "max_virtual_s": total_s, "execution": "masked", "chunk": 20}
    settings["eval_every"] = 5
    evaluator = Evaluator(problem)
    accuracy = {}
    for name in ("adel", "adel_drop", "adel_wait"):
        options = {} if name == "adel_wait" else {"rounds": rounds, "total_s": total_s}
        algorithm = build(
            name, problem, learning_rate=4.0, batch_size=18, granularity="tensor", **options
        )
        engine = Engine(algorithm, RunOptions(**settings).resources(problem))
        runs = [
            simulate(algorithm, problem, engine=engine, evaluator=evaluator, seed=seed, **settings)
            for seed in range(3)
        ]
        # Waiting ends with a round that is over after the time is: it is given that round.
        accuracy[name] = np.mean([run.record.summary["final_accuracy"] for run in runs])
    assert accuracy["adel"] >= accuracy["adel_drop"]
    assert accuracy["adel"] >= accuracy["adel_wait"]


def test_a_resumed_run_has_the_same_bits(tmp_path):
    """The plan, the learned speeds and the counts included."""
    problem = adel_problem(users=5, samples=12, hidden=(8,), stages=2, mean_power=5, drift=0.5)
    options = {**BUDGET, "batch_size": 5, "rates": "physical"}
    algorithm = build("adel", problem, **options, online={"replan_tolerance": 0.01})
    run = {"execution": "masked", "seed": 3, "eval_every": 6}
    shared = {"engine": Engine(algorithm, RunOptions(rounds=1, **run).resources(problem))}
    shared["evaluator"] = Evaluator(problem)
    whole = simulate(algorithm, problem, rounds=6, **run, **shared)
    run |= {"workdir": tmp_path, "checkpoint_every": 1}
    simulate(algorithm, problem, rounds=3, **run, **shared)
    resumed = simulate(algorithm, problem, rounds=6, **run, **shared)
    chex.assert_trees_all_equal(resumed.variables, whole.variables)
    chex.assert_trees_all_equal(resumed.state, whole.state)
    times = [[row["virtual_s"] for row in r.record.metrics] for r in (whole, resumed)]
    assert times[0] == times[1]
    assert np.any(whole.state.deadlines_s != algorithm.init(None, None).deadlines_s)


def test_a_plan_can_be_looked_at_without_training():
    problem = adel_problem()
    options = {"learning_rate": 0.5, "batch_size": 24, "rounds": 10, "total_s": 20.0}
    algorithm = build("adel", problem, **options, rates="physical")
    shown = algorithm.preview()
    rounds, clients = ({n: c.values for n, c in part.items()} for part in shown[2:])
    assert {"rounds": 10, "layers": 3, "clients": 8}.items() <= shown.summary.items()
    assert shown.summary["total_s"] == pytest.approx(20.0)
    assert np.sum(rounds["deadline_s"]) == pytest.approx(20.0)
    np.testing.assert_allclose(rounds["step_size"], 0.5 / np.arange(2, 12))
    # Other schedules count as those of every method, from the first round on.
    halved = build("adel", problem, **options, schedule="step", decay_rounds=4, decay_factor=0.5)
    steps = halved.preview()[2]["step_size"].values
    np.testing.assert_allclose(steps, 0.5 * 0.5 ** (np.arange(10) // 4))
    assert rounds["missed_by_all"].shape == (10, 3)
    assert rounds["batch"].shape == (10, 8)
    np.testing.assert_array_equal(clients["batch"], rounds["batch"][[0, -1]].T)
    assert clients["missed"].shape == (8, 3)
    # It is the plan that a run follows.
    first, *_ = planned(algorithm, problem, 1)
    assert first[0].deadline_s == rounds["deadline_s"][0]
    np.testing.assert_array_equal(first[0].batch, rounds["batch"][0])
    np.testing.assert_allclose(
        1 - first[0].shared["merge_probability"], np.prod(clients["missed"], axis=0), atol=1e-6
    )
    for name in ("salf", "adel_drop"):
        equal = build(name, problem, **options).preview()
        assert equal.method == name
        np.testing.assert_allclose(equal.by_round["deadline_s"].values, 2.0)
        assert shown.summary["bound"] < equal.summary["bound"]
    assert build("adel_wait", problem, **TRAINING).preview is None


def test_every_shared_option_is_a_typed_keyword():
    assert set(get_type_hints(LayeredKeywords)) == {field.name for field in fields(Layered)}
