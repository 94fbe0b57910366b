"""A fleet's durations: exact where constant, mean one where random, and never zero."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.common.errors import InputError
from fedjax_het.fleet.availability import from_intervals
from fedjax_het.fleet.bandwidth import BandwidthTraces, TraceLink
from fedjax_het.fleet.device import Fleet

ALL = np.arange(4)
SPEED = np.array([1.0, 2.0, 4.0, 8.0]) * 1e9


def steady_link(n, rate):
    traces = BandwidthTraces(
        np.array([0.0, 5.0]), np.array([rate, rate]), np.array([0, 2]), ("x",), np.array([0])
    )
    return TraceLink(traces, np.zeros(n, int), np.zeros(n))


def test_numbers_hold_for_every_device_and_arrays_are_frozen():
    fleet = Fleet(SPEED, uplink_bytes_per_s=5.0, groups=np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(fleet.uplink_bytes_per_s, [5.0] * 4)
    assert fleet.num_devices == 4
    with pytest.raises(ValueError, match="read-only"):
        fleet.flops_per_s[0] = 1.0


def test_twice_as_slow_takes_twice_as_long_and_moves_the_maximum():
    fleet = Fleet(np.append(SPEED, SPEED[0] / 2))
    timing = fleet.timing(np.arange(5), 1e9, 0, 0, 0.0, None)
    np.testing.assert_allclose(timing.total_s, [1, 0.5, 0.25, 0.125, 2])
    assert timing.total_s.max() == 2 * timing.total_s[:4].max()


def test_permuting_clients_permutes_the_timing():
    fleet = Fleet(SPEED, downlink_bytes_per_s=SPEED / 1e3, latency_s=0.1)
    order = np.array([2, 0, 3, 1])
    bytes_down = np.array([10, 20, 30, 40]) * 1000
    straight = fleet.timing(ALL, SPEED, bytes_down, 0, 0.0, None)
    shuffled = fleet.timing(ALL[order], SPEED[order], bytes_down[order], 0, 0.0, None)
    for a, b in zip(straight, shuffled):
        np.testing.assert_array_equal(a[order], b)


def test_latency_is_charged_per_transfer_that_has_bytes():
    fleet = Fleet(SPEED, latency_s=0.25)
    timing = fleet.timing(ALL[:2], 1e9, np.array([1, 0]), np.array([1, 1]), 0.0, None)
    np.testing.assert_allclose(timing.download_s, [0.25, 0.0])
    np.testing.assert_allclose(timing.upload_s, [0.25, 0.25])
    np.testing.assert_array_equal(timing.bytes_down, [1, 0])


@given(
    flops=st.floats(1.0, 1e15),
    down=st.integers(0, 10**10),
    up=st.integers(0, 10**10),
    jitter=st.floats(0, 1.5),
    seed=st.integers(0, 100),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_every_duration_is_positive_in_sum(flops, down, up, jitter, seed):
    fleet = Fleet(SPEED, SPEED / 100, SPEED / 1000, compute_jitter=jitter, link_jitter=jitter)
    timing = fleet.timing(ALL, flops, down, up, 3.0, np.random.default_rng(seed))
    assert (timing.total_s > 0).all()
    assert np.isfinite(timing.total_s).all()
    assert all((part >= 0).all() for part in timing[:3])


@pytest.mark.parametrize(
    "random",
    [
        {"compute_jitter": 0.8},
        {"compute_distribution": "exponential"},
        {"compute_distribution": "exponential", "compute_stages": 5},
    ],
    ids=["lognormal", "exponential", "stages"],
)
def test_jitter_keeps_the_mean(random):
    n = 200_000
    fleet = Fleet(np.full(n, 1e9), **random)
    drawn = fleet.timing(np.arange(n), 2e9, 0, 0, 0.0, np.random.default_rng(0)).compute_s
    expected = fleet.timing(np.arange(n), 2e9, 0, 0, 0.0, None).compute_s
    np.testing.assert_array_equal(expected, 2.0)
    assert drawn.mean() == pytest.approx(2.0, rel=0.01)
    if "compute_jitter" in random:
        assert np.log(drawn).std() == pytest.approx(0.8, rel=0.01)
    else:
        stages = random.get("compute_stages", 1)
        assert drawn.std() == pytest.approx(2.0 / np.sqrt(stages), rel=0.01)


def test_waiting_for_all_of_20_exponential_users():
    # methods/adel_fl.md 5: E[max of 20 Erlang(8, 1)] = 14.14 +- 0.05.
    n = 20 * 20_000
    fleet = Fleet(np.ones(n), compute_distribution="exponential", compute_stages=8)
    times = fleet.timing(np.arange(n), 8.0, 0, 0, 0.0, np.random.default_rng(1)).total_s
    assert times.reshape(-1, 20).max(axis=1).mean() == pytest.approx(14.14, abs=0.05)


def test_jitter_is_reproducible_and_drawn_anew():
    fleet = Fleet(SPEED, 1e6, 1e6, compute_jitter=0.3, link_jitter=0.3)
    draw = lambda rng: fleet.timing(ALL, 1e9, 1000, 1000, 0.0, rng)
    rng = np.random.default_rng(5)
    first, second = draw(rng), draw(rng)
    np.testing.assert_array_equal(first.total_s, draw(np.random.default_rng(5)).total_s)
    assert (first.total_s != second.total_s).all()
    assert (first.download_s != first.upload_s).all()


def test_traces_replace_rates_and_the_upload_starts_after_the_computation():
    # 10 bytes/s for 5 s, then silence for 5 s.
    traces = BandwidthTraces(
        np.array([0.0, 5.0]), np.array([10.0, 0.0]), np.array([0, 2]), ("x",), np.array([0])
    )
    link = TraceLink(traces, np.zeros(1, int), np.zeros(1))
    fleet = Fleet(np.ones(1), downlink_trace=link, uplink_trace=link)
    timing = fleet.timing(np.array([0]), 3.0, 40, 10, 20.0, None)
    np.testing.assert_allclose(timing.download_s, [4.0])  # 20 -> 24
    np.testing.assert_allclose(timing.compute_s, [3.0])  # 24 -> 27, in the silence
    np.testing.assert_allclose(timing.upload_s, [4.0])  # silence until 30, then one second


def test_availability_is_asked_through_the_fleet():
    on = from_intervals([np.array([[5.0, 6.0]])] * 4, [10.0] * 4)
    fleet = Fleet(SPEED, availability=on)
    np.testing.assert_array_equal(fleet.next_available(np.array([3, 1]), 0.0), [5.0, 5.0])
    np.testing.assert_array_equal(Fleet(SPEED).next_available(np.array([3, 1]), 7.5), [7.5, 7.5])


def test_describe_is_strict_json():
    fleet = Fleet(SPEED, groups=np.array([0, 1, 1, 1]), group_names=("fast", "slow"))
    text = json.dumps(fleet.describe(), allow_nan=False)
    content = json.loads(text)
    assert content["groups"] == {"fast": 1, "slow": 3}
    assert content["memory_bytes (min, median, max)"] == [None, None, None]
    assert content["flops_per_s (min, median, max)"][0] == 1e9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flops_per_s": np.array([1.0, 0.0])}, "flops_per_s = .*0.*device .*1.*positive"),
        ({"flops_per_s": np.array([1.0, -2.0])}, "positive"),
        ({"flops_per_s": np.array([1.0, np.nan])}, "positive"),
        ({"flops_per_s": np.array([1.0, np.inf])}, "finite"),
        ({"flops_per_s": np.ones((2, 2))}, "one number per device"),
        ({"flops_per_s": np.array([])}, "n >= 1"),
        ({"uplink_bytes_per_s": np.ones(3)}, "uplink_bytes_per_s of shape .3,.*shape .2,"),
        ({"downlink_bytes_per_s": 0.0}, "downlink_bytes_per_s"),
        ({"memory_bytes": -1.0}, "memory_bytes"),
        ({"latency_s": np.inf}, "latency_s"),
        ({"link_jitter": -0.1}, "link_jitter"),
        ({"groups": np.array([0, -1])}, "groups"),
        ({"groups": np.array([0, 2]), "group_names": ("a", "b")}, "group 2 with 2"),
        ({"compute_distribution": "exponentail"}, "did you mean 'exponential'"),
        ({"compute_stages": 3}, "stages belong to 'exponential'"),
        ({"compute_distribution": "exponential", "compute_jitter": 0.1}, "jitter to 'lognormal'"),
        ({"downlink_trace": steady_link(3, 1.0)}, "TraceLink of 3 devices in a fleet of 2"),
        ({"uplink_trace": steady_link(2, 1.0), "link_jitter": 0.1}, "already varies"),
        ({"availability": from_intervals([np.array([[0.0, 1.0]])], [2.0])}, "of 1 devices"),
    ],
)
def test_bad_fleets_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Fleet(**{"flops_per_s": np.ones(2), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clients": np.array([4])}, r"ids in 0\.\.3"),
        ({"clients": np.array([0.0])}, "clients"),
        ({"clients": np.array([[0]])}, "vector"),
        ({"flops": np.ones(2)}, "flops"),
        ({"flops": -1.0}, "flops"),
        ({"flops": np.nan}, "flops"),
        ({"bytes_up": 0.5}, "whole bytes"),
        ({"bytes_down": -1}, "bytes_down"),
        ({"now_s": -1.0}, "now_s"),
        ({"flops": 0.0, "bytes_up": 10**6}, "client .*0.* takes .*0.* s.*more than 0 s"),
        ({"flops": 1e25}, r"client .*0.* takes .* s.*at most 1e\+12 s.*faster device or link"),
    ],
)
def test_bad_tasks_are_refused(arguments, message):
    task = {"clients": ALL[:1], "flops": 1.0, "bytes_down": 0, "bytes_up": 0, "now_s": 0.0}
    with pytest.raises(InputError, match=message):
        Fleet(SPEED).timing(**{**task, **arguments}, rng=None)
