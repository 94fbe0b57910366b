"""Selections in a run: what they are told under every pace, checkpoints, and every method."""

import shutil
from dataclasses import replace

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from methods import DEFAULT, SETTINGS
from problems import digits_problem, fleet, nudge, scalar_problem

import fedjax_het as fh
from fedjax_het.algorithms import ALGORITHMS
from fedjax_het.algorithms.registry import option_names
from fedjax_het.config import methods
from fedjax_het.contract.clock import arrivals, barrier, deadline, window
from fedjax_het.contract.selection import Seen, Selector
from fedjax_het.engine.engine import make_engine
from fedjax_het.engine.selecting import note, nothing_known
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.transforms.named import named
from fedjax_het.transforms.select import SELECTIONS

PROBLEM = scalar_problem((3, 4, 5, 6, 7, 8))
ROUNDS = 5


def recording(told, asked=None):
    """Selects uniformly; remembers what it is told."""

    def choose(state, candidates):
        if asked is not None:
            asked.append((candidates, candidates.price(candidates.clients)))
        return fh.selection.uniform(candidates), state + 1

    def observe(state, seen):
        told.append(seen)
        return state

    return Selector(lambda n: np.asarray(0), choose, observe)


def one_fails(task):
    """The change of a client's parameters; that of client 1 is not finite."""
    return jnp.where(task.client == 1, jnp.float32(jnp.nan), jnp.float32(0.5))


PACES = [
    barrier(),
    deadline("drop"),
    deadline("partial"),
    arrivals(2),
    arrivals(2, refill=True),
    window(0.002),
]


@pytest.mark.parametrize(
    ("pace", "rate"),
    [*((pace, 0.0) for pace in PACES), (PACES[0], 0.4), (PACES[4], 0.4)],
    ids=lambda value: value.name + " refilled" * value.refills if hasattr(value, "name") else value,
)
def test_selections_are_told_what_the_records_say(pace, rate):
    told = []
    problem = replace(PROBLEM, fleet=replace(PROBLEM.fleet, failure_rate=rate))
    method = nudge(problem, value=one_fails, clients_per_round=4, epochs=3)
    plan = method.plan

    def in_time(state, variables, situation):
        tasks, state = plan(state, variables, situation)
        middle = float(np.median(tasks.timing.total_s))
        return tasks._replace(deadline_s=middle), state

    planned = in_time if pace.name.startswith("deadline") else plan
    method = method._replace(pace=pace, plan=planned, select=recording(told))
    result = fh.simulate(method, problem, rounds=ROUNDS)
    assert result.faults == []
    assert [seen.round for seen in told] == list(range(ROUNDS))
    ends_s = [row["virtual_s"] for row in result.record.metrics]
    statuses = set()
    for seen in told:
        rows = [row for row in result.record.clients if row["step"] == seen.round + 1]
        assert seen.clients.tolist() == [row["client"] for row in rows]
        assert seen.status.tolist() == [row["status"] for row in rows]
        assert seen.samples.tolist() == [row["samples"] for row in rows]
        assert seen.sizes.tolist() == PROBLEM.data.sizes[seen.clients].tolist()
        loss = [row["loss"] if row["status"] in ("merged", "partial") else np.nan for row in rows]
        np.testing.assert_array_equal(seen.loss, np.asarray(loss, np.float64))
        for row, lasted_s in zip(rows, seen.duration_s, strict=True):
            end_s = ends_s[seen.round + 1] if row["status"] == "dropped" else row["arrived_s"]
            assert lasted_s == pytest.approx(end_s - row["dispatched_s"])
        statuses |= set(seen.status.tolist())
    assert "nonfinite" in statuses
    assert ("failed" in statuses) == (rate > 0)
    assert ("dropped" in statuses) == (pace.name == "deadline(drop)")
    assert ("partial" in statuses) == (pace.name == "deadline(partial)")


