"""Clients that follow several arrivals, planned together: the tasks of one after the other."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import fleet, scalar_problem

import fedjax_het as fh
from fedjax_het.contract.clock import arrivals
from fedjax_het.engine.refilling import Sending, undisturbed
from fedjax_het.engine.sampling import Sampler
from fedjax_het.engine.selecting import Selection
from fedjax_het.fleet.bandwidth import BandwidthTraces, TraceLink
from fedjax_het.fleet.speed import SpeedTrace
from fedjax_het.problem import Problem

CLIENTS, AT_WORK, STEPS = 30, 12, 5


class Table:
    """A table of tasks that are merged without being trained."""

    def __init__(self):
        self.flight, self.rows = None, []

    def send(self, plan, flight, version, variables):
        assert np.array_equal(plan.clients, flight.client)
        old = [] if self.flight is None else [self.flight]
        self.flight = jax.tree.map(lambda *columns: np.concatenate(columns), *old, flight)

    def merge(self, closing):
        gone = closing.merges
        flight = self.flight
        columns = flight.client, flight.version, flight.dispatched_s, flight.ends_s
        self.rows.append([column[gone].tolist() for column in columns])
        self.flight = jax.tree.map(lambda column: column[~gone], flight)


def sent(problem, count, *, apart=True, seed=0, select=None):
    """The tasks of a few merges of `count` arrivals, and the number of plans."""
    base = fh.algorithms.fedavg(problem, learning_rate=0.1, clients_per_round=AT_WORK)
    plans = []

    def tasks(situation):
        plans.append(len(situation.clients))
        return base.plan.tasks(situation)

    plan = dataclasses.replace(base.plan, tasks=tasks, apart=apart)
    method = base._replace(plan=plan, pace=arrivals(count, refill=True))
    if select is not None:
        method = select(method)
    selection = Selection(method, problem.data.sizes)
    sampler = Sampler(method, problem, seed, jax.random.key(seed), selection)
    table, now_s = Table(), 0.0
    for step in range(STEPS):
        sending = Sending(table, sampler, None, step, sampler.step_key(step))
        closing, _ = sending.until_merge((), now_s)
        table.merge(closing)
        now_s = closing.at_s
    return table.rows, plans


def problem_of(**columns):
    base = scalar_problem(sizes=tuple(range(5, 5 + CLIENTS)))
    return Problem(base.model, base.data, fleet(CLIENTS, **columns))


def traces():
    """Speeds and links that change several times within a task."""
    rng = np.random.default_rng(0)
    times_s = np.arange(40) * 2e-5
    rate = rng.uniform(1e5, 4e5, 40)
    own = BandwidthTraces(times_s, rate, np.asarray([0, 40]), ("one",), np.zeros(1, np.int64))
    link = TraceLink(own, np.zeros(CLIENTS, np.int64), rng.uniform(0, 1e-4, CLIENTS))
    factor = rng.uniform(0.5, 2.0, (40, CLIENTS))
    return {"speed_trace": SpeedTrace(times_s, factor), "uplink_trace": link}


@pytest.mark.parametrize("select", [None, fh.select.weighted()], ids=["uniform", "weighted"])
@pytest.mark.parametrize("count", [1, 3, 8, 12])
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "traces"])
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.0, 0.1, 2.0]))
def test_clients_planned_together_are_those_planned_one_by_one(
    changing, count, select, seed, spread
):
    """Nothing but the choices is random, and these have the same addresses."""
    speed = 1e6 * 10 ** np.random.default_rng(seed).uniform(0, spread, CLIENTS)
    problem = problem_of(flops_per_s=speed, **(traces() if changing else {}))
    together, plans = sent(problem, count, seed=seed, select=select)
    one_by_one, singles = sent(problem, count, seed=seed, select=select, apart=False)
    assert together == one_by_one
    assert len(plans) <= len(singles)
    assert all(np.diff(row[3]).size == count - 1 for row in together)


def test_arrivals_between_two_merges_take_few_plans():
    problem = problem_of(flops_per_s=1e6 * np.linspace(1, 1.3, CLIENTS))
    _, plans = sent(problem, AT_WORK)
    # The first plan is of all at work; each merge sends a last one, and replaces eleven.
    assert len(plans) <= 3 * STEPS
    assert max(plans[1:]) >= AT_WORK - 2


def test_durations_of_clients_planned_together_have_the_jitter_of_single_ones():
    """Kept tasks are not chosen by their durations, though others are drawn again."""
    problem = problem_of(flops_per_s=np.full(CLIENTS, 1e6), compute_jitter=1.0)
    means = []
    for apart in (True, False):
        lasts_s = [
            np.subtract(row[3], row[2]) / problem.data.sizes[row[0]]
            for seed in range(60)
            for row in sent(problem, 6, seed=seed, apart=apart)[0]
        ]
        log = np.log(np.concatenate(lasts_s))
        means.append((np.mean(log), np.std(log), log.size))
    (one, spread, k), (other, _, m) = means
    assert abs(one - other) < 4 * spread * np.sqrt(1 / k + 1 / m)


def test_clients_at_work_are_as_many_as_wanted_and_different():
    problem = problem_of(compute_jitter=0.5)
    rows, _ = sent(problem, 6)
    tasks = [task for row in rows for task in zip(*row, strict=True)]
    merged = [row[3][-1] for row in map(list, rows)]
    for client, version, start_s, end_s in tasks:
        others = [t for t in tasks if t[0] == client and t[2] < end_s and t[3] > start_s]
        assert len(others) == 1  # itself
        same = [t for t in tasks if t[:2] == (client, version)]
        assert len(same) == 1
    assert merged == sorted(merged)


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=8, unique=True),
    st.lists(st.tuples(st.integers(0, 7), st.floats(0, 4)), max_size=10),
)
def test_events_that_no_earlier_task_disturbs(times_s, tasks):
    times_s = np.sort(times_s)
    tasks = sorted((i % len(times_s), lasts_s) for i, lasts_s in tasks)
    event = np.asarray([i for i, _ in tasks], np.int64)
    ends_s = np.asarray([times_s[i] + lasts_s for i, lasts_s in tasks])
    expected = len(times_s)
    for j in range(1, len(times_s)):
        if any(ends_s[event < j] <= times_s[j]):
            expected = j
            break
    assert undisturbed(times_s, ends_s, event) == expected
