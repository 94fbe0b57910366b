"""Selections against their formulas by hand, on small tables without training."""

import itertools
import math

import numpy as np
import pytest
from problems import digits_problem

import fedjax_het as fh
from fedjax_het.common.errors import InputError
from fedjax_het.contract.plan import Timing
from fedjax_het.contract.selection import Candidates, Seen, Selector
from fedjax_het.engine.selecting import note, nothing_known
from fedjax_het.transforms.named import named
from fedjax_het.transforms.select import SELECTIONS
from fedjax_het.transforms.select.fedcs import scheduled
from fedjax_het.transforms.select.oort import paced, scores, slowness
from fedjax_het.transforms.select.parts import at_share, drawn

SAMPLES = np.asarray([10, 20, 30, 40])


def selection(transformation):
    """What the transformation makes of a method's selection."""
    return transformation(fh.algorithms.fedavg(digits_problem(), learning_rate=0.1)).select


def candidates(wanted, *, round=0, clients=None, samples=SAMPLES, seed=0, duration_s=None, **known):
    n = len(samples)
    duration_s = np.ones(n) if duration_s is None else np.asarray(duration_s, np.float64)

    def price(asked):
        none = np.zeros(len(asked))
        return Timing(none, duration_s[asked], none, none, none, none)

    return Candidates(
        round=round,
        now_s=0.0,
        clients=np.arange(n) if clients is None else np.asarray(clients),
        wanted=wanted,
        rng=np.random.default_rng(seed),
        samples=np.asarray(samples),
        known=nothing_known(n)._replace(**{k: np.asarray(v) for k, v in known.items()}),
        price=price,
    )


def seen(round, clients, loss, *, status="merged", samples=None, sizes=None):
    k = len(clients)
    sizes = np.full(k, 100) if sizes is None else np.asarray(sizes)
    return Seen(
        round=round,
        clients=np.asarray(clients),
        status=np.broadcast_to(np.asarray(status), k),
        loss=np.asarray(loss, np.float64),
        samples=sizes if samples is None else np.asarray(samples),
        sizes=sizes,
        duration_s=np.ones(k),
    )


def inclusion(weight, count):
    """Probability of each client to be among `count` drawn in proportion to weights, exactly."""
    chance = np.zeros(len(weight))
    for order in itertools.permutations(range(len(weight)), count):
        p, rest = 1.0, sum(weight)
        for i in order:
            p *= weight[i] / rest
            rest -= weight[i]
        chance[list(order)] += p
    return chance


def assert_drawn_with(chance, counts, draws):
    """Within four standard errors of the frequencies."""
    error = np.sqrt(chance * (1 - chance) / draws)
    assert np.all(np.abs(counts / draws - chance) <= 4 * error + 1e-12)


def counted(draws, choose, n):
    counts = np.zeros(n)
    for seed in range(draws):
        chosen = choose(seed)
        assert len(np.unique(chosen)) == len(chosen)
        counts[chosen] += 1
    return counts


# ---- parts ---------------------------------------------------------------------------------------


def test_clients_without_weight_are_drawn_last():
    rng = np.random.default_rng(0)
    chosen = drawn(rng, np.asarray([7, 8, 9]), np.asarray([0.0, 1.0, 2.0]), 3)
    assert chosen[-1] == 7
    assert drawn(rng, np.arange(0), np.zeros(0), 0).size == 0


def test_quantiles_are_values_in_order():
    values = np.asarray([5.0, 1.0, 3.0, 2.0, 4.0])
    assert [at_share(values, share) for share in (0, 0.1, 0.2, 0.6, 0.98, 1)] == [1, 1, 2, 4, 5, 5]


# ---- by samples and by loss ----------------------------------------------------------------------


def test_weighted_selection_has_the_exact_probabilities():
    choose = selection(fh.select.weighted())
    counts = counted(6000, lambda seed: choose(candidates(2, seed=seed)), 4)
    assert_drawn_with(inclusion(SAMPLES, 2), counts, 6000)


def test_power_of_choice_keeps_the_highest_losses_of_those_drawn_by_samples():
    choose = selection(fh.select.power_of_choice(d=10)).choose
    loss = [0.3, 0.9, np.nan, 0.5]
    assert choose((), candidates(3, loss=loss))[0].tolist() == [2, 1, 3]  # all are compared
    assert choose((), candidates(2, loss=loss, clients=[0, 1, 3]))[0].tolist() == [1, 3]


def test_power_of_choice_draws_its_candidates_by_samples():
    problem = digits_problem()
    method = fh.algorithms.fedavg(problem, learning_rate=0.1, clients_per_round=1)
    choose = fh.select.power_of_choice(d=2)(method).select.choose
    loss = [4.0, 3.0, 2.0, 1.0]
    counts = counted(4000, lambda seed: choose((), candidates(1, loss=loss, seed=seed))[0], 4)
    # Client i is kept if it is among the two drawn and its partner is a later one.
    pair = lambda i, j: sum(
        SAMPLES[a] / 100 * SAMPLES[b] / (100 - SAMPLES[a]) for a, b in ((i, j), (j, i))
    )
    chance = np.asarray([sum(pair(i, j) for j in range(i + 1, 4)) for i in range(4)])
    assert_drawn_with(chance, counts, 4000)


