"""Devices that run out of charge, by hand; and that a resumed run remembers what they spent."""

import chex
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from problems import fleet, nudge, one_by_one, scalar_problem

from fedjax_het.contract.clock import arrivals, barrier, deadline, first, window
from fedjax_het.engine.efforts import joules_of, promised
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet.availability import from_intervals
from fedjax_het.problem import Problem
from fedjax_het.report.audit import verify
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate
from fedjax_het.simulation.simulation import Simulation

N = 3
PRICES = {
    "joules_per_flop": 1e-3,
    "joules_per_byte_up": 1e-2,
    "joules_per_byte_down": 2e-2,
    "idle_watts": 3.0,
}


@pytest.fixture(scope="module")
def parts():
    base = scalar_problem((4, 4, 4))
    problem = Problem(base.model, base.data, fleet(N, flops_per_s=1e3 * np.arange(1, N + 1)))
    algorithm = nudge(problem)
    return base, algorithm, make_engine(algorithm, problem), Evaluator(problem)


def run(parts, rounds, pace=None, batches=True, **columns):
    base, algorithm, engine, evaluator = parts
    options = {name: columns.pop(name) for name in ("workdir",) if name in columns}
    devices = fleet(N, flops_per_s=1e3 * np.arange(1, N + 1), **{**PRICES, **columns})
    problem = Problem(base.model, base.data, devices)
    algorithm = algorithm._replace(pace=pace or barrier(), plan=nudge(problem).plan)
    algorithm = algorithm if batches else one_by_one(algorithm)
    return simulate(
        algorithm, problem, rounds=rounds, engine=engine, evaluator=evaluator, **options
    )


def by_client(result, client):
    return [row for row in result.record.clients if row["client"] == client]


@pytest.mark.parametrize("pace", [barrier(), arrivals(2)], ids=["barrier", "arrivals"])
def test_a_battery_lasts_for_as_many_joules_as_it_has(parts, pace):
    """Client 1 has charge for 2.4 of its tasks, waiting included; the others have no limit."""
    whole = run(parts, 6, pace)
    joules = [row["joules"] for row in by_client(whole, 1)]
    capacity = joules[0] + joules[1] + 0.4 * joules[2]
    result = run(parts, 6, pace, battery_joules=np.array([np.inf, capacity, np.inf]))
    assert result.faults == []
    rows = by_client(result, 1)
    assert [row["status"] for row in rows] == ["merged", "merged", "failed"]
    assert sum(row["joules"] for row in rows) == pytest.approx(capacity, rel=1e-9)
    assert rows[:2] == by_client(whole, 1)[:2]
    assert len(by_client(result, 0)) >= 3


@pytest.mark.parametrize("batches", [True, False])
def test_a_run_ends_when_all_batteries_are_empty_and_resumes_exactly(parts, tmp_path, batches):
    one = sum(row["joules"] for row in run(parts, 1).record.clients) / N
    options = {"battery_joules": one * np.array([4.5, 7.3, 9.9]), "batches": batches}
    whole = run(parts, 500, workdir=tmp_path / "whole", **options)
    assert whole.record.summary["ended"] == "no clients"
    assert whole.faults == []
    run(parts, 3, workdir=tmp_path / "cut", **options)
    again = run(parts, 500, workdir=tmp_path / "cut", **options)
    chex.assert_trees_all_equal(again.variables, whole.variables)
    rows = [(tmp_path / place / "clients.jsonl").read_bytes() for place in ("cut", "whole")]
    assert rows[0] == rows[1]
    for client, capacity in enumerate(options["battery_joules"]):
        spent = sum(row["joules"] for row in by_client(whole, client))
        assert spent == pytest.approx(capacity, rel=1e-9)
        assert sum(row["joules"] for row in by_client(whole, client)[:-1]) < capacity


