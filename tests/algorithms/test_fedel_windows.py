"""FedEL's windows: the examples and invariants of methods/fedel.md, and the Jetson Orin profile."""

import math

import numpy as np
import pytest

from fedjax_het.algorithms.fedel.tensors import TensorTimes
from fedjax_het.algorithms.fedel.windows import initial, slide, visited
from fedjax_het.common.errors import InputError

# Milliseconds of VGG16's tensors on a Jetson Orin, 32 x 32 images, batch 4 (methods/fedel.md 1.2).
_CONV_W = (0.13, 0.32, 0.23, 0.30, 0.32, 0.79, 0.78, 1.57, 3.22, 3.21, 3.15, 3.09, 3.12)
_CONV_G = (0, 0.24, 0.15, 0.27, 0.31, 0.58, 0.58, 1.08, 2.11, 2.11, 2.12, 2.19, 2.19)
_POOL = {2: 0.07, 4: 0.05, 7: 0.08, 10: 0.14, 13: 0.12}


def orin_vgg16() -> TensorTimes:
    columns = []
    for b in range(13):
        bias_w = {0: 0.07, 1: 0.09}.get(b, 0.03)
        columns.append((f"conv{b + 1}/kernel", b, _CONV_W[b], _CONV_G[b]))
        columns.append((f"conv{b + 1}/bias", b, bias_w, _POOL.get(b + 1, 0.0)))
    columns += [("fc/kernel", 13, 0.01, 0.01), ("fc/bias", 13, 0.01, 0.0)]
    names, block, weight, through = zip(*columns)
    size = np.full(len(names), 4)
    return TensorTimes(names, np.array(block), np.array(weight), np.array(through), size, 14)


TIMES = np.array([3.0, 3, 4, 2, 3, 2, 2, 3, 1])


def step(lo, hi, kept, *, times=TIMES, threshold=10.0, variant="fedel"):
    """One client's next window, blocks counted from 1 as in methods/fedel.md."""
    selected = np.zeros((1, len(times)), bool)
    selected[0, [b - 1 for b in kept]] = True
    new = slide(
        np.array([lo - 1]), np.array([hi - 1]), selected, times, np.array([threshold]), variant
    )
    return [int(edge[0]) + 1 for edge in new]


def test_first_window():
    # methods/fedel.md check 8
    lo, hi = initial(TIMES, np.array([10.0, 100.0, 1.0]))
    assert (hi + 1).tolist() == [3, 9, 1]
    assert lo.tolist() == [0, 0, 0]
    assert step(0, 0, []) == [1, 3]


@pytest.mark.parametrize(
    ("kept", "window"), [([1, 3], [1, 8]), ([2, 3], [2, 8]), ([3], [3, 8]), ([], [4, 8])]
)
def test_end_edge_follows_what_was_selected(kept, window):
    assert step(1, 3, kept) == window


def test_front_edge_moves_to_the_end_and_wraps():
    assert step(1, 8, [1, 2]) == [1, 9]
    assert step(1, 9, [1, 9]) == [1, 3]


def test_blocks_outside_the_last_window_do_not_hold_the_end_edge():
    assert step(4, 8, [1, 2, 6]) == [6, 9]


def test_consecutive_windows_of_fedel_c_share_nothing():
    windows = [[1, 3]]
    for _ in range(3):
        windows.append(step(*windows[-1], [1, 2, 3, 4, 9], variant="C"))
    assert windows == [[1, 3], [4, 8], [9, 9], [1, 3]]


def test_no_rollback_stays_at_the_end():
    assert step(1, 8, [4], variant="no_rollback") == [4, 9]
    assert step(4, 9, [9], variant="no_rollback") == [4, 9]


def test_elastic_only_is_the_whole_network():
    assert step(0, 0, [], variant="elastic_only") == [1, 9]
    assert step(1, 9, [9], variant="elastic_only") == [1, 9]


def test_a_block_longer_than_the_budget_is_a_window_of_its_own():
    times, window, seen = np.full(4, 5.0), [1, 1], []
    for _ in range(5):
        seen.append(window)
        window = step(*window, [], times=times, threshold=4.0)
    assert seen == [[1, 1], [2, 2], [3, 3], [4, 4], [1, 1]]


def test_a_network_within_the_budget_is_always_trained_whole():
    assert step(0, 0, [], threshold=99.0) == [1, 9]
    assert step(1, 9, [4], threshold=99.0) == [1, 9]


def test_where_windows_end_is_known_before_a_run():
    """The fronts of the golden case, with every variant's own end."""
    block_time, threshold = TIMES, np.array([10.0, 100.0, 1.0])
    ends = [np.flatnonzero(row).tolist() for row in visited(block_time, threshold, "fedel")]
    assert ends == [[2, 7, 8], [8], list(range(9))]
    assert visited(block_time, threshold, "elastic_only").sum(axis=1).tolist() == [1, 1, 1]


def test_unknown_variant_is_named():
    with pytest.raises(InputError, match="no_rollback"):
        step(1, 3, [], variant="norollback")


def test_invariants_of_random_walks():
    # methods/fedel.md check 9: 200 clients with their own times; selections are random, front
    # edges do not see them.
    rng = np.random.default_rng(0)
    n, blocks = 200, 9
    times = rng.uniform(0.2, 4, (n, blocks))
    threshold = rng.uniform(1, 12, n)
    fronts = []
    for trial in range(2):
        chooser = np.random.default_rng(trial)
        lo, hi = np.full(n, -1), np.zeros(n, np.int64)
        selected = np.zeros((n, blocks), bool)
        path, passes, steps = [], np.zeros(n, np.int64), np.zeros(n, np.int64)
        for _ in range(12):
            new_lo, new_hi = slide(lo, hi, selected, times, threshold)
            assert np.all((new_lo >= 0) & (new_lo <= new_hi) & (new_hi < blocks))
            wrapped = (lo < 0) | (hi == blocks - 1)
            assert np.all(wrapped | ((new_hi > hi) & (new_lo >= lo)))
            start = np.where(wrapped, 0, hi + 1)
            for i in range(n):
                fresh = times[i, start[i] : new_hi[i] + 1]
                assert new_hi[i] == blocks - 1 or fresh.sum() >= threshold[i] * (1 - 1e-8)
                assert fresh[:-1].sum() < threshold[i]
            steps = np.where(wrapped, 1, steps + 1)
            passes = np.maximum(passes, steps)
            lo, hi = new_lo, new_hi
            selected = chooser.random((n, blocks)) < 0.3
            path.append(hi)
        bound = [math.ceil(t.sum() / b) for t, b in zip(times, threshold)]
        assert np.all(passes <= bound)
        fronts.append(np.stack(path))
    np.testing.assert_array_equal(*fronts)


@pytest.mark.parametrize(
    ("slowdown", "fronts"),
    [(1, [14]), (2, [10, 14]), (3, [9, 12, 14]), (4, [9, 11, 13, 14])],
)
def test_front_edges_of_vgg16_on_orin(slowdown, fronts):
    # methods/fedel.md check 16: with the full backward time as the budget a pass takes as many
    # rounds as the slowdown.
    times = orin_vgg16()
    assert times.weight.sum() == pytest.approx(20.7, abs=0.1)
    assert times.through.sum() == pytest.approx(14.4, abs=0.1)
    lo, hi, seen = np.array([-1]), np.array([0]), []
    for _ in range(2 * len(fronts)):
        everything = np.ones((1, 14), bool)
        budget = np.array([times.total])
        lo, hi = slide(lo, hi, everything, slowdown * times.block_cost, budget)
        seen.append(int(hi[0]) + 1)
    assert seen == 2 * fronts
