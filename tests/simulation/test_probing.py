"""Selections that ask clients for the loss of the current model: answers, prices, records."""

import jax
import numpy as np
import optax
import pytest
from problems import digits_problem, fleet

import fedjax_het as fh
from fedjax_het.contract.selection import Selector
from fedjax_het.engine import probing
from fedjax_het.engine.resources import Resources

SGD = {"learning_rate": 0.1, "batch_size": 4}
PRICES = {
    "joules_per_flop": 1e-6,
    "joules_per_byte_up": 1e-3,
    "joules_per_byte_down": 2e-3,
    "idle_watts": 0.5,
}


def priced_problem():
    plain = digits_problem()
    return fh.Problem(plain.model, plain.data, fleet(8, **PRICES))


def asking(problem, **options):
    method = fh.algorithms.fedavg(problem, **SGD, clients_per_round=2)
    return fh.select.power_of_choice(d=5, fresh=True, **options)(method)


def losses_by_hand(problem, variables, clients):
    data = problem.data

    def loss(client):
        ids = data.client_samples(client)
        logits, _ = problem.model.apply(variables, data.x[ids])
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.y[ids]).mean()

    return np.asarray([loss(client) for client in clients])


@pytest.mark.parametrize(("width", "devices"), [(3, 1), (256, 2)])
def test_losses_are_means_over_all_samples(width, devices, monkeypatch):
    monkeypatch.setattr(probing, "_PASS", width)
    problem = digits_problem()
    variables = problem.model.init(jax.random.key(3))
    probe = probing.LossProbe(Resources(problem, devices=devices))
    clients = np.asarray([6, 0, 3, 7, 1])
    found = probe(variables, clients)
    np.testing.assert_allclose(found, losses_by_hand(problem, variables, clients), rtol=1e-5)
    np.testing.assert_array_equal(probe(variables, clients[2:3]), found[2:3])


def test_the_cohort_begins_when_the_slowest_has_answered():
    problem = priced_problem()
    result = fh.simulate(asking(problem), problem, rounds=3, seed=1)
    assert result.faults == []
    cost, sizes, devices = problem.cost, problem.data.sizes, problem.fleet
    begins_s = 0.0
    for row in result.record.metrics[1:]:
        own = [task for task in result.record.clients if task["step"] == row["step"]]
        probes = [task for task in own if task["status"] == "probed"]
        tasks = [task for task in own if task["status"] == "merged"]
        assert len(own) == len(probes) + len(tasks)
        assert (len(probes), len(tasks), row["clients"], row["merged"]) == (5, 2, 2, 2)
        kept = sorted(probes, key=lambda task: -task["loss"])[:2]
        assert {task["client"] for task in kept} == {task["client"] for task in tasks}
        for task in probes:
            i = task["client"]
            flops = cost.forward_pass_flops() * sizes[i]
            assert task["dispatched_s"] == begins_s
            assert task["flops"] == flops
            assert (task["bytes_up"], task["bytes_down"]) == (4, cost.download_bytes())
            assert task["compute_s"] == pytest.approx(flops / devices.flops_per_s[i])
            assert task["upload_s"] == pytest.approx(4 / 1e5)
            spent = 1e-6 * flops + 1e-3 * 4 + 2e-3 * cost.download_bytes()
            assert task["joules"] == pytest.approx(spent)
        answered_s = max(task["arrived_s"] for task in probes)
        assert {task["dispatched_s"] for task in tasks} == {answered_s}
        for name in ("bytes_up", "bytes_down", "joules"):
            assert row[name] == pytest.approx(sum(task[name] for task in own))
        begins_s = row["virtual_s"]
    summary, rows = result.record.summary, result.record.clients
    assert summary["tasks"] == 6
    assert summary["flops"] == pytest.approx(sum(task["flops"] for task in rows))
    assert summary["joules"] == pytest.approx(sum(task["joules"] for task in rows))
    assert sum(summary["joules_by_group"]) == pytest.approx(summary["joules"])


def test_answers_are_those_of_the_current_model():
    problem = digits_problem()
    method, start = asking(problem), None
    for rounds in (1, 2):
        result = fh.simulate(method, problem, rounds=rounds, seed=2)
        if start is not None:
            probes = [t for t in result.record.clients if (t["step"], t["status"]) == (2, "probed")]
            found = [task["loss"] for task in probes]
            clients = [task["client"] for task in probes]
            np.testing.assert_allclose(found, losses_by_hand(problem, start, clients), rtol=1e-5)
        start = result.variables


@pytest.mark.parametrize(
    "pace", [fh.pace.barrier(), fh.pace.deadline(60.0), fh.pace.first(1, of=2)]
)
@pytest.mark.parametrize(
    ("how", "status", "rests_s"),
    [("finish", "merged", 0.0), ("lose", "failed", 0.0), ("pause", "merged", 50.0)],
)
def test_devices_may_go_off_while_others_answer(pace, how, status, rests_s):
    """All devices are on for 45 ms, in which not all answers arrive, and from 50 s on."""
    plain = digits_problem()
    when = fh.fleet.from_intervals([np.array([[0.0, 0.045], [50.0, 1e3]])] * 8, [2e3] * 8)
    problem = fh.Problem(plain.model, plain.data, fleet(8, availability=when, on_interrupt=how))
    result = fh.simulate(fh.compose(asking(problem), pace), problem, rounds=1, seed=1)
    assert result.faults == []
    probes = [task for task in result.record.clients if task["status"] == "probed"]
    tasks = [task for task in result.record.clients if task["status"] not in ("probed", "dropped")]
    answered_s = max(task["arrived_s"] for task in probes)
    assert 0.045 < answered_s < 0.1
    for task in tasks:
        assert (task["dispatched_s"], task["status"]) == (answered_s, status)
        lasts_s = task["download_s"] + task["compute_s"] + task["upload_s"]
        if status == "failed":
            assert lasts_s == task["bytes_down"] == task["flops"] == 0
            assert task["arrived_s"] == np.nextafter(answered_s, 1.0)
        else:
            ends_s = max(rests_s, answered_s) + lasts_s
            assert task["arrived_s"] == pytest.approx(ends_s, rel=1e-12)