def test_candidates_know_the_past_and_the_prices_of_the_future():
    told, asked = [], []
    method = nudge(PROBLEM, clients_per_round=3)._replace(select=recording(told, asked))
    result = fh.simulate(method, PROBLEM, rounds=3)
    known = nothing_known(6)
    for seen in told:
        note(known, seen)
    last = asked[-1][0]  # the live table, which has seen all rounds
    chex.assert_trees_all_equal(last.known, known)
    assert last.samples.tolist() == [3, 4, 5, 6, 7, 8]
    # Without jitter, a task costs what it was planned to cost.
    for candidates, timing in asked:
        assert candidates.clients.tolist() == list(range(6))
        for row in result.record.clients:
            if row["step"] == candidates.round + 1:
                lasted_s = row["arrived_s"] - row["dispatched_s"]
                assert timing.total_s[row["client"]] == pytest.approx(lasted_s)


def test_how_soon_a_task_failed_is_not_how_long_it_takes():
    known = nothing_known(3)
    seen = Seen(
        round=4,
        clients=np.array([0, 1, 2, 1]),
        status=np.array(["merged", "failed", "dropped", "failed"]),
        loss=np.array([0.5, np.nan, np.nan, np.nan]),
        square_loss=np.array([0.3, np.nan, np.nan, np.nan]),
        samples=np.array([3, 0, 0, 0]),
        sizes=np.array([3, 4, 5, 4]),
        duration_s=np.array([2.0, 0.1, 7.0, 0.2]),
    )
    note(known, seen)
    np.testing.assert_array_equal(known.duration_s, [2.0, np.nan, 7.0])
    assert known.seen.tolist() == [4, -1, -1]
    assert known.failures.tolist() == [0, 2, 1]
    assert seen.arrived.tolist() == [True, False, False, False]


def test_asking_for_prices_changes_nothing():
    problem = fh.Problem(PROBLEM.model, PROBLEM.data, fleet(6, compute_jitter=0.3))
    method = nudge(problem, clients_per_round=3)
    runs = [
        fh.simulate(method._replace(select=recording([], asked)), problem, rounds=3)
        for asked in (None, [])
    ]
    assert runs[0].record.clients == runs[1].record.clients


@pytest.mark.parametrize("chosen", [0, 3])
def test_a_selector_selects_one_to_wanted_clients(chosen):
    select = Selector(
        lambda n: (), lambda state, c: (c.clients[:chosen], state), lambda state, seen: state
    )
    method = nudge(PROBLEM, clients_per_round=2)._replace(select=select)
    with pytest.raises(fh.InputError, match=r"select of windows.*must be 1 to 2 different"):
        fh.simulate(method, PROBLEM, rounds=1)


def test_a_selector_may_want_fewer_clients():
    select = Selector(
        lambda n: (), lambda state, c: (c.clients[-1:], state), lambda state, seen: state
    )
    method = nudge(PROBLEM, clients_per_round=2)._replace(select=select)
    result = fh.simulate(method, PROBLEM, rounds=2)
    assert [row["client"] for row in result.record.clients] == [5, 5]


def test_scores_are_those_of_the_evaluation_of_clients():
    scores, problem = [], digits_problem()

    def choose(state, candidates):
        scores.append(candidates.known.score.copy())
        return fh.selection.uniform(candidates), state

    select = Selector(lambda n: (), choose, lambda state, seen: state, scored=True)
    method = fh.algorithms.fedavg(problem, learning_rate=0.1)._replace(select=select)
    result = fh.simulate(method, problem, rounds=2, client_eval="always")
    for step, found in enumerate(scores):
        rows = [row for row in result.record.client_evaluations if row["step"] == step]
        assert found.tolist() == [row["accuracy"] for row in rows]


# ---- methods -------------------------------------------------------------------------------------

PACES = ("fedavg", "drop_stragglers", "fedbuff")  # a barrier, a deadline, arrivals with refills


def options_of(name, **more):
    make_problem, options = SETTINGS.get(name, DEFAULT)
    return make_problem(), {**options, "clients_per_round": 5, **more}


