"""Virtual time: when the server merges, what becomes of every task, and what a log must satisfy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.common.errors import InputError
from fedjax_het.contract.clock import Status, arrivals, barrier, deadline, dispatch, window
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Timing
from fedjax_het.report.audit import verify


def make_plan(compute_s, *, download_s=0.0, upload_s=0.0, steps=4, deadline_s=math.inf):
    compute = np.asarray(compute_s, np.float64)
    k = len(compute)

    def column(value):
        return np.broadcast_to(np.asarray(value, np.float64), (k,))

    amount = np.ones(k, np.int64)
    return Plan(
        clients=np.arange(10, 10 + k),
        routes=[Route(0, 0)] * k,
        steps=np.full(k, steps, np.int32),
        batch=np.ones(k, np.int32),
        weight=np.ones(k, np.float32),
        timing=Timing(column(download_s), compute, column(upload_s), amount, amount, column(1.0)),
        deadline_s=deadline_s,
    )


durations = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(durations, st.floats(0, 1e6))
def test_a_barrier_lasts_as_long_as_its_slowest_task(compute_s, now_s):
    flight = dispatch(make_plan(compute_s, download_s=1.0, upload_s=2.0), now_s, version=3)
    closing = barrier().close(flight)
    assert closing.at_s == pytest.approx(now_s + 3.0 + max(compute_s))
    assert closing.status == [Status.MERGED] * len(compute_s)
    assert closing.steps.tolist() == [4] * len(compute_s)
    assert flight.version.tolist() == [3] * len(compute_s)
    # Order is no information.
    turned = dispatch(make_plan(compute_s[::-1], download_s=1.0, upload_s=2.0), now_s, version=3)
    assert barrier().close(turned).at_s == closing.at_s


def test_a_slower_device_prolongs_the_barrier_and_a_faster_one_does_not_shorten_it():
    base = barrier().close(dispatch(make_plan([1.0, 2.0]), 0.0, 0)).at_s
    assert barrier().close(dispatch(make_plan([1.0, 2.0, 4.0]), 0.0, 0)).at_s == 2 * base
    assert barrier().close(dispatch(make_plan([1.0, 2.0, 0.5]), 0.0, 0)).at_s == base


@pytest.mark.parametrize(
    ("late", "status", "steps"),
    [
        ("drop", ["merged", "dropped", "dropped", "dropped"], [4, 0, 0, 0]),
        ("partial", ["merged", "partial", "partial", "dropped"], [4, 3, 1, 0]),
    ],
)
def test_a_deadline_drops_or_keeps_partial_work(late, status, steps):
    # Half a second for each transfer leaves three for computing four steps of 1/2, 1, 2, 8 s.
    plan = make_plan([2, 4, 8, 32], download_s=0.5, upload_s=0.5, deadline_s=4.0)
    closing = deadline(late).close(dispatch(plan, 100.0, 0))
    assert closing.at_s == 104.0
    assert [s.value for s in closing.status] == status
    assert closing.steps.tolist() == steps


@pytest.mark.parametrize("late", ["drop", "partial"])
def test_a_deadline_closes_early_when_everyone_is_back(late):
    closing = deadline(late).close(dispatch(make_plan([1, 2], deadline_s=5.0), 1.0, 0))
    assert closing.at_s == 3.0
    assert closing.status == [Status.MERGED] * 2


@pytest.mark.parametrize("late", ["drop", "partial"])
def test_an_infinite_deadline_is_a_barrier(late):
    flight = dispatch(make_plan([1, 7, 3]), 2.0, 0)
    one, other = deadline(late).close(flight), barrier().close(flight)
    assert (one.at_s, one.status) == (other.at_s, other.status)
    np.testing.assert_array_equal(one.steps, other.steps)


@settings(deadline=None, max_examples=100)
@given(durations, st.floats(0.1, 50.0), st.floats(0.0, 2.0), st.integers(1, 9))
def test_partial_work_fits_into_the_deadline(compute_s, limit_s, link_s, steps):
    plan = make_plan(compute_s, download_s=link_s, upload_s=link_s, steps=steps, deadline_s=limit_s)
    flight = dispatch(plan, 0.0, 0)
    closing = deadline("partial").close(flight)
    assert closing.at_s <= max(limit_s, 0) or closing.at_s == max(flight.arrives_s)
    step_s = flight.timing.compute_s / steps
    for i, status in enumerate(closing.status):
        back_s = 2 * link_s + closing.steps[i] * step_s[i]
        if status is Status.DROPPED:
            assert closing.steps[i] == 0
            assert 2 * link_s + step_s[i] > limit_s * (1 - 1e-12)
        else:
            assert back_s <= limit_s * (1 + 1e-12)
            assert (status is Status.MERGED) == (closing.steps[i] == steps)


def test_unknown_treatment_of_the_late_is_refused():
    with pytest.raises(InputError, match=r"late = 'wait'.*'drop' or 'partial'"):
        deadline("wait")


@pytest.mark.parametrize(
    ("compute_s", "download_s"), [(0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0), (-1.0, 3.0)]
)
def test_durations_must_be_positive_and_finite(compute_s, download_s):
    plan = make_plan([1.0, compute_s], download_s=download_s)
    with pytest.raises(InputError, match="11"):  # the second client's id
        dispatch(plan, 0.0, 0)


# ---- the event log ---------------------------------------------------------------------------


def sound_log():
    metrics = [{"step": s, "virtual_s": 10.0 * s} for s in range(4)]
    clients = [
        {
            "step": step,
            "client": client,
            "version": step - 1,
            "dispatched_s": 10.0 * (step - 1),
            "download_s": 1.0,
            "compute_s": 2.0 + client,
            "upload_s": 0.5,
            "arrived_s": 10.0 * (step - 1) + 3.5 + client,
            "bytes_down": 100,
            "bytes_up": 50,
            "flops": 1e6,
            "status": "merged",
        }
        for step in (1, 2, 3)
        for client in (0, 1)
    ]
    return clients, metrics


def test_a_sound_log_has_no_faults():
    assert verify(*sound_log()) == []
    assert verify([], []) == []


NAN = float("nan")
# name, which table, row, what to change, words the fault must contain
FAULTS = {
    "time falls": ("metrics", 2, {"virtual_s": 5.0}, "virtual time fell"),
    "time is no number": ("metrics", 2, {"virtual_s": NAN}, "virtual time fell"),
    "lasts nothing": (
        "clients",
        0,
        {"download_s": 0.0, "compute_s": 0.0, "upload_s": 0.0, "arrived_s": 0.0},
        "lasts",
    ),
    "negative part": ("clients", 0, {"download_s": -1.0, "compute_s": 4.0}, "lasts"),
    "duration is no number": ("clients", 0, {"compute_s": NAN}, "lasts"),
    "arrives early": ("clients", 1, {"arrived_s": 4.0}, "arrives at 4.0"),
    "arrival is no number": ("clients", 1, {"arrived_s": NAN}, "arrives at nan"),
    "no bytes down": ("clients", 2, {"bytes_down": 0}, "moves or computes nothing"),
    "no bytes up": ("clients", 2, {"bytes_up": 0}, "moves or computes nothing"),
    "no work": ("clients", 2, {"flops": 0.0}, "moves or computes nothing"),
    "unknown step": ("clients", 5, {"step": 9}, "belongs to no recorded step"),
    "from the future": ("clients", 3, {"version": 2}, "started from version 2"),
    "negative version": ("clients", 3, {"version": -1}, "started from version -1"),
    "merged before it arrived": (
        "clients",
        4,
        {"compute_s": 20.0, "arrived_s": 41.5},
        "merged at 30.0 before it arrived",
    ),
    "two tasks at once": ("clients", 2, {"client": 1}, "while busy"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_injected_fault_is_found(name):
    table, row, change, words = FAULTS[name]
    clients, metrics = sound_log()
    {"clients": clients, "metrics": metrics}[table][row].update(change)
    if name == "two tasks at once":  # dispatched before the earlier task of that client ended
        clients[2].update(dispatched_s=4.0, arrived_s=7.5)
    faults = verify(clients, metrics)
    assert any(words in fault for fault in faults), faults


def test_a_late_task_may_be_dropped_but_not_merged():
    clients, metrics = sound_log()
    clients[4].update(compute_s=20.0, arrived_s=41.5, status="dropped")
    assert verify(clients, metrics) == []


def failed_log():
    """Client 1 fails in the third step after 1.5 s, of which it is suspended for 0.25 s."""
    clients, metrics = sound_log()
    spent = {"download_s": 1.0, "compute_s": 0.25, "upload_s": 0.0, "paused_s": 0.25}
    moved = {"bytes_up": 0, "bytes_down": 100, "flops": 1e5}
    clients[5].update(arrived_s=21.5, status="failed", **spent, **moved)
    for row in metrics:
        row.update(failed=0, wasted_flops=0, wasted_bytes=0)
    metrics[3].update(failed=1, wasted_flops=1e5, wasted_bytes=100)
    return clients, metrics, {"failed": 1, "wasted_flops": 1e5, "wasted_bytes": 100}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c, m, s: None, None),
        (lambda c, m, s: c[5].update(paused_s=0.0), "arrives at 21.5"),
        (lambda c, m, s: c[5].update(paused_s=-0.25, compute_s=0.75), "lasts"),
        (lambda c, m, s: c[5].update(bytes_up=-1), "moves or computes nothing"),
        (lambda c, m, s: c[5].update(status="merged"), "moves or computes nothing"),
        (lambda c, m, s: c[5].update(arrived_s=30.5, compute_s=9.25), "before it arrived"),
        (lambda c, m, s: m[3].update(failed=0), "step 3: 0 failures"),
        (lambda c, m, s: m[2].update(wasted_bytes=1), "step 2: 1 wasted B"),
        (lambda c, m, s: s.update(wasted_flops=0), "run: 0 wasted FLOP"),
    ],
)
def test_the_audit_knows_failures_pauses_and_waste(change, words):
    log = failed_log()
    change(*log)
    faults = verify(*log)
    assert (words is None) == (faults == [])
    assert words is None or any(words in fault for fault in faults), faults


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 5), st.sampled_from(["dispatched_s", "arrived_s"]), st.floats(0.01, 1e6))
def test_no_shift_of_a_time_goes_unnoticed(row, column, shift):
    clients, metrics = sound_log()
    clients[row][column] += shift
    assert verify(clients, metrics)


# ---- paces that leave tasks waiting ----------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(durations, st.integers(1, 6))
def test_k_arrivals_close_the_k_first(compute_s, count):
    flight = dispatch(make_plan(compute_s), 5.0, version=0)
    closing = arrivals(count).close(flight)
    order = sorted(range(len(compute_s)), key=lambda i: (flight.arrives_s[i], i))
    merged = {i for i, s in enumerate(closing.status) if s is Status.MERGED}
    assert merged == set(order[:count])
    assert closing.at_s == max(flight.arrives_s[i] for i in merged)
    assert {s for i, s in enumerate(closing.status) if i not in merged} <= {Status.WAITING}


@settings(deadline=None, max_examples=50)
@given(durations, st.floats(0.01, 50.0), st.floats(0, 1e4))
def test_a_window_closes_at_the_first_tick_with_an_arrival(compute_s, interval_s, now_s):
    flight = dispatch(make_plan(compute_s), now_s, version=0)
    closing = window(interval_s).close(flight)
    merged = np.asarray([s is Status.MERGED for s in closing.status])
    arrives_s = flight.arrives_s
    assert merged[np.argmin(arrives_s)]
    assert np.all(arrives_s[merged] <= closing.at_s)
    assert np.all(arrives_s[~merged] > closing.at_s)
    assert closing.at_s / interval_s == pytest.approx(round(closing.at_s / interval_s), abs=1e-6)
    assert closing.at_s - np.min(arrives_s) <= interval_s * (1 + 1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: arrivals(0), "count = 0"), (lambda: window(0.0), "interval_s = 0.0")],
)
def test_paces_that_never_close(make, words):
    with pytest.raises(InputError, match=words):
        make()
