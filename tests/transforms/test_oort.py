"""Oort against its formulas by hand."""

import dataclasses
import importlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selections import assert_drawn_with, candidates, counted, inclusion, seen, selection

import fedjax_het as fh
from fedjax_het.contract.selection import Pool
from fedjax_het.transforms.select.oort import paced, preferred, scores, slowness
from fedjax_het.transforms.select.ranking import best_of, largest


def test_scores_of_oort_by_hand():
    # Round 5; (U - 2) / 8 + sqrt(.1 ln 5 / l), with the utility 10 above the 98 % quantile of
    # three values, which is the largest one.
    bonus = [math.sqrt(0.1 * math.log(5) / last) for last in (1, 2, 4)]
    expected = [0.0 + bonus[0], 0.5 + bonus[1], 1.0 + bonus[2]]
    found = scores(np.asarray([2.0, 6.0, 10.0]), np.asarray([1, 2, 4]), 5)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found, [0.40118, 0.78368, 1.20059], atol=1e-5)


def test_oort_clips_utilities_and_floors_their_range():
    utility = np.append(np.linspace(1, 2, 99), 1000.0)
    worth = scores(utility, np.ones(100, np.int64), 1)  # ln 1 = 0
    assert worth[-1] == worth[98] == pytest.approx(1 / 999)
    assert np.all(scores(np.asarray([3.0, 3.00001]), np.ones(2, np.int64), 1) <= 0.1 + 1e-9)


def test_oort_slows_clients_behind_the_preferred_duration():
    duration_s = np.asarray([4.0, 1.0, 2.0, np.nan, 8.0])
    assert preferred(duration_s, 25) == 2  # the second of four
    found = slowness(duration_s, 2.0, 2.0)
    np.testing.assert_allclose(found, [0.25, 1, 1, np.nan, 1 / 16])
    np.testing.assert_array_equal(slowness(duration_s, preferred(duration_s, 100), 2.0), np.ones(5))


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 1e300]), max_size=30), st.integers(0, 40))
def test_oort_takes_the_first_of_equal_values(values, count):
    found = largest(np.asarray(values, np.float64), count)
    wanted = np.argsort(-np.asarray(values, np.float64), kind="stable")[:count]
    assert sorted(found.tolist()) == sorted(wanted.tolist())


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.5, 1.0])), max_size=30),
    st.integers(0, 12),
    st.integers(1, 8),
)
def test_oort_finds_the_best_of_many_block_by_block(told, count, block):
    most = np.asarray([n for n, _ in told], np.int64)
    share = np.asarray([s for _, s in told], np.float64)
    eligible = np.arange(len(told)) % 3 > 0
    clients = np.flatnonzero(eligible)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(importlib.import_module(largest.__module__), "_BLOCK", block)
        found, value = best_of(eligible, most, lambda some: share[some], count)
    whole = largest(most[clients] * share[clients], count)
    assert found.tolist() == clients[whole].tolist()
    assert value.tolist() == (most * share)[found].tolist()


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.lists(st.integers(0, 399), max_size=30, unique=True), min_size=1, max_size=6),
    st.booleans(),
)
def test_draws_of_a_server_step_are_those_of_each_by_itself(seed, absent, listed):
    select, rng = selection(fh.select.oort(preferred_percent=50)), np.random.default_rng(seed)
    some = rng.integers(1, 4, 400)  # many equal rewards
    told = {"samples": some, "duration_s": rng.choice([1.0, 2.0, 4.0], 400), "round": 3}
    seen_at = np.where(rng.random(400) < rng.choice([0.1, 0.9, 1.0]), 1, -1)
    start = select.init(400)._replace(utility=np.where(seen_at < 0, np.nan, rng.random(400)))
    if seed % 2:  # else planned by the first draw, and those who are away then by a later one
        start = start._replace(expected_s=told["duration_s"])
    state, memo = start, {}
    for turn, away in enumerate(absent):
        pool = Pool(population=400, absent=away)
        pool = Pool(pool.ids) if listed else pool
        one = candidates(1 + turn % 3, seed=turn, seen=seen_at, **told)
        alone, _ = select.choose(state, dataclasses.replace(one, pool=pool))
        rng = np.random.default_rng(turn)
        shared, state = select.choose(
            state, dataclasses.replace(one, pool=pool, rng=rng, memo=memo)
        )
        assert shared.tolist() == alone.tolist()


