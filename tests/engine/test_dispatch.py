"""Clients at work across merges: deferred training is exact, and a kill in mid-flight is too."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    NOW,
    assert_close,
    digits_problem,
    fleet,
    nudge,
    scalar_problem,
    situation,
    values_of,
)

from fedjax_het.algorithms import build
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.clock import arrivals, window
from fedjax_het.engine import dispatch
from fedjax_het.engine import slots as slots_of_results
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet.availability import from_intervals
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4}
METHODS = {
    "fedasync": ({"rho": 0.0}, 14),
    "fedbuff": ({"buffer_size": 3, "clients_per_round": 4}, 7),
    "fedfix": ({"interval_s": 0.05}, 8),
}


class Setting:
    """A method on devices whose speeds vary from task to task, and so many side by side."""

    def __init__(self, name, chunk):
        base = digits_problem(hidden=(8,))
        self.problem = Problem(base.model, base.data, fleet(8, compute_jitter=0.4))
        options, self.rounds = METHODS[name]
        self.name, self.options, self.chunk = name, options, chunk
        self.algorithm = build(name, self.problem, **TRAINING, **options)
        self.engine = make_engine(self.algorithm, self.problem, chunk=chunk)
        self.evaluator = Evaluator(self.problem)

    def run(self, **options):
        engines = {"engine": self.engine, "evaluator": self.evaluator, "chunk": self.chunk}
        return simulate(
            self.algorithm, self.problem, **{"rounds": self.rounds, **engines, **options}
        )

    @functools.cached_property
    def base(self):
        return self.run()


@functools.cache
def made(name, chunk):
    return Setting(name, chunk)


@pytest.fixture(params=sorted(METHODS))
def slotted(request):
    """Where results wait in slots."""
    return made(request.param, 4)


@pytest.fixture(params=[(name, chunk) for name in sorted(METHODS) for chunk in (1, 4)])
def setting(request):
    """The same, and where clients are trained one by one, at the merge that needs them."""
    return made(*request.param)


def coefficients(name, options, problem, tasks):
    """How much of each update (or, for FedAsync, of each model) a merge takes, by the papers."""
    late = (np.asarray([task["staleness"] for task in tasks]) + 1.0) ** -0.5
    if name == "fedasync":
        return 0.6 * late
    if name == "fedbuff":
        return late / options["buffer_size"]
    interval_s = options["interval_s"]
    sizes = problem.data.sizes
    windows = [
        round((np.ceil(t["arrived_s"] / interval_s) * interval_s - t["dispatched_s"]) / interval_s)
        for t in tasks
    ]
    shares = np.asarray([sizes[task["client"]] for task in tasks]) / np.sum(sizes)
    return shares * windows


def test_deferred_training_equals_training_at_dispatch(setting):
    """Every task of the log is trained alone, from its own version, and merged by the formula."""
    alone = make_engine(setting.algorithm._replace(merge=masked_mean()), setting.problem, chunk=1)
    init_key, _, root, _ = jax.random.split(jax.random.key(0), 4)
    versions = [setting.problem.model.init(init_key)]
    plain = build("fedavg", setting.problem, **TRAINING)

    for step in range(1, setting.rounds + 1):
        tasks = [row for row in setting.base.record.clients if row["step"] == step]
        assert tasks
        share = coefficients(setting.name, setting.options, setting.problem, tasks)
        now = new = versions[-1]
        for task, s in zip(tasks, share, strict=True):
            start, version = versions[task["version"]], task["version"]
            where = situation(setting.problem, clients=[task["client"]])
            plan, _ = plain.plan((), start, where)
            acc, out = alone.train((), start, plan, jax.random.fold_in(root, version))
            _, end, _ = alone.close(acc, (), start, None, NOW)
            assert task["loss"] == pytest.approx(float(out.loss[0]), rel=1e-4)
            since = now if setting.name == "fedasync" else start
            new = jax.tree.map(lambda w, e, b, s=s: w + s * (e - b), new, end, since)
        versions.append(new)
    assert_close(setting.base.variables, versions[-1], rtol=2e-4, atol=2e-5)
    assert setting.base.faults == []
    assert max(row["staleness"] for row in setting.base.record.clients) >= 1


def test_a_kill_in_mid_flight_changes_no_bit(setting, tmp_path):
    whole = setting.run(workdir=tmp_path / "whole", checkpoint_every=2)
    chex.assert_trees_all_equal(whole.variables, setting.base.variables)
    cut = setting.rounds // 2
    first = setting.run(workdir=tmp_path / "cut", rounds=cut, checkpoint_every=2)
    assert first.record.metrics[-1]["in_flight"] > 0 or setting.name == "fedfix"
    again = setting.run(workdir=tmp_path / "cut", checkpoint_every=2)
    chex.assert_trees_all_equal(again.variables, whole.variables)
    rows = [(tmp_path / place / "clients.jsonl").read_bytes() for place in ("cut", "whole")]
    assert rows[0] == rows[1]


def test_a_merge_of_one_client_is_the_same_with_and_without_an_accumulator():
    setting = made("fedasync", 1)
    seen = []

    def observe(state, variables, report):
        seen.append(report.loss)
        return state, variables, {}

    curious = setting.algorithm._replace(observe=observe)
    engine = make_engine(curious, setting.problem, chunk=1)
    result = simulate(
        curious,
        setting.problem,
        rounds=setting.rounds,
        engine=engine,
        chunk=1,
        evaluator=setting.evaluator,
    )
    assert len(seen) == setting.rounds
    assert_close(result.variables, setting.base.variables)
    mixed = [
        [row["info"]["mixed"] for row in run.record.metrics[1:]] for run in (result, setting.base)
    ]
    np.testing.assert_allclose(*mixed, rtol=1e-6)
    assert setting.engine.programs == engine.programs == 1


@pytest.mark.parametrize("slots", [1, 2])
def test_fewer_slots_than_clients_change_nothing(slotted, slots, monkeypatch):
    """Results that give way are trained again; here a model takes 5 kB or so."""
    params = sum(leaf.nbytes for leaf in jax.tree.leaves(slotted.base.variables))
    monkeypatch.setitem(slots_of_results.RESULT_BYTES, "cpu", params * (slots + 0.5))
    tight = simulate(
        slotted.algorithm,
        slotted.problem,
        rounds=slotted.rounds,
        evaluator=slotted.evaluator,
        chunk=4,
    )
    assert_close(tight.variables, slotted.base.variables)
    virtual = lambda result: [row["virtual_s"] for row in result.record.metrics]
    assert virtual(tight) == virtual(slotted.base)


def test_as_many_are_at_work_as_the_method_wants(setting):
    """A client leaves once per version, and is back before it leaves again (`verify`)."""
    tasks = setting.base.record.clients
    assert len({(t["client"], t["version"]) for t in tasks}) == len(tasks)
    if setting.name != "fedbuff":
        return
    for step in setting.base.record.metrics[1:-1]:
        now_s = step["virtual_s"]
        working = [t for t in tasks if t["dispatched_s"] <= now_s < t["arrived_s"]]
        if max(t["dispatched_s"] for t in tasks) > now_s:  # else some are not in the log yet
            assert len(working) <= 4


def test_nothing_waits_where_clients_are_trained_one_by_one(tmp_path):
    for chunk in (1, 4):
        place = tmp_path / str(chunk)
        made("fedbuff", chunk).run(workdir=place, rounds=3, checkpoint_every=3)
        meta = json.loads((place / "checkpoints" / "00000003" / "meta.json").read_text())
        assert (meta["flight"]["waiting"] > 0) == (chunk == 4)
        assert meta["flight"]["tasks"] > 0


def test_versions_are_kept_only_while_somebody_needs_them(monkeypatch):
    problem = scalar_problem((3, 4, 5, 6))
    held = []
    merge = dispatch.DispatchTable.merge

    def watched(self, *arguments):
        merged = merge(self, *arguments)
        wanted = set() if self.flight is None else set(self.flight.version.tolist())
        assert set(self._origins) >= wanted
        assert len(self._origins) <= len(wanted) + 1  # and the newest
        held.append(len(self._origins))
        return merged

    monkeypatch.setattr(dispatch.DispatchTable, "merge", watched)
    algorithm = nudge(problem)._replace(pace=arrivals(1))
    result = simulate(algorithm, problem, rounds=20)
    assert result.faults == []
    assert max(held) <= 5
    assert values_of(result.variables)[-1] == 20.0


def test_windows_without_arrivals_are_passed_over():
    problem = scalar_problem((3, 4, 5, 6))
    duration = simulate(nudge(problem), problem, rounds=1).record.clients[0]["arrived_s"]
    algorithm = nudge(problem)._replace(pace=window(duration / 7.5))
    result = simulate(algorithm, problem, rounds=3)
    ticks = np.asarray([row["virtual_s"] for row in result.record.metrics]) / (duration / 7.5)
    np.testing.assert_allclose(ticks, np.round(ticks), atol=1e-6)
    assert result.faults == []
    assert all(row["merged"] >= 1 for row in result.record.metrics[1:])


def test_clients_that_are_off_are_not_sent_out():
    base = scalar_problem((3, 4, 5, 6))
    on = from_intervals(
        [np.asarray(i, float) for i in ([[0, 15]], [[10, 25]], [[60, 80]], [[70, 90]])],
        [100.0] * 4,
    )
    setting = Problem(base.model, base.data, fleet(4, availability=on))
    result = simulate(nudge(setting)._replace(pace=arrivals(1)), setting, rounds=40)
    assert result.faults == []
    clients = {row["client"] for row in result.record.clients}
    for row in result.record.clients:
        start_s = row["dispatched_s"]
        assert setting.fleet.next_available(np.asarray([row["client"]]), start_s)[0] == start_s
    assert clients


def test_a_client_that_is_not_finite_is_left_out_and_goes_on():

    problem = scalar_problem((3, 4, 5, 6))
    bad = nudge(problem, value=lambda task: jnp.where(task.client == 2, jnp.nan, 1.0))
    result = simulate(bad._replace(pace=arrivals(2)), problem, rounds=6)
    assert result.faults == []
    assert all(np.isfinite(values_of(result.variables)))
    named = [row["nonfinite"] for row in result.record.metrics[1:]]
    assert [2] in named
    assert {row["client"] for row in result.record.clients if row["status"] == "nonfinite"} == {2}