# ---- Oort ----------------------------------------------------------------------------------------


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
    worth = scores(utility, np.ones(100), 1)  # ln 1 = 0
    assert worth[-1] == worth[98] == pytest.approx(1 / 999)
    assert np.all(scores(np.asarray([3.0, 3.00001]), np.ones(2), 1) <= 0.1 + 1e-9)


def test_oort_slows_clients_behind_the_preferred_duration():
    duration_s = np.asarray([4.0, 1.0, 2.0, np.nan, 8.0])
    found = slowness(duration_s, 25, 2.0)  # preferred: 2 s, the second of four
    np.testing.assert_allclose(found, [0.25, 1, 1, np.nan, 1 / 16])
    np.testing.assert_array_equal(slowness(duration_s, 100, 2.0), np.ones(5))


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
    after = select.observe(state, one)
    # 50 samples x 2, 40 of its own x 3; an update that is not finite; no answer; not selected.
    np.testing.assert_array_equal(after.utility, [100, 120, 0, np.nan, np.nan])
    np.testing.assert_array_equal(after.history, [0, 0, 0, 100])
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


# ---- TiFL ----------------------------------------------------------------------------------------


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


# ---- FedCS ---------------------------------------------------------------------------------------


def test_fedcs_schedules_by_hand():
    timing = Timing(
        download_s=np.asarray([1.0, 1.0, 3.0, 1.0]),
        compute_s=np.asarray([4.0, 1.0, 1.0, 10.0]),
        upload_s=np.asarray([2.0, 2.0, 1.0, 1.0]),
        bytes_down=np.zeros(4),
        bytes_up=np.zeros(4),
        flops=np.zeros(4),
    )
    # Client 1 ends at 1 + 1 + 2 = 4. Then client 2: download 3, uploads after 3, ends at 3 + 4 = 7;
    # client 0 computes until 4, ends at 1 + 6 = 7, and comes first as the lower id. Client 2 next:
    # 3 + 6 + 1 = 10. Client 3: 3 + 10 + 1 = 14.
    assert scheduled(timing, 4, 14.0).tolist() == [1, 0, 2, 3]
    assert scheduled(timing, 4, 13.9).tolist() == [1, 0, 2]
    assert scheduled(timing, 4, 9.0).tolist() == [1, 0]
    assert scheduled(timing, 1, 9.0).tolist() == [1]
    assert scheduled(timing, 4, 3.0).size == 0


def test_fedcs_asks_some_clients_and_needs_one_in_time():
    choose = selection(fh.select.fedcs(deadline_s=5.0, asked=3)).choose
    duration_s = [3.0, 1.0, 2.0, 9.0]
    found = {tuple(choose((), candidates(2, duration_s=duration_s, seed=s))[0]) for s in range(40)}
    # Asked {0,1,2}: 1, 2; {0,1,3}: 1, 0; {0,2,3}: 2, 0; {1,2,3}: 1, 2. Uploads take no time.
    assert found == {(1, 2), (1, 0), (2, 0)}
    choose = selection(fh.select.fedcs(deadline_s=0.5)).choose
    with pytest.raises(InputError, match=r"deadline_s = 0.5.*less than the 1 s"):
        choose((), candidates(2, duration_s=duration_s))


# ---- what is known, and methods ------------------------------------------------------------------


def test_the_table_of_what_is_known():
    known = nothing_known(4)
    settled = seen(
        5,
        [0, 1, 2],
        [0.5, np.nan, np.nan],
        status=["merged", "nonfinite", "dropped"],
    )
    note(known, settled._replace(duration_s=np.asarray([3.0, 4.0, 2.0])))
    np.testing.assert_array_equal(known.loss, [0.5, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(known.duration_s, [3, 4, 2, np.nan])
    assert known.seen.tolist() == [5, 5, -1, -1]
    assert known.failures.tolist() == [0, 1, 1, 0]


def test_methods_compose_and_know_their_selection():
    problem = digits_problem()
    plain = fh.algorithms.fedavg(problem, learning_rate=0.1)
    by_hand = fh.compose(plain, fh.select.weighted(), fh.select.oort(cut=0.7))
    by_name = fh.algorithms.build(
        "fedavg", problem, learning_rate=0.1, select={"name": "oort", "cut": 0.7}
    )
    assert by_hand.options == by_name.options
    assert by_hand.options["select"]["name"] == "oort"
    assert by_hand.options["select"]["cut"] == 0.7
    assert by_hand.options["select"]["exploration"] == 0.9
    assert "select" not in plain.options
    assert fh.compose(plain) is plain


def test_rounds_run_in_batches_unless_the_selection_learns():
    plain = fh.algorithms.fedavg(digits_problem(), learning_rate=0.1)
    ahead = {
        name: named(options, SELECTIONS, "select")(plain).plans_ahead
        for name, options in {
            "uniform": "uniform",
            "weighted": "weighted",
            "oort": "oort",
            "power_of_choice": {"name": "power_of_choice", "d": 8},
            "tifl": "tifl",
            "fedcs": {"name": "fedcs", "deadline_s": 1.0},
        }.items()
    }
    assert set(ahead) == set(fh.transforms.select.SELECTIONS)
    assert [name for name, batches in ahead.items() if batches] == ["uniform", "weighted"]
    assert not isinstance(selection(fh.select.weighted()), Selector)
