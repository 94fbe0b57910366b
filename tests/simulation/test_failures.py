"""Tasks that fail or pause in the middle: against an event loop over single clients, and by hand.

The event loop knows nothing of tables and closings: it takes one event after the other, in plain
Python, and asks the same generators for the failures.
"""

import functools
import math
from dataclasses import replace

import chex
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from methods import DEFAULT, SETTINGS
from presence import Listed
from problems import fleet, nudge, scalar_problem, situation, values_of

from fedjax_het.algorithms import ALGORITHMS, build
from fedjax_het.contract.clock import arrivals, barrier, deadline, window
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet.availability import from_intervals
from fedjax_het.problem import Problem
from fedjax_het.report.audit import verify
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

N, WANTED, STEPS = 6, 4, 4
_OPTIONS = ("seed", "workdir", "max_virtual_s")
SPEED = 1e3 * np.asarray([1.0, 1.1, 1.3, 1.7, 2.1, 2.9])


@functools.cache
def shared():
    """Problem, method, engine and evaluator: six clients of one parameter times four."""
    base = scalar_problem((3, 4, 5, 6, 7, 8))
    slow = {"downlink_bytes_per_s": 1e3, "uplink_bytes_per_s": 5e2, "latency_s": 0.01}
    problem = Problem(base.model, base.data, fleet(N, flops_per_s=SPEED, **slow))
    algorithm = nudge(problem, clients_per_round=WANTED)
    algorithm = algorithm._replace(
        select=lambda candidates: candidates.clients[: candidates.wanted]
    )
    return problem, algorithm, make_engine(algorithm, problem), Evaluator(problem)


@functools.cache
def durations():
    """Download, computation and upload of every client in seconds, and its FLOPs."""
    problem, algorithm, *_ = shared()
    timing = algorithm.plan((), None, situation(problem))[0].timing
    return np.stack([timing.download_s, timing.compute_s, timing.upload_s, timing.flops], axis=1)


def run(pace=None, rounds=STEPS, deadline_s=math.inf, steps=None, **columns):
    """A run of the shared method on a fleet with these columns."""
    problem, base, engine, evaluator = shared()
    options = {name: columns.pop(name) for name in _OPTIONS if name in columns}
    problem = replace(problem, fleet=replace(problem.fleet, **columns))

    def plan(*arguments):
        tasks, state = base.plan(*arguments)
        if steps is not None:
            tasks = tasks._replace(steps=np.full_like(tasks.steps, steps))
        return tasks._replace(deadline_s=deadline_s), state

    algorithm = base._replace(pace=pace or barrier(), plan=plan)
    return simulate(
        algorithm, problem, rounds=rounds, engine=engine, evaluator=evaluator, **options
    )


# ---- an event loop over single clients -----------------------------------------------------------


