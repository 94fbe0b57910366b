"""The next time a device is on: never earlier than asked, and on when it says so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.common.errors import InputError
from fedjax_het.fleet.availability import always, from_intervals, synthetic

DAY = [np.array([[2.0, 4.0], [6.0, 7.0]]), np.array([[0.0, 1.0]]), np.array([[9.0, 10.0]])]


def brute_force(intervals, period, phase, now):
    cycle = np.floor((now + phase) / period) - 1
    for k in range(4):
        for start, end in intervals:
            base = (cycle + k) * period - phase
            if now < base + end:
                return max(now, base + start)
    raise AssertionError


def test_always():
    np.testing.assert_array_equal(always().next_available(np.array([5, 9]), 3.0), [3.0, 3.0])
    assert always().num_devices is None


def test_intervals_and_wrap_around():
    on = from_intervals(DAY, [10.0] * 3)
    ask = lambda now: on.next_available(np.arange(3), now).tolist()
    assert ask(0.0) == [2.0, 0.0, 9.0]
    assert ask(3.5) == [3.5, 10.0, 9.0]
    assert ask(4.0) == [6.0, 10.0, 9.0]  # half open: off at the end
    assert ask(8.0) == [12.0, 10.0, 9.0]
    assert ask(9.5) == [12.0, 10.0, 9.5]
    assert ask(23.0) == [23.0, 30.0, 29.0]
    np.testing.assert_allclose(on.on_fraction(), [0.3, 0.1, 0.1])


def test_different_times_per_client():
    on = from_intervals(DAY, [10.0] * 3, [1.0, 0.0, 0.0])
    got = on.next_available(np.array([0, 0, 2]), np.array([0.0, 1.5, 12.0]))
    np.testing.assert_allclose(got, [1.0, 1.5, 19.0])


@given(now=st.floats(0, 1e8), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_invariants(now, seed):
    on = synthetic(50, seed, intervals_per_device=8)
    clients = np.arange(50)
    then = on.next_available(clients, now)
    assert (then >= now).all()
    # On at the time that was answered: asking again changes nothing.
    np.testing.assert_array_equal(on.next_available(clients, then), then)
    # Waiting is bounded by one cycle, and a later question never gets an earlier answer.
    assert (then - now <= on.period_s).all()
    assert (on.next_available(clients, now + 10.0) >= then - 1e-6).all()
    for k in (0, 17):
        rows = slice(on.offsets[k], on.offsets[k + 1])
        pairs = np.stack([on.start_s[rows], on.end_s[rows]], axis=1)
        want = brute_force(pairs, on.period_s[k], on.phase_s[k], now)
        assert then[k] == pytest.approx(want, abs=2e-6 + 1e-15 * now)


def test_synthetic_matches_the_published_statistics():
    on = synthetic(4000, 3)
    numbers = on.describe()
    assert numbers["on_median_s"] == pytest.approx(138, rel=0.02)
    assert numbers["off_median_s"] == pytest.approx(476, rel=0.02)
    assert numbers["on_fraction_median"] == pytest.approx(0.055, abs=0.004)
    # About as many are on at any moment as the mean share says.
    share = np.mean(on.next_available(np.arange(4000), 12345.0) == 12345.0)
    assert share == pytest.approx(on.on_fraction().mean(), abs=0.015)


def test_synthetic_is_seeded_and_handles_ten_thousand():
    a, b, c = synthetic(10_000, 0), synthetic(10_000, 0), synthetic(10_000, 1)
    clients = np.arange(10_000)
    np.testing.assert_array_equal(a.next_available(clients, 5e5), b.next_available(clients, 5e5))
    assert (a.next_available(clients, 5e5) != c.next_available(clients, 5e5)).any()


def test_zero_length_intervals_are_dropped():
    on = from_intervals([np.array([[1.0, 1.0], [3.0, 4.0]])], [5.0])
    assert on.next_available(np.array([0]), 0.0)[0] == 3.0


@pytest.mark.parametrize(
    ("on_s", "period", "message"),
    [
        ([np.zeros((0, 2))], [5.0], "device 0 is never on"),
        ([np.array([[1.0, 1.0]])], [5.0], "never on"),
        ([np.array([[2.0, 1.0]])], [5.0], "sorted"),
        ([np.array([[1.0, 3.0], [2.0, 4.0]])], [5.0], "disjoint"),
        ([np.array([[1.0, 6.0]])], [5.0], "within"),
        ([np.array([[np.nan, 2.0]])], [5.0], "sorted"),
        ([np.array([[1.0, 2.0]])], [0.0], "period"),
        ([np.array([[1.0, 2.0]])], [5.0, 5.0], "equal in number"),
        ([], [], "at least one"),
    ],
)
def test_bad_intervals_are_refused(on_s, period, message):
    with pytest.raises(InputError, match=message):
        from_intervals(on_s, period)


@pytest.mark.parametrize(
    "bad",
    [
        {"num_devices": 0},
        {"on_fraction": 0.0},
        {"on_fraction": 0.5},
        {"on_median_s": -1.0},
        {"intervals_per_device": 0},
    ],
)
def test_bad_statistics_are_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        synthetic(**{"num_devices": 3, "seed": 0, **bad})
