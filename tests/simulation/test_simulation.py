"""The loop: sampling, the clock, evaluation, stopping, records, and what methods are told."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    assert_close,
    differ,
    digits_problem,
    fleet,
    nudge,
    scalar_problem,
    values_of,
)

from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import read_json
from fedjax_het.contract.clock import Closing, Pace, Status
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet.availability import from_intervals
from fedjax_het.problem import Problem
from fedjax_het.report.audit import AuditError
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4}


@pytest.fixture(scope="module")
def run():
    """FedAvg on the digits, compiled once for all the tests here."""
    problem = digits_problem(hidden=(8,))
    algorithm = build("fedavg", problem, epochs=2, **TRAINING)
    engines = {"engine": make_engine(algorithm, problem, chunk=1), "evaluator": Evaluator(problem)}
    return functools.partial(simulate, algorithm, problem, chunk=1, **engines)


@pytest.fixture(scope="module")
def eight_rounds(run):
    return run(rounds=8)


# ---- the rows --------------------------------------------------------------------------------


def test_a_row_per_step_and_task(eight_rounds):
    record = eight_rounds.record
    assert eight_rounds.faults == []
    assert [row["step"] for row in record.metrics] == list(range(9))
    assert record.metrics[0]["virtual_s"] == 0.0
    for step in range(1, 9):
        tasks = [row for row in record.clients if row["step"] == step]
        assert [row["client"] for row in tasks] == list(range(8))
        assert {row["version"] for row in tasks} == {step - 1}
        before, now = (record.metrics[s]["virtual_s"] for s in (step - 1, step))
        assert {row["dispatched_s"] for row in tasks} == {before}
        assert now == max(row["arrived_s"] for row in tasks)
        row = record.metrics[step]
        assert row["bytes_up"] == sum(task["bytes_up"] for task in tasks)
        weighted = sum(task["loss"] * task["samples"] for task in tasks)
        assert row["train_loss"] == pytest.approx(weighted / sum(t["samples"] for t in tasks))
        assert (row["clients"], row["merged"], row["dropped"], row["nonfinite"]) == (8, 8, 0, [])
    assert record.metrics[-1]["train_loss"] < record.metrics[1]["train_loss"]


def test_the_summary_adds_up(eight_rounds):
    record = eight_rounds.record
    summary = record.summary
    for name in ("bytes_up", "bytes_down", "flops"):
        assert summary[name] == pytest.approx(sum(row[name] for row in record.clients))
    assert (summary["tasks"], summary["merged"], summary["dropped"]) == (64, 64, 0)
    accuracy = [row["accuracy"] for row in record.metrics]
    assert summary["final_accuracy"] == accuracy[-1]
    assert summary["best_accuracy"] == max(accuracy)
    assert summary["steps"] == 8
    assert summary["virtual_s"] == record.metrics[-1]["virtual_s"]


def test_records_on_disk_equal_those_in_memory(run, eight_rounds, tmp_path):
    result = run(rounds=8, workdir=tmp_path)
    assert RunRecord.load(tmp_path) == result.record
    assert result.record.clients == eight_rounds.record.clients
    chex.assert_trees_all_equal(result.variables, eight_rounds.variables)
    unstable = ("wall_s", "compile_s", "compiled_programs")

    def stable(record):
        return [{k: v for k, v in row.items() if k not in unstable} for row in record.metrics]

    assert stable(result.record) == stable(eight_rounds.record)


def test_the_clock_does_not_look_at_the_wall(run, eight_rounds):
    """Another engine and another machine take another time; the virtual clock agrees."""
    walls = [(row["wall_s"], row["compile_s"]) for row in eight_rounds.record.metrics]
    assert all(later[0] >= earlier[0] for earlier, later in itertools.pairwise(walls))
    again = run(rounds=8)
    assert again.record.metrics[-1]["virtual_s"] == eight_rounds.record.metrics[-1]["virtual_s"]
    assert again.record.metrics[-1]["compile_s"] == 0.0  # the engine had everything already


# ---- stopping and evaluating -----------------------------------------------------------------


def test_it_stops_at_the_first_evaluation_that_reaches_the_target(run, eight_rounds):
    accuracy = [row["accuracy"] for row in eight_rounds.record.metrics]
    target = max(accuracy)
    reached = accuracy.index(target)
    assert reached > 0
    result = run(rounds=8, target=target, targets=[0.01, 1.0])
    assert result.record.metrics[-1]["step"] == reached
    hits = {hit["accuracy"]: hit for hit in result.record.summary["targets"]}
    assert hits[target]["step"] == reached
    assert hits[target]["virtual_s"] == eight_rounds.record.metrics[reached]["virtual_s"]
    assert hits[0.01]["step"] == 0
    assert hits[1.0] == {"accuracy": 1.0, "step": None, "virtual_s": None, "wall_s": None}


def test_it_stops_at_the_first_step_that_reaches_the_time(run, eight_rounds):
    times = [row["virtual_s"] for row in eight_rounds.record.metrics]
    assert run(rounds=8, max_virtual_s=times[3]).record.metrics[-1]["step"] == 3
    assert run(rounds=8, max_virtual_s=times[3] * 1.01).record.metrics[-1]["step"] == 4
    assert run(rounds=2, max_virtual_s=times[3]).record.metrics[-1]["step"] == 2


def evaluated(result):
    return [row["step"] for row in result.record.metrics if row.get("accuracy") is not None]


def test_evaluation_every_so_many_rounds_and_at_the_end(run):
    assert evaluated(run(rounds=8, eval_every=3)) == [0, 3, 6, 8]


def test_evaluation_every_so_many_virtual_seconds(run, eight_rounds):
    times = [row["virtual_s"] for row in eight_rounds.record.metrics]
    every_s = 1.6 * times[1]  # rounds last equally long: due after 1.6, 3.2, 4.8, 6.4, 8 rounds
    result = run(rounds=8, eval_every_s=every_s)
    due = [1]  # the first step is past 0 s
    for step in range(2, 9):
        if times[step] // every_s > times[due[-1]] // every_s:
            due.append(step)
    assert evaluated(result) == [0, *due] if due[-1] == 8 else [0, *due, 8]


# ---- who is sampled, and when ----------------------------------------------------------------


def available(period_s, *intervals):
    return from_intervals([np.asarray(i, float) for i in intervals], [period_s] * len(intervals))


def test_sampling_waits_until_enough_devices_are_on():
    base = scalar_problem((3, 4, 5, 6))
    on = available(100.0, [[0, 15]], [[10, 25]], [[60, 80]], [[70, 90]])
    setting = Problem(base.model, base.data, fleet(4, availability=on))
    algorithm = nudge(setting, clients_per_round=2)
    result = simulate(algorithm, setting, rounds=4)
    assert result.faults == []
    starts = []
    for step in range(1, 5):
        tasks = [row for row in result.record.clients if row["step"] == step]
        start_s = tasks[0]["dispatched_s"]
        ready = setting.fleet.next_available(np.asarray([row["client"] for row in tasks]), start_s)
        np.testing.assert_array_equal(ready, start_s)
        assert start_s >= result.record.metrics[step - 1]["virtual_s"]
        starts.append((start_s, [row["client"] for row in tasks]))
    # Nobody overlaps with two others: 0 and 1 from 10 s on, 2 and 3 from 70 s on, and again.
    first_of = [starts[0]]
    for start in starts[1:]:
        if start[1] != first_of[-1][1]:
            first_of.append(start)
    assert first_of[0] == (10.0, [0, 1])
    assert all(start_s % 100 in (10.0, 70.0) for start_s, _ in first_of)


def test_devices_that_are_never_on_together_are_reported():
    base = scalar_problem((3, 4))
    on = available(100.0, [[0, 10]], [[50, 60]])
    setting = Problem(base.model, base.data, fleet(2, availability=on))
    with pytest.raises(InputError, match="clients_per_round = 2: never that many"):
        simulate(nudge(setting, clients_per_round=2), setting, rounds=1)
    result = simulate(nudge(setting, clients_per_round=1), setting, rounds=3)
    assert result.faults == []


# ---- updates that are not finite -------------------------------------------------------------


def test_a_client_that_is_not_finite_is_named_and_left_out():
    problem = scalar_problem((3, 4, 5, 6))
    bad = nudge(problem, value=lambda task: jnp.where(task.client == 2, jnp.nan, 1.0))
    result = simulate(bad, problem, rounds=2)
    assert result.faults == []
    np.testing.assert_allclose(values_of(result.variables), [2.0] * 4)
    for row in result.record.metrics[1:]:
        assert row["nonfinite"] == [2]
        assert (row["clients"], row["merged"], row["dropped"]) == (4, 3, 0)
        assert row["train_loss"] == 1.0
    statuses = {(row["client"], row["status"]) for row in result.record.clients}
    assert statuses == {(k, "nonfinite" if k == 2 else "merged") for k in range(4)}
    assert [row["loss"] for row in result.record.clients if row["client"] == 2] == [None, None]
    assert result.record.summary["nonfinite"] == 2


def test_when_everybody_diverges_the_model_survives(run):
    problem = digits_problem(hidden=(8,))
    algorithm = build("fedavg", problem, learning_rate=1e30, batch_size=4, local_steps=4)
    result = simulate(algorithm, problem, rounds=1, chunk=1)
    start = run(rounds=1).record.metrics[0]
    assert result.record.metrics[1]["nonfinite"] == list(range(8))
    assert result.record.metrics[1]["accuracy"] == start["accuracy"]
    assert result.record.metrics[1]["train_loss"] is None
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.variables))


# ---- what methods are told -------------------------------------------------------------------


def test_plan_and_observe_are_told_the_truth():
    problem = scalar_problem((3, 4, 5, 6))
    base = nudge(problem, clients_per_round=3)
    told, reports = [], []

    def plan(state, variables, situation):
        told.append((situation, values_of(variables)))
        return base.plan(state, variables, situation)

    def observe(state, variables, report):
        reports.append(report)
        return state + 1, variables, {"own": 7}

    algorithm = base._replace(plan=plan, observe=observe, init=lambda variables, key: np.int64(0))
    result = simulate(algorithm, problem, rounds=3, seed=5)
    assert int(result.state) == 3
    assert [s.round for s, _ in told] == [r.round for r in reports] == [0, 1, 2]
    assert [s.now_s for s, _ in told] == [row["virtual_s"] for row in result.record.metrics[:3]]
    np.testing.assert_allclose([w[0] for _, w in told], [0.0, 1.0, 2.0])
    for (situation, _), report in zip(told, reports, strict=True):
        clients = situation.clients
        assert np.all(np.diff(clients) > 0)
        np.testing.assert_array_equal(report.plan.clients, clients)
        np.testing.assert_array_equal(report.loss, np.ones(3))
        assert report.merged.tolist() == [True] * 3
        assert report.client_info["key"].shape[0] == 3
    assert result.record.metrics[-1]["info"]["own"] == 7
    # Every key is used once: the plan's, and those of all clients in all rounds.
    key_of = lambda key: tuple(np.asarray(jax.random.key_data(key)).tolist())
    keys = [tuple(key) for report in reports for key in report.client_info["key"].tolist()]
    for situation, _ in told:
        keys.append(key_of(situation.key))
        keys += [key_of(jax.random.fold_in(situation.key, int(c))) for c in situation.clients]
    assert len(set(keys)) == len(keys) == 3 * (3 + 1 + 3)
    draws = {situation.rng.random() for situation, _ in told}
    assert len(draws) == 3


def test_a_pace_that_cheats_is_found_out(tmp_path):
    problem = scalar_problem((3, 4))

    def close(flight):
        return Closing(0.5 * float(np.max(flight.arrives_s)), [Status.MERGED] * 2, flight.steps)

    algorithm = nudge(problem)._replace(pace=Pace("impatient", close))
    faults = simulate(algorithm, problem, rounds=1, audit=False).faults
    assert len(faults) == 2
    assert all("before it arrived" in fault for fault in faults)
    with pytest.raises(AuditError, match=r"windows: 2 violation.*before it arrived") as raised:
        simulate(algorithm, problem, rounds=1, workdir=tmp_path)
    assert raised.value.faults == faults
    assert RunRecord.load(tmp_path).summary["steps"] == 1  # nothing is lost


# ---- one engine for several runs -------------------------------------------------------------


def routes_of(workdir):
    """The routes of a run, as its newest checkpoint has them."""
    newest = max((workdir / "checkpoints").iterdir())
    return read_json(newest / "meta.json")["routes"]


def test_a_shared_engine_gives_every_run_the_result_it_has_alone(tmp_path):
    """The bound on routes counts a run's own routes, not those of the runs before it."""
    problem = digits_problem()
    capacity = lambda round: np.resize([(0.5, 0.8), (0.8, 1.0)][round % 2], 8)
    algorithm = build("fedpmt", problem, capacity=capacity, clients_per_round=2, **TRAINING)

    def engine():
        return make_engine(algorithm, problem, max_routes=2, chunk=1)

    shared = engine()
    for seed in (0, 1, 2):
        options = {"rounds": 3, "seed": seed, "max_routes": 2, "checkpoint_every": 1}
        places = [tmp_path / f"{seed}{kind}" for kind in ("shared", "own")]
        together, alone = (
            simulate(algorithm, problem, **options, engine=each, workdir=place)
            for each, place in zip((shared, engine()), places, strict=True)
        )
        chex.assert_trees_all_equal(together.variables, alone.variables)
        assert routes_of(places[0]) == routes_of(places[1])
        assert len(routes_of(places[1])) <= 2