class Loop:
    """A run in plain Python; `rows` are (step, client, dispatched, ended, status) of every task."""

    def __init__(self, seed, rate, on, on_interrupt, leaves):
        self.seed, self.rate, self.leaves = seed, rate, leaves
        self.devices = [Listed(*each, leaves=end) for each, end in zip(on, leaves, strict=True)]
        self.on_interrupt = on_interrupt
        self.tasks, self.rows, self.ends = [], [], []

    def send(self, step, turn, now, idle, least):
        """Sends out idle clients; returns the time."""
        while True:
            ready = [c for c in idle if self.devices[c].next(now) == now]
            ever = sorted(t for t in (self.devices[c].next(now) for c in idle) if t < np.inf)
            least = min(least, len(ever))
            if len(ready) >= least:
                break
            now = ever[least - 1]
        working = sum(task["end"] > now or turn == 0 for task in self.tasks)
        chosen = ready[: max(WANTED - working, 0)]
        if chosen:
            draws = np.random.default_rng([self.seed, step, 2 * turn, 2]).random((len(chosen), 2))
            for client, (fails, when) in zip(chosen, draws, strict=True):
                self.tasks.append(self.task(client, step, now, fails < self.rate, when))
        return now

    def task(self, client, step, now, fails, when):
        device, total = self.devices[client], float(np.sum(durations()[client, :3]))
        works = when * total if fails else np.inf
        if self.on_interrupt == "pause":
            end = device.spent(now, min(works, total))
            failed = works < total
            if end == np.inf:
                end, failed = min(device.on[-1][1], self.leaves[client]), True
                if self.leaves[client] < np.inf:
                    end = self.leaves[client]
        else:
            off = device.until(now) if self.on_interrupt == "lose" else self.leaves[client]
            end = min(now + works, off)
            failed = end < now + total
            end = min(end, now + total)
        return {"client": client, "version": step, "start": now, "end": end, "failed": failed}

    def idle(self, step, now, turn):
        """Clients that may be sent out."""
        busy = {
            task["client"]
            for task in self.tasks
            if turn == 0 or task["end"] > now or (task["version"] == step and not task["failed"])
        }
        return [c for c in range(N) if c not in busy]

    def settle(self, step, now, merged):
        """Writes the merged and the failed tasks, and removes them."""
        gone = [t for t in self.tasks if t in merged or (t["failed"] and t["end"] <= now)]
        for task in sorted(gone, key=lambda t: (t["end"], t["client"])):
            status = "failed" if task["failed"] else "merged"
            self.rows.append((step + 1, task["client"], task["start"], task["end"], status))
        self.tasks = [task for task in self.tasks if task not in gone]
        self.ends.append(now)
        return now

    def events(self, now):
        return sorted({task["end"] for task in self.tasks if task["end"] > now})

    def arrived(self, now):
        there = [t for t in self.tasks if not t["failed"] and t["end"] <= now]
        return sorted(there, key=lambda task: (task["end"], task["client"]))

    def count(self, step, now, count, refill):
        """A step that merges `count` arrivals."""
        turn = 0
        least = 0 if self.tasks else 1
        now = self.send(step, turn, now, self.idle(step, now, turn), least)
        while len(self.arrived(now)) < count and (refill or self.events(now)):
            if not (events := self.events(now)):
                break
            now = events[0]
            failed = sum(task["failed"] and task["end"] <= now for task in self.tasks)
            short = sum(not task["failed"] for task in self.tasks) < count
            if short and failed >= 10 * WANTED:
                now = max(task["end"] for task in self.tasks)  # it gives up
                break
            if refill and len(self.arrived(now)) < count:
                turn += 1
                now = self.send(step, turn, now, self.idle(step, now, turn), 0)
        return self.settle(step, now, self.arrived(now)[:count])

    def window(self, step, now, interval):
        """A step that merges at the first tick after any end."""
        now = self.send(step, 0, now, self.idle(step, now, 0), 0 if self.tasks else 1)
        soonest = min(task["end"] for task in self.tasks)
        tick = max(math.ceil(soonest / interval - 1e-9) * interval, soonest)
        return self.settle(step, tick, self.arrived(tick))

    def barrier(self, step, now):
        """A step that merges when all tasks have ended."""
        self.send(step, 0, now, list(range(N)), WANTED)
        end = max(task["end"] for task in self.tasks)
        return self.settle(step, end, self.arrived(end))


