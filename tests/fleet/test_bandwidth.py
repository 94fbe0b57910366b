"""Transfer times through a changing rate are exact: compared with integration point by point."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.common.errors import InputError
from fedjax_het.fleet.bandwidth import BandwidthTraces, TraceLink
from fedjax_het.fleet.segments import searchsorted_runs


def build(*pieces):
    """Traces from lists of (time_s, bytes_per_s)."""
    points = np.concatenate([np.asarray(p, float) for p in pieces])
    offsets = np.append(0, np.cumsum([len(p) for p in pieces]))
    return BandwidthTraces(
        points[:, 0], points[:, 1], offsets, ("all",), np.zeros(len(pieces), int)
    )


def random_traces(rng, count):
    pieces = []
    for _ in range(count):
        m = rng.integers(1, 9)
        times = np.append(0.0, np.cumsum(rng.uniform(0.1, 3.0, m - 1)))
        rates = rng.uniform(0.0, 50.0, m) * (rng.uniform(size=m) > 0.4)
        rates[rng.integers(m)] = rng.uniform(1.0, 50.0)
        pieces.append(np.stack([times, rates], axis=1))
    return build(*pieces)


def brute_force(traces, i, phase_s, amount, start_s):
    """Walks from point to point."""
    begin, end = traces.offsets[i], traces.offsets[i + 1]
    time_s, rate = traces.time_s[begin:end], traces.bytes_per_s[begin:end]
    edges = np.append(time_s, traces.period_s[i])
    local = (start_s + phase_s) % traces.period_s[i]
    j = int(np.searchsorted(edges, local, side="right")) - 1
    elapsed, left = 0.0, float(amount)
    while True:
        span = edges[j + 1] - local
        if rate[j] > 0 and rate[j] * span >= left:
            return elapsed + left / rate[j]
        left -= rate[j] * span
        elapsed += span
        j, local = (j + 1, edges[j + 1]) if j + 2 < len(edges) else (0, 0.0)


def test_against_brute_force():
    rng = np.random.default_rng(0)
    traces = random_traces(rng, 40)
    n = 400
    link = TraceLink(traces, rng.integers(0, 40, n), rng.uniform(0, 100, n))
    amount = rng.integers(1, 2000, n)
    start = rng.uniform(0, 500, n)
    got = link.transfer_s(np.arange(n), amount, start)
    want = [
        brute_force(traces, link.trace_of_device[k], link.phase_s[k], amount[k], start[k])
        for k in range(n)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@given(split=st.integers(1, 999), start=st.floats(0, 1e4), seed=st.integers(0, 20))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_transfer_in_two_parts_takes_as_long_as_in_one(split, start, seed):
    link = TraceLink(random_traces(np.random.default_rng(seed), 1), np.zeros(1, int), np.zeros(1))
    send = lambda amount, at: link.transfer_s(np.array([0]), np.array([amount]), np.array([at]))[0]
    first = send(split, start)
    both = first + send(1000 - split, start + first)
    # Parts may meet at the edge of a silence, which belongs to neither or to the second.
    assert both == pytest.approx(send(1000, start), rel=1e-9)


def test_constant_trace_is_a_constant_rate():
    link = TraceLink(build([(0, 8.0), (1, 8.0), (3, 8.0)]), np.zeros(1, int), np.array([0.7]))
    amount = np.array([1, 100, 12345])
    got = link.transfer_s(np.zeros(3, int), amount, np.array([0.0, 2.2, 77.7]))
    np.testing.assert_allclose(got, amount / 8.0, rtol=1e-12)
    np.testing.assert_allclose(link.mean_bytes_per_s(), [8.0])


def test_edges():
    # 10 bytes/s for 2 s, then silence for 2 s; 20 bytes a pass of 4 s.
    link = TraceLink(build([(0, 10.0), (2, 0.0)]), np.zeros(1, int), np.zeros(1))
    send = lambda amount, at: link.transfer_s(np.array([0]), np.array([amount]), np.array([at]))[0]
    assert send(0, 1.0) == 0.0
    assert send(20, 0.0) == 2.0  # ends before the silence
    assert send(21, 0.0) == pytest.approx(4.1)
    assert send(10, 3.0) == 2.0  # waits out the silence
    assert send(40, 0.0) == 6.0
    assert send(20 * 1000, 0.0) == 999 * 4 + 2


def test_periods_and_means():
    traces = build([(0, 4.0)], [(0, 1.0), (1, 3.0), (3, 2.0)])
    np.testing.assert_allclose(traces.period_s, [1.0, 4.5])
    np.testing.assert_allclose(traces.cycle_bytes, [4.0, 1 + 6 + 3])
    np.testing.assert_allclose(traces.mean_bytes_per_s(), [4.0, 10 / 4.5])


@pytest.mark.parametrize("side", ["left", "right"])
def test_searchsorted_runs(side):
    rng = np.random.default_rng(1)
    runs = [np.sort(rng.integers(0, 10, rng.integers(0, 8))).astype(float) for _ in range(50)]
    offsets = np.append(0, np.cumsum([run.size for run in runs]))
    values = np.append(np.concatenate(runs), 0.0)
    x = rng.integers(-1, 11, 50).astype(float)
    got = searchsorted_runs(values, offsets[:-1], offsets[1:], x, side)
    want = [np.searchsorted(run, v, side) for run, v in zip(runs, x)] + offsets[:-1]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([[(0, 1.0), (0, 2.0)]], "increase strictly"),
        ([[(0, 1.0), (2, 2.0), (1, 1.0)]], "increase strictly"),
        ([[(1, 1.0), (2, 2.0)]], "start at 0"),
        ([[(0, 1.0)], [(3, 1.0)]], "start at 0"),
        ([[(0, np.nan)]], "rate nan|rate .*nan"),
        ([[(0, -1.0)]], ">= 0"),
        ([[(0, 1.0)], [(0, 0.0), (1, 0.0)]], r"trace \[1\] carries no bytes"),
    ],
)
def test_bad_traces_are_refused(pieces, message):
    with pytest.raises(InputError, match=message):
        build(*pieces)


def test_bad_links_are_refused():
    traces = build([(0, 1.0)])
    with pytest.raises(InputError, match=r"0\.\.0"):
        TraceLink(traces, np.array([1]), np.zeros(1))
    with pytest.raises(InputError, match="phase"):
        TraceLink(traces, np.array([0]), np.zeros(2))
    with pytest.raises(InputError, match="agree"):
        BandwidthTraces(np.zeros(2), np.ones(1), np.array([0, 1]), ("a",), np.array([0]))
