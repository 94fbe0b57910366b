"""Devices that run out of charge, by hand; and that a resumed run remembers what they spent."""

import math

import chex
import numpy as np
import pytest
from problems import fleet, nudge, one_by_one, scalar_problem

from fedjax_het.contract.clock import arrivals, barrier
from fedjax_het.engine.engine import make_engine
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

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
    devices = fleet(N, flops_per_s=1e3 * np.arange(1, N + 1), **PRICES, **columns)
    algorithm = algorithm._replace(pace=pace or barrier())
    algorithm = algorithm if batches else one_by_one(algorithm)
    problem = Problem(base.model, base.data, devices)
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
    # Transfers are recorded in whole bytes.
    assert sum(row["joules"] for row in rows) == pytest.approx(capacity, abs=0.011)
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
        # The last wait may be longer than the charge; the rest is whole bytes.
        assert capacity - 0.03 < spent < math.inf
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