def test_clients_that_cannot_answer_are_not_asked():
    """Clients 0 to 2 leave at 10 ms, and 3 and 4 have charge for a part of the question only."""
    plain = priced_problem()
    cost, sizes = plain.cost, plain.data.sizes
    question = 1e-6 * cost.forward_pass_flops() * sizes
    question = question + 1e-3 * 4 + 2e-3 * cost.download_bytes()
    leaves, charge = np.full(8, np.inf), np.full(8, np.inf)
    leaves[:3], charge[3:5] = 0.01, 0.9 * question[3:5]
    charge[5] = 1.5 * question[5]
    limits = {"leaves_s": leaves, "battery_joules": charge}
    problem = fh.Problem(plain.model, plain.data, fleet(8, **PRICES, **limits))
    heard = []

    def choose(state, candidates):
        heard.append(candidates.losses(candidates.clients))
        return candidates.clients[-3:], state

    method = fh.algorithms.fedavg(problem, **SGD, clients_per_round=3)
    asks = Selector(lambda n: (), choose, lambda state, seen: state, probes=True)
    result = fh.simulate(method._replace(select=asks), problem, rounds=1)
    assert result.faults == []
    probes = [row for row in result.record.clients if row["status"] == "probed"]
    assert [row["client"] for row in probes] == [5, 6, 7]
    assert np.isnan(heard[0]).tolist() == [True] * 5 + [False] * 3
    assert [row["loss"] for row in probes] == heard[0][5:].tolist()
    own = [row["joules"] for row in result.record.clients if row["client"] == 5]
    assert own[0] == pytest.approx(question[5])
    assert sum(own) == pytest.approx(charge[5], rel=1e-12)


@pytest.mark.parametrize("limit", [{"leaves_s": 0.01}, {"battery_joules": 0.5}])
def test_nobody_answers(limit):
    """The cohort begins at once; no client spends more than it has."""
    plain = priced_problem()
    problem = fh.Problem(plain.model, plain.data, fleet(8, **PRICES, **limit))
    result = fh.simulate(asking(problem), problem, rounds=9, seed=1)
    assert result.faults == []
    rows = result.record.clients
    assert {row["status"] for row in rows} == {"failed"}
    assert [row["dispatched_s"] for row in rows[:2]] == [0.0, 0.0]
    if "battery_joules" in limit:
        assert result.record.summary["ended"] == "no clients"
        assert sorted(row["client"] for row in rows) == list(range(8))
        np.testing.assert_allclose([row["joules"] for row in rows], 0.5, rtol=1e-12)
    else:
        assert max(row["arrived_s"] for row in rows) == 0.01


def test_who_cannot_answer_comes_last():
    """Of eight clients, all of which are compared, six leave before they could answer."""
    plain = digits_problem()
    leaves = np.where(np.isin(np.arange(8), [2, 5]), np.inf, 0.01)
    problem = fh.Problem(plain.model, plain.data, fleet(8, leaves_s=leaves))
    method = fh.algorithms.fedavg(problem, **SGD, clients_per_round=2)
    method = fh.select.power_of_choice(d=8, fresh=True)(method)
    rows = fh.simulate(method, problem, rounds=1).record.clients
    assert [(row["client"], row["status"]) for row in rows[2:]] == [(2, "merged"), (5, "merged")]


def test_records_with_probes_are_read_back_and_drawn(tmp_path):
    problem = priced_problem()
    result = fh.simulate(asking(problem), problem, rounds=2, workdir=tmp_path / "run")
    again = fh.report.RunRecord.load(tmp_path / "run")
    assert again.clients == result.record.clients
    tasks = fh.report.tasks.tasks_of(again)
    assert len(tasks.client) == 4
    fh.report.energy_plots.energy_by_group({"asking": [again]})


def test_asking_needs_rounds_and_is_done_once():
    problem = digits_problem()
    buffered = fh.algorithms.fedbuff(problem, **SGD, buffer_size=2)
    with pytest.raises(fh.InputError, match=r"select of fedbuff: asks clients.*overlap"):
        fh.simulate(fh.select.power_of_choice(d=8, fresh=True)(buffered), problem, rounds=1)

    def choose(state, candidates):
        candidates.losses(candidates.clients)
        candidates.losses(candidates.clients)
        return candidates.clients[:2], state

    twice = Selector(lambda n: (), choose, lambda state, seen: state, probes=True)
    method = fh.algorithms.fedavg(problem, **SGD, clients_per_round=2)._replace(select=twice)
    with pytest.raises(fh.InputError, match=r"asks for losses again"):
        fh.simulate(method, problem, rounds=1)


def test_other_selections_cannot_ask():
    def choose(state, candidates):
        assert candidates.losses is None
        return candidates.clients[:2], state

    silent = Selector(lambda n: (), choose, lambda state, seen: state)
    problem = digits_problem()
    method = fh.algorithms.fedavg(problem, **SGD, clients_per_round=2)._replace(select=silent)
    result = fh.simulate(method, problem, rounds=1)
    assert {row["status"] for row in result.record.clients} == {"merged"}