@st.composite
def troubles(draw):
    """Failure rates, on-intervals, treatments of interruptions, and departures."""
    on = []
    for _ in range(N):
        if draw(st.booleans()):
            on.append(([(0.0, 64.0)], 64.0, 0.0))
            continue
        # All are on at the start of a cycle, or a cohort might never be.
        edges = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5, unique=True))
        edges = np.sort(edges[: (len(edges) - 1) // 2 * 2 + 1]) / 64
        on.append((np.append(0.0, edges).reshape(-1, 2).tolist(), 0.75, 0.0))
    leaving = st.one_of(st.just(np.inf), st.integers(20, 400).map(lambda i: i / 64))
    return {
        "seed": draw(st.integers(0, 1000)),
        "rate": draw(st.sampled_from([0.0, 0.3, 0.8])),
        "on": on,
        "on_interrupt": draw(st.sampled_from(["finish", "lose", "pause"])),
        # One client stays, so that the run goes on.
        "leaves": [np.inf, *(draw(leaving) for _ in range(N - 1))],
    }


PACES = {
    "barrier": (barrier(), lambda loop, step, now: loop.barrier(step, now)),
    "window": (window(0.09), lambda loop, step, now: loop.window(step, now, 0.09)),
    "arrivals": (arrivals(3), lambda loop, step, now: loop.count(step, now, 3, False)),
    "refilled": (
        arrivals(3, refill=True),
        lambda loop, step, now: loop.count(step, now, 3, True),
    ),
}


# A step of it ends with the fortieth failure, which is not replaced.
HOPELESS = {
    "seed": 72,
    "rate": 0.8,
    "on": [
        ([[0.0, 0.125], [0.203125, 0.25]], 0.75, 0.0),
        *[([(0.0, 64.0)], 64.0, 0.0)] * 2,
        ([[0.0, 0.34375], [0.40625, 0.625]], 0.75, 0.0),
        *[([(0.0, 64.0)], 64.0, 0.0)] * 2,
    ],
    "on_interrupt": "finish",
    "leaves": [np.inf, np.inf, 3.5, np.inf, 0.75, 4.0],
}


@pytest.mark.parametrize("name", PACES)
@settings(deadline=None, max_examples=8, phases=[Phase.explicit, Phase.generate])
@given(trouble=troubles())
@example(trouble=HOPELESS)
def test_runs_agree_with_an_event_loop(name, trouble):
    pace, advance = PACES[name]
    loop, now = Loop(**trouble), 0.0
    for step in range(STEPS):
        now = advance(loop, step, now)
    intervals, periods, phases = zip(*trouble["on"], strict=True)
    result = run(
        pace,
        seed=trouble["seed"],
        failure_rate=trouble["rate"],
        on_interrupt=trouble["on_interrupt"],
        leaves_s=np.asarray(trouble["leaves"]),
        availability=from_intervals([np.asarray(i) for i in intervals], periods, phases),
    )
    assert result.faults == []
    rows = [
        (row["step"], row["client"], row["dispatched_s"], row["arrived_s"], row["status"])
        for row in result.record.clients
    ]
    key = lambda row: (row[0], row[2], row[1])
    ours, theirs = sorted(rows, key=key), sorted(loop.rows, key=key)
    assert [(r[0], r[1], r[4]) for r in ours] == [(r[0], r[1], r[4]) for r in theirs]
    np.testing.assert_allclose([r[2:4] for r in ours], [r[2:4] for r in theirs], rtol=1e-12)
    times = [row["virtual_s"] for row in result.record.metrics[1:]]
    np.testing.assert_allclose(times, loop.ends, rtol=1e-12)
    # Every merged client moves the parameters; a step without one leaves them.
    full = sum(bool(row["merged"]) for row in result.record.metrics[1:])
    assert values_of(result.variables)[-1] == pytest.approx(full)


# ---- records -------------------------------------------------------------------------------------


def rows_by_client(result, step=1):
    return {row["client"]: row for row in result.record.clients if row["step"] == step}


def test_the_row_of_a_failed_task_has_what_was_spent_until_then():
    """Client 0 leaves in its download, 1 half way through its computation, 2 in its upload."""
    down, work, up, flops = durations().T
    leaves = np.full(N, np.inf)
    leaves[0] = 0.25 * down[0]
    leaves[1] = down[1] + 0.5 * work[1]
    leaves[2] = down[2] + work[2] + 0.75 * up[2]
    prices = {"joules_per_flop": 1e-6, "joules_per_byte_up": 2e-3, "joules_per_byte_down": 1e-3}
    result = run(leaves_s=leaves, idle_watts=5.0, rounds=1, **prices)
    rows, (whole,) = rows_by_client(result), {r["bytes_up"] for r in run(rounds=1).record.clients}
    assert [rows[c]["status"] for c in range(WANTED)] == ["failed"] * 3 + ["merged"]
    for c, shares in {0: (0.25, 0, 0), 1: (1, 0.5, 0), 2: (1, 1, 0.75)}.items():
        row = rows[c]
        spent = [row["download_s"], row["compute_s"], row["upload_s"], row["flops"]]
        share = np.asarray([*shares, shares[1]])
        np.testing.assert_allclose(spent, durations()[c] * share, atol=1e-12)
        assert row["arrived_s"] == pytest.approx(leaves[c], rel=1e-12)
        moved = [round(whole * shares[0]), round(whole * shares[2])]
        assert [row["bytes_down"], row["bytes_up"]] == moved
        # Half a byte costs half as much.
        joules = 1e-6 * flops[c] * shares[1] + whole * (1e-3 * shares[0] + 2e-3 * shares[2])
        assert row["joules"] == pytest.approx(joules, rel=1e-9)
        assert (row["steps"], row["samples"], row["loss"]) == (0, 0, None)
    totals, step = result.record.summary, result.record.metrics[1]
    lost = [rows[c] for c in range(3)]
    for name, expected in {
        "failed": 3,
        "wasted_flops": sum(row["flops"] for row in lost),
        "wasted_bytes": sum(row["bytes_down"] + row["bytes_up"] for row in lost),
        "wasted_joules": sum(row["joules"] for row in lost),
    }.items():
        assert step[name] == totals[name] == pytest.approx(expected), name
    assert totals["flops"] == pytest.approx(sum(row["flops"] for row in rows.values()))
    assert result.faults == []
    assert step["virtual_s"] == pytest.approx(np.sum(durations()[3, :3]))
    np.testing.assert_allclose(values_of(result.variables), 1.0)


def test_losing_pausing_and_finishing_by_hand():
    """Client 0 is off from half of its task on, for 5 s out of 10."""
    total = np.sum(durations()[:, :3], axis=1)
    on = [np.array([[0.0, total[0] / 2], [5.0, 10.0]]), *[np.array([[0.0, 10.0]])] * (N - 1)]
    when = from_intervals(on, [10.0] * N)
    rows = {
        how: rows_by_client(run(availability=when, on_interrupt=how, rounds=1))
        for how in ("finish", "lose", "pause")
    }
    assert [rows[how][0]["status"] for how in rows] == ["merged", "failed", "merged"]
    ends = [rows[how][0]["arrived_s"] for how in rows]
    np.testing.assert_allclose(ends, [total[0], total[0] / 2, 5 + total[0] / 2], rtol=1e-12)
    assert rows["pause"][0]["paused_s"] == pytest.approx(5 - total[0] / 2, rel=1e-12)
    assert [rows["pause"][c]["paused_s"] for c in (1, 2, 3)] == [0.0] * 3
    assert "paused_s" not in rows["lose"][0]


def test_partial_work_ends_when_the_device_was_on_for_long_enough():
    """Four local steps; client 0 is off after 1.6 of them, until 3 s."""
    down, work, up = durations()[0, :3]
    on = [np.array([[0.0, down + 0.4 * work], [3.0, 10.0]])] + [np.array([[0.0, 10.0]])] * (N - 1)
    options = {"availability": from_intervals(on, [10.0] * N), "on_interrupt": "pause", "steps": 4}
    # Time for 2.6 steps and the upload is left, so two steps count, and the upload follows them.
    limit = 3.0 + 0.25 * work + up
    result = run(deadline("partial"), rounds=1, deadline_s=limit, **options)
    row = rows_by_client(result)[0]
    assert (row["status"], row["steps"]) == ("partial", 2)
    assert row["compute_s"] == pytest.approx(work / 2, rel=1e-12)
    assert row["paused_s"] == pytest.approx(3.0 - down - 0.4 * work, rel=1e-12)
    assert row["arrived_s"] == pytest.approx(3.0 + 0.1 * work + up, rel=1e-12)
    assert result.record.metrics[1]["virtual_s"] == pytest.approx(limit, rel=1e-12)
    assert result.faults == []
    row = rows_by_client(run(deadline("partial"), rounds=1, deadline_s=9.0, **options))[0]
    assert (row["status"], row["arrived_s"]) == ("merged", pytest.approx(3.0 + 0.6 * work + up))


def test_a_task_that_fails_before_the_deadline_leaves_nothing():
    """Client 0 leaves just before the deadline, client 1 just after it."""
    total = np.sum(durations()[:, :3], axis=1)
    leaves = np.full(N, np.inf)
    leaves[:2] = 0.8 * total[1] - 1e-3, 0.8 * total[1] + 1e-3
    for late, second in (("drop", "dropped"), ("partial", "partial")):
        result = run(deadline(late), rounds=1, deadline_s=0.8 * total[1], leaves_s=leaves, steps=50)
        rows = rows_by_client(result)
        assert [rows[c]["status"] for c in range(2)] == ["failed", second]
        assert result.record.metrics[1]["virtual_s"] == pytest.approx(0.8 * total[1])
        assert result.faults == []


# ---- clients that join and leave -----------------------------------------------------------------


def test_clients_join_and_leave():
    """Two clients leave in the third round, after which the server waits for two that join."""
    lasts = np.max(np.sum(durations()[:WANTED, :3], axis=1))
    leaves, joins = np.full(N, np.inf), np.zeros(N)
    leaves[[0, 1]], joins[[4, 5]] = 2.2 * lasts, [20 * lasts, 10 * lasts]
    result = run(joins_s=joins, leaves_s=leaves, rounds=6)
    assert result.faults == []
    assert result.record.summary["ended"] == "rounds"
    steps = {step: rows_by_client(result, step) for step in range(1, 7)}
    assert [sorted(rows) for rows in steps.values()] == [[0, 1, 2, 3]] * 3 + [[2, 3, 4, 5]] * 3
    assert {steps[4][client]["dispatched_s"] for client in (2, 3, 4, 5)} == {20 * lasts}
    for step, rows in steps.items():
        for client, row in rows.items():
            assert (row["status"] == "failed") == (step == 3 and client < 2)
    assert [steps[3][client]["arrived_s"] for client in (0, 1)] == pytest.approx([2.2 * lasts] * 2)


@pytest.mark.parametrize("name", ["barrier", "refilled"])
def test_a_run_ends_when_nobody_is_left(name, tmp_path, caplog):
    """Recordings that are not repeated end after 2 s, some after 1 s; the rest goes on alone."""
    on = [np.array([[0.0, 2.0 if client in (1, 4) else 1.0]]) for client in range(N)]
    once = {"availability": from_intervals(on, [np.inf] * N), "on_interrupt": "lose"}
    result = run(PACES[name][0], rounds=1000, workdir=tmp_path / "run", **once)
    assert "no client is ever on again" in caplog.text
    summary, metrics = result.record.summary, result.record.metrics
    assert summary["ended"] == "no clients"
    assert summary["steps"] == metrics[-1]["step"] < 1000
    assert metrics[-1]["accuracy"] is not None
    assert result.faults == []
    last = [row for row in result.record.clients if row["step"] == summary["steps"]]
    assert {row["client"] for row in last} == {1, 4}
    assert metrics[-1]["virtual_s"] == pytest.approx(2.0)
    again = run(PACES[name][0], rounds=2000, workdir=tmp_path / "run", **once)
    assert again.record.metrics == metrics
    chex.assert_trees_all_equal(again.variables, result.variables)
    read = RunRecord.load(tmp_path / "run")
    assert verify(read.clients, read.metrics, read.summary) == []


# ---- published methods on devices that fail ------------------------------------------------------

SAMPLE = ("fedavg", "fedbuff", "prfl")
FEW = [
    name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(ALGORITHMS)
]


@functools.cache
def failing(name):
    """A method whose tasks fail with a probability of 30 %, and its problem."""
    make_problem, options = SETTINGS.get(name, DEFAULT)
    base = make_problem()
    problem = replace(base, fleet=replace(base.fleet, failure_rate=0.3, idle_watts=1.0))
    algorithm = build(name, problem, **options)
    return algorithm, problem, make_engine(algorithm, problem), Evaluator(problem)


@pytest.mark.parametrize("name", FEW)
def test_no_method_stalls(name):
    algorithm, problem, engine, evaluator = failing(name)
    result = simulate(algorithm, problem, rounds=3, engine=engine, evaluator=evaluator)
    assert result.faults == []
    summary, rows = result.record.summary, result.record.clients
    assert summary["steps"] == 3
    assert sum(row["status"] == "failed" for row in rows) == summary["failed"] > 0
    lost = [row for row in rows if row["status"] in ("failed", "dropped", "nonfinite")]
    assert summary["wasted_flops"] == pytest.approx(sum(row["flops"] for row in lost))
    moved = sum(row["bytes_down"] + (row["status"] != "dropped") * row["bytes_up"] for row in lost)
    assert summary["wasted_bytes"] == moved
    assert summary["wasted_joules"] == pytest.approx(sum(row["joules"] for row in lost))


@pytest.mark.parametrize("name", ["fedavg", "fedbuff", "prfl"])
def test_a_resumed_run_fails_at_the_same_moments(name, tmp_path):
    algorithm, problem, engine, evaluator = failing(name)
    options = {"engine": engine, "evaluator": evaluator, "checkpoint_every": 2}
    whole = simulate(algorithm, problem, rounds=6, workdir=tmp_path / "whole", **options)
    simulate(algorithm, problem, rounds=4, workdir=tmp_path / "cut", **options)
    again = simulate(algorithm, problem, rounds=6, workdir=tmp_path / "cut", **options)
    chex.assert_trees_all_equal(again.variables, whole.variables)
    chex.assert_trees_all_equal(again.state, whole.state)
    rows = [(tmp_path / place / "clients.jsonl").read_bytes() for place in ("cut", "whole")]
    assert rows[0] == rows[1]


def test_rounds_fail_alike_in_batches_and_one_by_one():
    algorithm, problem, engine, evaluator = failing("fedavg")
    alone = algorithm._replace(plan=lambda *arguments: algorithm.plan(*arguments))
    runs = [
        simulate(method, problem, rounds=4, eval_every=2, engine=engine, evaluator=evaluator)
        for method in (algorithm, alone)
    ]
    columns = ("step", "client", "arrived_s", "status", "flops")
    ours, theirs = ([[r[c] for c in columns] for r in run.record.clients] for run in runs)
    assert ours == theirs


def test_a_fleet_without_failures_is_the_plain_one():
    """Rates of 0 and treatments that nothing calls for change no bit and no identity."""
    plain, same = run(arrivals(2)), run(arrivals(2), failure_rate=0.0, joins_s=0.0)
    pausing = run(arrivals(2), on_interrupt="pause")
    assert plain.record.clients == same.record.clients
    without = [{k: v for k, v in row.items() if k != "paused_s"} for row in pausing.record.clients]
    assert plain.record.clients == without
    fleets = [result.record.summary["fleet"] for result in (plain, same)]
    assert fleets[0] == fleets[1]
    assert not {"failure_rate", "joins_s", "leaves_s", "on_interrupt"} & {
        key.split(" ")[0] for key in fleets[0]
    }
