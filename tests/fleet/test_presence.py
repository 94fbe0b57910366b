"""How long devices stay on: against lists of intervals in plain Python; joining and leaving."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from presence import Listed

from fedjax_het.fleet.availability import always, from_intervals
from fedjax_het.fleet.membership import Membership

ONE = np.zeros(1, np.int64)


@st.composite
def devices(draw):
    """A device with times in sixteenths, which are exact, as an availability and as a list."""
    sixteenths = lambda low, high: draw(st.integers(low, high)) / 16
    ends = draw(st.sampled_from([set(), {0}, {160}, {0, 160}]))
    edges = sorted(ends | draw(st.sets(st.integers(0, 160), min_size=2, max_size=8)))
    # Some intervals touch, in a cycle or across its end.
    spans = list(itertools.pairwise(edges))
    chosen = draw(st.sets(st.integers(0, len(spans) - 1), min_size=1))
    on = np.asarray([spans[i] for i in sorted(chosen)]) / 16
    repeats = draw(st.booleans())
    period = 10.0 + draw(st.sampled_from([0, sixteenths(0, 32)])) if repeats else np.inf
    phase = sixteenths(0, 80)
    joins, leaves = 0.0, np.inf
    when = from_intervals([on], [period], [phase])
    if draw(st.booleans()):
        joins = sixteenths(0, 320)
        leaves = joins + sixteenths(1, 1600) if draw(st.booleans()) else np.inf
        when = Membership(when, np.array([joins]), np.array([leaves]))
    return when, Listed(on.tolist(), period, phase, joins, leaves)


@settings(deadline=None, max_examples=300)
@given(devices(), st.integers(0, 1600), st.integers(0, 1600), st.integers(1, 160))
def test_times_on_are_those_of_the_listed_intervals(device, now, later, on_s):
    when, listed = device
    now, later, on_s = now / 16, (now + later) / 16, on_s / 16
    assert when.next_available(ONE, now)[0] == listed.next(now)
    if listed.until(now) is not None:
        assert when.on_until(ONE, now)[0] == listed.until(now)
    assert when.on_between(ONE, now, later)[0] == listed.between(now, later)
    assert when.spent_at(ONE, now, on_s)[0] == listed.spent(now, on_s)
    ends = when.off_after(ONE)[0]
    if np.isfinite(ends):
        assert when.next_available(ONE, ends)[0] == np.inf
        assert all(end <= ends for _, end in listed.on)


def test_many_devices_are_asked_at_once():
    on = [np.array([[0.0, 4.0], [6.0, 8.0]]), np.array([[1.0, 2.0]]), np.array([[0.0, 3.0]])]
    when = from_intervals(on, [10.0, 5.0, np.inf])
    who = np.array([2, 0, 1, 0])
    now = np.array([1.0, 3.0, 6.5, 25.0])
    assert when.next_available(who, now).tolist() == [1.0, 3.0, 6.5, 26.0]
    assert when.on_until(who, now).tolist() == [3.0, 4.0, 7.0, 28.0]
    assert when.on_between(who, now, 100.0).tolist() == [2.0, 57.0, 18.5, 44.0]
    assert when.spent_at(who, now, 2.0).tolist() == [3.0, 7.0, 16.5, 28.0]
    assert when.spent_at(who, now, 2.5).tolist() == [np.inf, 7.5, 17.0, 30.5]
    assert when.off_after(who).tolist() == [3.0, np.inf, np.inf, np.inf]
    assert when.describe()["devices_that_end"] == 1


def test_intervals_that_touch_are_one():
    """From 22 to 6 o'clock, cut at midnight; all day, in two parts; twice, once."""
    on = [np.array(hours) for hours in ([[0, 6], [22, 24]], [[0, 9], [9, 24]], [[1, 2], [2, 5]])]
    when = from_intervals(on, [24.0, 24.0, np.inf])
    who = np.array([0, 0, 0, 1, 2])
    now = np.array([3.0, 12.0, 47.0, 100.0, 1.0])
    assert when.on_until(who, now).tolist() == [6.0, 30.0, 54.0, np.inf, 5.0]
    assert when.next_available(who, now).tolist() == [3.0, 22.0, 47.0, 100.0, 1.0]
    assert when.describe()["on_median_s"] == 5.0
    within = Membership(when, np.zeros(3), np.array([np.inf, 200.0, np.inf]))
    assert within.on_until(who, now).tolist() == [6.0, 30.0, 54.0, 200.0, 5.0]


def test_devices_that_are_always_on():
    who = np.arange(2)
    assert always().on_until(who, 3.0).tolist() == [np.inf] * 2
    assert always().on_between(who, 3.0, np.array([4.0, 6.0])).tolist() == [1.0, 3.0]
    assert always().spent_at(who, np.array([3.0, 4.0]), 2.0).tolist() == [5.0, 6.0]
    assert always().off_after(who).tolist() == [np.inf] * 2


def test_long_runs_lose_no_digits():
    when = from_intervals([np.array([[0.0, 0.1]])], [1.0])
    assert when.on_between(ONE, 1e6 + 0.05, 1e6 + 7.05)[0] == pytest.approx(0.7, abs=1e-9)
    assert when.spent_at(ONE, 1e6 + 0.05, 0.7)[0] == pytest.approx(1e6 + 7.05, abs=1e-9)
