"""Joules of tasks, steps, device groups and runs, by hand; and that a run without has none."""

import copy
import json

import numpy as np
import pytest
from problems import SIZES, digits_problem, fleet, nudge, situation

from fedjax_het import experiment
from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.contract.clock import arrivals, window
from fedjax_het.fleet import build as build_fleet
from fedjax_het.problem import Problem
from fedjax_het.report.audit import verify
from fedjax_het.report.records import RunRecord, time_to
from fedjax_het.simulation.simulate import simulate

N = len(SIZES)
PER_FLOP, PER_UP, PER_DOWN, IDLE = 2e-7 * np.arange(1, N + 1), 3e-6, 1e-6, 0.25
TRAINING = {"learning_rate": 0.1, "batch_size": 4, "local_steps": 1}
MODEL_BYTES = 4 * (64 * 12 + 12 + 12 * 8 + 8 + 8 * 10 + 10)


def priced(**columns):
    """The digits problem on devices with prices, in three groups."""
    base = digits_problem()
    prices = {
        "joules_per_flop": PER_FLOP,
        "joules_per_byte_up": PER_UP,
        "joules_per_byte_down": PER_DOWN,
        "idle_watts": IDLE,
        "groups": np.arange(N) % 3,
    }
    return Problem(base.model, base.data, fleet(N, **{**prices, **columns}))


def column(rows, name):
    return np.asarray([row[name] for row in rows])


@pytest.mark.parametrize("method", ["fedavg", "fedpmt"])
def test_two_methods_by_hand(method):
    """A round of one step: three speeds, and with FedPMT three depths, of the 64-12-8-10 network.

    A layer of m inputs and n outputs costs 2 m n FLOPs per sample for each of the three passes; the
    first trained block needs no gradient of its input. The server waits for the slowest.
    """
    problem = priced()
    options = {"rounds": 1, "seed": 0, "targets": (0.001, 1.0)}
    result = simulate(build(method, problem, **TRAINING), problem, **options)
    layers = [2 * 64 * 12, 2 * 12 * 8, 2 * 8 * 10]
    params = [64 * 12 + 12, 12 * 8 + 8, 8 * 10 + 10]
    joules, ends, starts_waiting = {}, {}, {}
    for client, size in enumerate(SIZES):
        first = 0 if method == "fedavg" else 2 - client % 3
        flops = min(size, 4) * (sum(layers) + sum(layers[first:]) + sum(layers[first + 1 :]))
        sent = 4 * sum(params[first:])
        speed = (0.5e6, 0.8e6, 1e6)[client % 3]
        ends[client] = MODEL_BYTES / 2e5 + flops / speed + sent / 1e5
        joules[client] = flops * PER_FLOP[client] + sent * PER_UP + MODEL_BYTES * PER_DOWN
        starts_waiting[client] = ends[client]
    for client in joules:
        joules[client] += IDLE * (max(ends.values()) - starts_waiting[client])
    record = result.record
    assert {r["client"]: r["joules"] for r in record.clients} == pytest.approx(joules, rel=1e-12)
    total = sum(joules.values())
    assert record.metrics[1]["joules"] == pytest.approx(total, rel=1e-12)
    assert record.summary["joules"] == pytest.approx(total, rel=1e-12)
    by_group = [sum(joules[c] for c in range(g, N, 3)) for g in range(3)]
    assert record.summary["joules_by_group"] == pytest.approx(by_group, rel=1e-12)
    easy, hard = record.summary["targets"]
    assert easy["joules"] == time_to(record, 0.001, "joules")
    assert hard["joules"] is None
    costs, values = record.evaluations("joules")
    assert costs.tolist() == pytest.approx([0.0, total])
    assert len(values) == 2
    assert result.faults == []


def spent(row, *, flops=None, sent=True, idle_s=0.0):
    """Joules of a task by its own row."""
    work = (row["flops"] if flops is None else flops) * PER_FLOP[row["client"]]
    up = row["bytes_up"] * PER_UP if sent else 0.0
    return work + up + row["bytes_down"] * PER_DOWN + IDLE * idle_s


def test_a_dropped_task_spent_all_but_its_upload():
    problem = priced()
    algorithm = build("drop_stragglers", problem, deadline_s=0.088, **TRAINING)
    record = simulate(algorithm, problem, rounds=2).record
    lost = [row for row in record.clients if row["status"] == "dropped"]
    assert 0 < len(lost) < len(record.clients)
    merged_at = {row["step"]: row["virtual_s"] for row in record.metrics}
    for row in record.clients:
        kept = row["status"] == "merged"
        idle_s = merged_at[row["step"]] - row["arrived_s"] if kept else 0.0
        assert row["joules"] == pytest.approx(spent(row, sent=kept, idle_s=idle_s), rel=1e-9)
    wasted = sum(row["joules"] for row in lost)
    kept = sum(row["joules"] for row in record.clients if row["status"] == "merged")
    assert record.summary["joules"] == pytest.approx(wasted + kept)


def test_a_partial_task_spent_the_steps_that_it_did():
    problem = priced()
    options = {**TRAINING, "local_steps": 3}
    algorithm = build("fedprox", problem, mu=0.0, deadline_s=0.11, **options)
    record = simulate(algorithm, problem, rounds=1).record
    assert {"merged", "partial"} <= {row["status"] for row in record.clients}
    plan, _ = algorithm.plan((), None, situation(problem))
    end_s = record.metrics[1]["virtual_s"]
    for row in record.clients:
        if row["status"] != "partial":
            continue
        idle_s = end_s - row["arrived_s"]
        flops = plan.timing.flops[row["client"]] * row["steps"] / 3
        expected = spent(row, flops=flops, idle_s=idle_s)
        assert row["joules"] == pytest.approx(expected, rel=1e-9)
        assert idle_s >= 0