def test_a_resumed_run_keeps_to_the_routes_it_had(tmp_path):
    problem = digits_problem()
    depths = {0: 0.5, 1: 0.8, 2: 0.8, 3: 0.5}
    capacity = lambda round: np.full(8, depths[round])
    algorithm = build("fedpmt", problem, capacity=capacity, **TRAINING)
    engine = functools.partial(make_engine, algorithm, problem, max_routes=2, chunk=1)
    options = {"max_routes": 2, "chunk": 1, "checkpoint_every": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    wanted = simulate(algorithm, problem, rounds=4, engine=engine(), workdir=whole, **options)
    for rounds in (2, 4):
        result = simulate(
            algorithm, problem, rounds=rounds, engine=engine(), workdir=cut, **options
        )
    assert routes_of(cut) == routes_of(whole)
    assert len(routes_of(whole)) == 2
    chex.assert_trees_all_equal(result.variables, wanted.variables)


def test_a_finished_run_is_not_continued_but_may_be_extended(run, eight_rounds, tmp_path):
    target = max(row["accuracy"] for row in eight_rounds.record.metrics)
    first = run(rounds=8, target=target, workdir=tmp_path)
    again = run(rounds=8, target=target, workdir=tmp_path)
    chex.assert_trees_all_equal(again.variables, first.variables)
    assert again.record.metrics == first.record.metrics
    assert again.record.summary == first.record.summary
    longer = run(rounds=8, workdir=tmp_path)
    chex.assert_trees_all_equal(longer.variables, eight_rounds.variables)
    assert longer.record.clients == eight_rounds.record.clients


def test_another_seed_samples_and_trains_differently(run, eight_rounds):
    other = run(rounds=8, seed=1)
    assert differ(other.variables.params, eight_rounds.variables.params)
    assert other.record.metrics[0]["loss"] != eight_rounds.record.metrics[0]["loss"]


def test_the_final_model_is_what_the_last_evaluation_saw(run):
    result = run(rounds=2)
    evaluate = Evaluator(digits_problem(hidden=(8,)))
    seen = evaluate(result.variables)
    assert seen["accuracy"] == result.record.metrics[-1]["accuracy"]
    assert_close(seen["loss"], result.record.metrics[-1]["loss"])


def test_an_engine_of_another_method_is_refused():
    problem = scalar_problem()
    fedavg, fedadam = (build(name, problem, learning_rate=0.1) for name in ("fedavg", "fedadam"))
    with pytest.raises(InputError, match=r"engine of another algorithm.*this fedadam.*make_engine"):
        simulate(fedadam, problem, rounds=1, engine=make_engine(fedavg, problem))