def test_the_pacer_of_oort():
    flat, steep = np.asarray([1.0, 1.0, 1.1, 1.0]), np.asarray([1.0, 1.0, 9.0, 5.0])
    middling = np.asarray([1.0, 1.0, 2.0, 2.0])
    assert paced(10.0, flat, 4, 5.0) == 15.0
    assert paced(10.0, steep, 4, 5.0) == 5.0
    assert paced(5.0, steep, 4, 5.0) == 5.0
    assert paced(98.0, flat, 4, 5.0) == 100.0
    assert paced(10.0, middling, 4, 5.0) == 10.0
    # Not before two windows are over, nor within one.
    assert [paced(10.0, flat, rounds, 5.0) for rounds in (2, 3, 5, 7)] == [10.0] * 4
    # After six rounds the oldest window is that of rounds 2 and 3.
    assert paced(10.0, np.asarray([9.0, 5.0, 1.0, 1.0]), 6, 5.0) == 5.0


def test_oort_learns_utilities_and_the_history_of_those_it_exploits():
    select = selection(fh.select.oort(pacer_rounds=2))
    state = select.init(5)._replace(exploited=np.asarray([True, False, True, True, True]))
    one = seen(
        3,
        [0, 1, 2, 3],
        [2.0, 3.0, np.nan, np.nan],
        status=["merged", "partial", "nonfinite", "dropped"],
        samples=[50, 200, 10, 0],
        sizes=[100, 40, 100, 100],
    )
    # Losses 1 and 3 in two batches of one size: their mean is 2, that of their squares is 5.
    square = np.asarray([5.0, 9.0, np.nan, np.nan])
    after = select.observe(state, one._replace(square_loss=square))
    # 50 samples x sqrt(5), 40 of its own x 3; an update that is not finite; no answer; not
    # selected.
    worth = 50 * math.sqrt(5)
    np.testing.assert_allclose(after.utility, [worth, 120, 0, np.nan, np.nan])
    np.testing.assert_allclose(after.history, [0, 0, 0, worth])
    assert np.all(np.isnan(state.utility))  # states are values


def test_oort_explores_by_samples_and_speed_and_exploits_by_score():
    select = selection(fh.select.oort(exploration=0.5, decay=1.0, cut=1.0, preferred_percent=25))
    samples = np.asarray([1, 1, 1, 1, 30, 40, 50, 60])
    duration_s = [1, 1, 1, 1, 2, 1, 1, 1]
    utility = np.asarray([1.0, 9.0, 5.0, 4.0, np.nan, np.nan, np.nan, np.nan])
    state = select.init(8)._replace(utility=utility)
    now = {"round": 4, "samples": samples, "duration_s": duration_s}
    now["seen"] = [0, 1, 1, 3, -1, -1, -1, -1]

    def choose(seed):
        chosen, after = select.choose(state, candidates(4, seed=seed, **now))
        assert set(np.flatnonzero(after.exploited)) == {i for i in chosen if i < 4}
        return chosen

    counts = counted(3000, choose, 8)
    # floor(.5 x 4) = 2 are exploited, from the best three: the score at rank 2 is the third.
    bonus = np.sqrt(0.1 * np.log(5) / np.asarray([1, 2, 2, 4]))
    score = (utility[:4] - 1) / 8 + bonus
    assert np.argsort(-score).tolist() == [1, 2, 3, 0]
    chance = np.zeros(8)
    chance[[1, 2, 3]] = inclusion(score[[1, 2, 3]].tolist(), 2)
    chance[4:] = inclusion([30 / 4, 40, 50, 60], 2)
    assert_drawn_with(chance, counts, 3000)


def test_oort_fills_a_cohort_from_the_other_kind():
    select = selection(fh.select.oort())
    fresh = select.init(4)
    assert set(select.choose(fresh, candidates(4))[0]) == {0, 1, 2, 3}
    # One client is unseen, so three are exploited at an epsilon of 0.9.
    state = fresh._replace(utility=np.asarray([1.0, 2.0, 3.0, np.nan]))
    chosen, after = select.choose(state, candidates(4, seen=[0, 0, 0, -1], round=1))
    assert sorted(chosen) == [0, 1, 2, 3]
    assert after.exploited.tolist() == [True, True, True, False]
    # Nobody is unseen.
    state = fresh._replace(utility=np.asarray([1.0, 2.0, 3.0, 4.0]))
    chosen, _ = select.choose(state, candidates(3, seen=[0, 0, 0, 0], round=1))
    assert len(set(chosen)) == 3


def test_epsilon_of_oort_falls_to_its_floor():
    select = selection(fh.select.oort())
    state = select.init(40)._replace(utility=np.where(np.arange(40) < 20, 1.0, np.nan))
    told = {"samples": np.ones(40, np.int64), "seen": np.where(np.arange(40) < 20, 0, -1)}

    def exploited(round):
        chosen, _ = select.choose(state, candidates(10, round=round, **told))
        return int(np.sum(chosen < 20))

    # floor(10 (1 - .9 x .95^r)), at most floor(10 x .8).
    assert [exploited(r) for r in (0, 1, 5, 12, 29, 100)] == [1, 1, 3, 5, 7, 8]