@pytest.mark.parametrize(
    ("pace", "held"),
    [(arrivals(1), True), (arrivals(3), True), (window(0.1), True), (arrivals(3, refill=True), 0)],
    ids=["fedasync", "arrivals", "window", "fedbuff"],
)
def test_overlapping_tasks_pay_for_waiting_if_the_device_is_held(pace, held):
    problem = priced()
    algorithm = nudge(problem, clients_per_round=5)._replace(pace=pace)
    result = simulate(algorithm, problem, rounds=8, execution="masked")
    record = result.record
    merged_at = {row["step"]: row["virtual_s"] for row in record.metrics}
    waited = 0.0
    for row in record.clients:
        idle_s = max(merged_at[row["step"]] - row["arrived_s"], 0.0)
        waited += idle_s
        assert row["joules"] == pytest.approx(spent(row, idle_s=idle_s * held), rel=1e-9)
    assert (waited > 1e-3) == (pace.name != "arrivals(1)")
    assert result.faults == []


def test_a_redrawn_device_pays_the_price_of_the_day():
    base = digits_problem()
    devices = build_fleet(
        "dtfl", N, base_flops_per_s=1e6, redraw_every=1, redraw_share=1.0, energy="phone_wifi"
    )
    problem = Problem(base.model, base.data, devices)
    record = simulate(nudge(problem), problem, rounds=4, execution="masked").record
    merged_at = {row["step"]: row["virtual_s"] for row in record.metrics}
    changed = 0
    for row in record.clients:
        now = devices.at(row["version"])
        i = row["client"]
        changed += now.joules_per_flop[i] != devices.joules_per_flop[i]
        expected = (
            4.9 * row["compute_s"]
            + row["bytes_up"] * now.joules_per_byte_up[i]
            + row["bytes_down"] * now.joules_per_byte_down[i]
            + 0.0114 * max(merged_at[row["step"]] - row["arrived_s"], 0.0)
        )
        assert row["joules"] == pytest.approx(expected, rel=1e-9)
    assert changed


def test_a_resumed_run_has_the_same_energy(tmp_path):
    problem = priced()
    algorithm = nudge(problem, clients_per_round=5)._replace(pace=arrivals(2))
    options = {"execution": "masked", "checkpoint_every": 2, "seed": 1}
    whole = simulate(algorithm, problem, rounds=9, **options).record
    simulate(algorithm, problem, rounds=5, workdir=tmp_path, **options)
    again = simulate(algorithm, problem, rounds=9, workdir=tmp_path, **options).record
    for name in ("joules", "joules_by_group"):
        assert again.summary[name] == whole.summary[name]
    assert column(again.clients, "joules").tolist() == column(whole.clients, "joules").tolist()
    assert RunRecord.load(tmp_path).summary["joules"] == whole.summary["joules"]


def test_a_fleet_without_prices_records_no_energy():
    problem = digits_problem()
    record = simulate(nudge(problem), problem, rounds=2, execution="masked").record
    assert not record.priced
    assert "joules" not in json.dumps([record.metrics, record.clients, record.summary])
    with pytest.raises(InputError, match="joules"):
        record.evaluations("joules")


def test_the_audit_finds_energy_that_does_not_add_up():
    problem = priced()
    record = simulate(nudge(problem), problem, rounds=2, execution="masked").record
    parts = (record.clients, record.metrics, record.summary)
    assert verify(*parts) == []

    def faults(change):
        clients, metrics, summary = copy.deepcopy(parts)
        change(clients, metrics, summary)
        return verify(clients, metrics, summary)

    def negative(clients, metrics, summary):
        metrics[1]["joules"] -= clients[0]["joules"] + 1.0
        summary["joules"] -= clients[0]["joules"] + 1.0
        summary["joules_by_group"][0] -= clients[0]["joules"] + 1.0
        clients[0]["joules"] = -1.0

    assert faults(negative) == ["step 1, client 0: spends -1.0 J"]
    (fault,) = faults(lambda c, m, s: m[2].update(joules=1.0))
    assert fault.startswith("step 2: 1.0 J, but its tasks add up to")
    (fault,) = faults(lambda c, m, s: m[2].pop("joules"))
    assert fault.startswith("step 2: None J")
    (fault,) = faults(lambda c, m, s: s.update(joules=0.0))
    assert fault.startswith("run: 0.0 J")
    (fault,) = faults(lambda c, m, s: s.update(joules_by_group=[0.0, 0.0, 1.0]))
    assert fault.startswith("device groups: 1.0 J")


def test_energy_is_an_option_of_the_configuration(tmp_path):
    config = {
        "data": {
            "source": "digits",
            "num_clients": 4,
            "partition": {"name": "iid"},
            "per_client_cap": 8,
        },
        "model": {"name": "mlp", "hidden": (4,)},
        "fleet": {"name": "speed_groups", "energy": "phone_wifi"},
        "algorithm": {"name": "fedavg", "learning_rate": 0.1},
        "run": {"rounds": 1},
    }
    problem = experiment.build_problem(experiment.plain(config))
    record = experiment.train(config, tmp_path / "run", problem).record
    assert record.config["fleet"]["energy"] == "phone_wifi"
    work = column(record.clients, "compute_s")
    assert np.all(column(record.clients, "joules") > 4.9 * work)