def test_a_refilled_buffer_remembers_the_charge(parts, tmp_path):
    one = sum(row["joules"] for row in run(parts, 1).record.clients) / N
    options = {
        "battery_joules": one * np.array([4.5, 7.3, 9.9]),
        "pace": arrivals(2, refill=True),
    }
    whole = run(parts, 500, workdir=tmp_path / "whole", **options)
    assert whole.record.summary["ended"] == "no clients"
    assert whole.faults == []
    run(parts, 3, workdir=tmp_path / "cut", **options)
    run(parts, 500, workdir=tmp_path / "cut", **options)
    rows = [(tmp_path / place / "clients.jsonl").read_bytes() for place in ("cut", "whole")]
    assert rows[0] == rows[1]


PACES = {
    "barrier": barrier(),
    "dropping": deadline("drop"),
    "partial": deadline("partial"),
    "first": first(2),
    "window": window(0.3),
    "arrivals": arrivals(2),
    "refilled": arrivals(2, refill=True),
}


@st.composite
def troubles(draw):
    """A fleet of which something or other goes wrong, and the number of local steps."""
    columns = {"on_interrupt": draw(st.sampled_from(["finish", "lose", "pause"]))}
    columns["failure_rate"] = draw(st.sampled_from([0.0, 0.3]))
    columns["battery_joules"] = np.asarray(
        draw(st.lists(st.sampled_from([0.02, 0.9, 1.7, 1e6]), min_size=N, max_size=N))
    )
    if draw(st.booleans()):
        on = [np.array([[0.0, 0.25 + 0.1 * k], [0.5, 1.2]]) for k in range(N)]
        columns["availability"] = from_intervals(on, [1.5] * N)
    for way in ("downlink_bytes_per_s", "uplink_bytes_per_s"):
        columns[way] = draw(st.sampled_from([4e2, np.inf]))
    return columns, draw(st.integers(0, 99))


@pytest.mark.parametrize("name", PACES)
@settings(deadline=None, max_examples=12, phases=[Phase.generate])
@given(trouble=troubles())
def test_what_batteries_lost_is_what_the_rows_say(parts, name, trouble):
    (columns, seed), (base, algorithm, engine, evaluator) = trouble, parts
    devices = fleet(N, flops_per_s=1e3 * np.arange(1, N + 1), **{**PRICES, **columns})
    problem = Problem(base.model, base.data, devices)
    planned = nudge(problem).plan

    def plan(*arguments):
        tasks, state = planned(*arguments)
        return tasks._replace(deadline_s=0.11, steps=np.full_like(tasks.steps, 5)), state

    method = algorithm._replace(pace=PACES[name], plan=plan)
    options = {"rounds": 6, "seed": seed, "engine": engine, "evaluator": evaluator}
    with Simulation(method, problem, **options) as run:
        while not run.done:
            run.step()
    server, said = run._server, np.zeros(N)
    for row in run.record.clients:
        said[row["client"]] += row["joules"]
    assert verify(run.record.clients, run.record.metrics) == []
    if server._table is not None and server._table.size:
        # Tasks take their charge when they are dispatched.
        flight = server._table.flight
        np.add.at(said, flight.client, joules_of(devices, flight, promised(flight)))
    np.testing.assert_allclose(server._spent, said, rtol=1e-9, atol=1e-9)
    assert np.all(said <= devices.battery_joules * (1 + 1e-12))


def test_a_part_that_takes_no_time_takes_charge_all_the_same(parts):
    """Half of the download, or of the upload, is all that the charge of client 0 is enough for."""
    priced = {"joules_per_byte_down": 1.0, "joules_per_byte_up": 1.0, "joules_per_flop": 1.0}
    whole = run(parts, 1, **priced, idle_watts=0.0).record.clients[0]
    down, up = whole["bytes_down"], whole["bytes_up"]
    for capacity in (down / 2, down + whole["flops"] + up / 2):
        result = run(
            parts,
            3,
            **priced,
            idle_watts=0.0,
            battery_joules=np.array([capacity, np.inf, np.inf]),
            downlink_bytes_per_s=np.inf,
            uplink_bytes_per_s=np.inf,
        )
        assert result.faults == []
        (row,) = by_client(result, 0)
        assert row["status"] == "failed"
        assert row["joules"] == pytest.approx(capacity, rel=1e-12)
        assert row["bytes_down"] + row["flops"] + row["bytes_up"] == pytest.approx(capacity, abs=1)
