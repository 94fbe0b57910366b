"""TiFL against its rule by hand."""

import dataclasses

import numpy as np
import pytest
from selections import assert_drawn_with, candidates, counted, selection

import fedjax_het as fh
from fedjax_het.contract.selection import Pool
from fedjax_het.transforms.select.tifl import _sizes


def test_tifl_draws_a_tier_and_its_clients_and_spends_credits():
    select = selection(fh.select.tifl(tiers=3, rounds=6))
    duration_s = [5, 1, 3, 6, 2, 4]  # tiers {1, 4}, {2, 5}, {0, 3}
    state, samples = select.init(6), np.ones(6, np.int64)
    assert state.credits.tolist() == [2, 2, 2]
    drawn_tiers = []
    for round in range(6):
        told = {"round": round, "samples": samples, "duration_s": duration_s, "seed": round}
        chosen, state = select.choose(state, candidates(2, **told))
        assert state.tier.tolist() == [2, 0, 1, 2, 0, 1]
        assert set(chosen) == set(np.flatnonzero(state.tier == state.current))
        drawn_tiers.append(int(state.current))
    assert np.bincount(drawn_tiers).tolist() == [2, 2, 2]
    assert state.credits.tolist() == [0, 0, 0]
    # Only the slowest tier has candidates, and too few: the nearest tier helps.
    chosen, _ = select.choose(state, candidates(2, round=7, clients=[1, 3, 5], samples=samples))
    assert 3 in chosen or 5 in chosen
    state = state._replace(credits=np.asarray([0, 0, 1]))
    chosen, _ = select.choose(state, candidates(2, round=7, clients=[1, 3, 5], samples=samples))
    assert set(chosen) == {3, 5}


@pytest.mark.parametrize("wanted", [30, 99, 100, 150])
def test_tifl_draws_uniformly_from_the_tier_and_then_from_the_nearest(wanted):
    select = selection(fh.select.tifl(tiers=3))
    told = {"samples": np.ones(312, np.int64), "duration_s": np.arange(312) % 104 + 1.0}
    _, state = select.choose(select.init(312), candidates(1, **told))
    absent = np.arange(0, 312, 52)
    idle = np.setdiff1d(np.arange(312), absent)
    for seed in range(5):
        some = candidates(wanted, seed=seed, **told)
        for pool in (Pool(idle), Pool(population=312, absent=absent)):
            rng = np.random.default_rng(seed)
            chosen, after = select.choose(state, dataclasses.replace(some, pool=pool, rng=rng))
            # The whole rule: every candidate has a place, behind those of nearer tiers.
            rng = np.random.default_rng(seed)
            drawn = int(rng.choice(3, p=np.full(3, 1 / 3)))
            place = np.abs(state.tier[idle] - drawn) + rng.random(len(idle))
            assert int(after.current) == drawn
            assert sorted(chosen) == sorted(idle[np.argsort(place)[:wanted]])


def test_tifl_draws_a_few_of_many_in_the_tier_with_equal_chances():
    select = selection(fh.select.tifl(tiers=3))
    told = {"samples": np.ones(150, np.int64), "duration_s": np.arange(150) + 1.0}
    _, state = select.choose(select.init(150), candidates(1, **told))
    assert np.bincount(state.tier).tolist() == [50, 50, 50]
    state = state._replace(chance=np.asarray([0.0, 1.0, 0.0]))
    pool = Pool(population=150, absent=[0, 60, 61])

    def choose(seed):
        some = dataclasses.replace(candidates(3, seed=seed, **told), pool=pool)
        return select.choose(state, some)[0]

    chance = np.zeros(150)
    chance[50:100] = 3 / 48
    chance[[60, 61]] = 0
    assert_drawn_with(chance, counted(3000, choose, 150), 3000)


@pytest.mark.parametrize(("n", "tiers"), [(1, 1), (7, 3), (10, 4), (12, 5)])
def test_tifl_knows_the_sizes_of_its_tiers(n, tiers):
    select = selection(fh.select.tifl(tiers=tiers))
    told = {"samples": np.ones(n, np.int64), "duration_s": np.arange(n) + 1.0}
    state, sizes = select.init(n), set()
    for seed in range(20):
        chosen, after = select.choose(state, candidates(n, seed=seed, **told))
        assert len(chosen) == n
        sizes.add(tuple(np.bincount(after.tier, minlength=tiers)))
    assert sizes == {tuple(_sizes(n, tiers))}


def test_tifl_prefers_tiers_of_low_score_when_scores_stall():
    select = selection(fh.select.tifl(tiers=3, interval=2))
    score = np.asarray([0.5, 0.9, 0.1, 0.3, 0.7, np.nan])  # of tiers [0, 0, 1, 1, 2, 2]
    told = {"samples": np.ones(6, np.int64), "duration_s": np.arange(1, 7)}
    _, state = select.choose(select.init(6), candidates(1, score=score, **told))
    np.testing.assert_allclose(state.score, [0.7, 0.2, 0.7])
    _, later = select.choose(state, candidates(1, round=1, score=score, **told))
    assert later.chance.tolist() == state.chance.tolist()  # not compared within an interval
    _, stalled = select.choose(state, candidates(1, round=2, score=score, **told))
    # Ascending: tier 1, then 0 and 2; (3 - i) / 6.
    np.testing.assert_allclose(stalled.chance, [2 / 6, 3 / 6, 1 / 6])
    _, risen = select.choose(state, candidates(1, round=2, score=score + 0.1, **told))
    np.testing.assert_allclose(risen.chance, [1 / 3] * 3)
    np.testing.assert_allclose(risen.score, [0.8, 0.3, 0.8])
    # Tiers without credits take no part in the ranking.
    spent = state._replace(credits=np.asarray([0, 5, 5]))
    _, state = select.choose(spent, candidates(1, round=2, score=score, **told))
    np.testing.assert_allclose(state.chance, [0, 2 / 3, 1 / 3])