def slow_unless(quick, names):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", slow_unless(PACES, sorted(ALGORITHMS)))
def test_every_method_runs_with_every_kind_of_selection(name):
    problem, options = options_of(name)
    plain = fh.algorithms.build(name, problem, **options)
    if isinstance(plain.select, Selector) and plain.select.replaceable is not True:
        with pytest.raises(fh.InputError, match=f"of {name}: cannot be composed"):
            fh.compose(plain, fh.select.oort())
        return
    shared = {"engine": make_engine(plain, problem), "evaluator": Evaluator(problem)}
    cohorts = {}
    for select in (None, "uniform", "weighted", "oort"):
        transformations = [] if select is None else [named(select, SELECTIONS, "select")]
        method = fh.compose(plain, *transformations)
        result = fh.simulate(method, problem, rounds=2, **shared)
        assert result.faults == []
        assert result.record.metrics[-1]["merged"] > 0
        cohorts[select] = [row["client"] for row in result.record.clients]
    assert cohorts["uniform"] == cohorts[None]
    # Plans are functions: one that is made for its prices only changes nothing.
    told = []
    for asked in (None, []):
        method = plain._replace(select=recording([], asked))
        told.append(fh.simulate(method, problem, rounds=2, **shared).record.clients)
    assert told[0] == told[1]


@pytest.mark.parametrize("name", ["fedavg", "fedbuff"])
def test_a_run_with_oort_resumes_bit_for_bit(name, tmp_path):
    problem, options = options_of(name, clients_per_round=4)
    problem = fh.Problem(problem.model, problem.data, fleet(8, compute_jitter=0.3))
    method = fh.algorithms.build(name, problem, select="oort", **options)
    shared = {"engine": make_engine(method, problem), "evaluator": Evaluator(problem)}
    run = {"rounds": 6, "checkpoint_every": 2, "seed": 1, **shared}
    whole = fh.simulate(method, problem, workdir=tmp_path / "whole", **run)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "00000006")
    (tmp_path / "cut" / "summary.json").unlink()
    resumed = fh.simulate(method, problem, workdir=tmp_path / "cut", **run)
    chex.assert_trees_all_equal(resumed.variables, whole.variables)
    rows = [(tmp_path / place / "clients.jsonl").read_bytes() for place in ("cut", "whole")]
    assert rows[0] == rows[1]
    # The selection of a finished run is that of its last checkpoint.
    saved = []
    for place in ("cut", "whole"):
        with fh.Simulation(method, problem, workdir=tmp_path / place, **run) as finished:
            saved.append(finished._server.selection.saved)
    chex.assert_trees_all_equal(*saved)
    assert np.sum(~np.isnan(saved[0][0][0].loss)) > 4
    with pytest.raises(fh.InputError, match=r"options.select"):
        fh.simulate(fh.select.uniform()(method), problem, workdir=tmp_path / "cut", **run)


def test_debug_gives_the_same_cohorts_and_answer():
    method = fh.select.oort()(nudge(PROBLEM, clients_per_round=2))
    debug = fh.simulate(method, PROBLEM, rounds=3, execution="debug")
    fast = fh.simulate(method, PROBLEM, rounds=3)
    chosen = [[row["client"] for row in run.record.clients] for run in (debug, fast)]
    assert chosen[0] == chosen[1]
    chex.assert_trees_all_close(debug.variables, fast.variables, rtol=1e-5)


def test_every_method_takes_a_selection():
    assert all("select" in option_names(name) for name in ALGORITHMS)


def test_the_methods_of_a_comparison_share_their_selection():
    shared = {"name": "fedavg", "learning_rate": 0.1, "select": {"name": "oort", "cut": 0.7}}
    own = {"a": {}, "b": {"name": "fedpmt"}, "c": {"name": "fedpmt", "select": "weighted"}}
    found = methods({"algorithm": shared, "compare": {"methods": own}})
    assert [found[label]["select"] for label in "abc"] == [shared["select"]] * 2 + ["weighted"]
