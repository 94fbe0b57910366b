"""DTFL's scheduler and what it believes: the golden numbers, brute force, what must not matter."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.algorithms.dtfl import profiles, scheduler
from fedjax_het.algorithms.dtfl.profiles import Profile
from fedjax_het.algorithms.dtfl.scheduler import Scheduler
from fedjax_het.common.errors import InputError
from fedjax_het.fleet.cost import cost_table
from fedjax_het.fleet.splits import cuts, price_tiers
from fedjax_het.models import with_exits
from fedjax_het.models.mlp import mlp

MIB = 2.0**20
CLIENT = np.array([1.00, 1.63, 2.16, 2.68, 3.30, 3.81])
SERVER = np.array([1.00, 0.82, 0.65, 0.51, 0.33, 0.20])
SENT = np.array([25, 25, 12.5, 12.5, 6.25, 6.25]) * MIB  # bytes per batch
RATE = np.array([100, 30, 30, 30, 10]) * MIB
TAU = np.array([3, 3.75, 6.25, 25, 47.5])
GOLDEN = [
    [15.5, 17.39, 12.73, 14.29, 13.025, 14.555],
    [45.4167, 47.7792, 28.9333, 30.8833, 22.7917, 24.7042],
    [47.9167, 51.8542, 34.3333, 37.5833, 31.0417, 34.2292],
    [66.6667, 82.4167, 74.8333, 87.8333, 92.9167, 105.6667],
    [172.5, 202.425, 165.1, 189.8, 188.0, 212.225],
]


def golden(scale=1.0, order=slice(None)):
    profile = Profile(CLIENT, 0.02 * SERVER * scale)
    batches = np.full(5, 50)
    transfer_s = SENT[None, :] * scale * batches[:, None] / RATE[:, None]
    at_first = np.zeros(5, np.int64)
    return scheduler.estimate(profile, TAU[order] * scale, at_first, batches, transfer_s[order])


def random_times(draw_seed):
    rng = np.random.default_rng(draw_seed)
    k, m = rng.integers(1, 6), rng.integers(1, 5)
    return np.round(rng.uniform(0.1, 5.0, (k, m)), int(rng.integers(0, 3)) + 1)


def test_golden_estimates_and_tiers():
    """See methods/dtfl.md 7, check 7."""
    round_s = golden()
    np.testing.assert_allclose(round_s, GOLDEN, rtol=2e-6)
    tier, longest_s = scheduler.assign(round_s)
    assert longest_s == pytest.approx(165.1)
    np.testing.assert_array_equal(tier + 1, [6, 6, 6, 6, 3])


@pytest.mark.parametrize(("span", "wanted"), [(2, 6.6667), (5, 7.6667)])
def test_golden_average(span, wanted):
    """See methods/dtfl.md 7, check 7."""
    history = scheduler.begin(1, 3, 1)
    who, tier = np.array([0]), np.array([1])
    for seconds in (10.0, 4.0, 7.0):
        history = scheduler.observe(history, who, tier, np.array([seconds]), 2 / (span + 1))
    assert history.ema_s[0, 1] == pytest.approx(wanted, rel=1e-5)
    assert np.isnan(history.ema_s[0, [0, 2]]).all()


def test_order_and_unit_of_time_do_not_matter():
    """See methods/dtfl.md check 7."""
    tier, longest_s = scheduler.assign(golden())
    order = np.array([3, 0, 4, 2, 1])
    profile = Profile(CLIENT, 0.02 * SERVER)
    batches = np.full(5, 50)
    transfer_s = SENT[None, :] * 50 / RATE[order, None]
    turned = scheduler.estimate(profile, TAU[order], np.zeros(5, np.int64), batches, transfer_s)
    np.testing.assert_array_equal(scheduler.assign(turned)[0], tier[order])
    for scale in (1e-6, 3.0, 1e6):
        scaled, longer_s = scheduler.assign(golden(scale))
        np.testing.assert_array_equal(scaled, tier)
        assert longer_s == pytest.approx(scale * longest_s)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31))
def test_it_is_the_min_max_optimum(seed):
    """See methods/dtfl.md check 8."""
    round_s = random_times(seed)
    tier, longest_s = scheduler.assign(round_s)
    k, m = round_s.shape
    every = itertools.product(range(m), repeat=k)
    best_s = min(max(round_s[i, t] for i, t in enumerate(choice)) for choice in every)
    chosen_s = round_s[np.arange(k), tier]
    assert longest_s == best_s
    assert chosen_s.max() <= best_s * (1 + 1e-9)
    # Nobody could go deeper, even past a tier that does not fit.
    deeper = np.arange(m)[None, :] > tier[:, None]
    assert not (deeper & (round_s <= best_s)).any()


def test_free_links_and_server_put_the_straggler_in_the_first_tier():
    """See methods/dtfl.md check 9."""
    round_s = scheduler.estimate(
        Profile(CLIENT, 0 * SERVER), TAU, np.zeros(5, np.int64), np.full(5, 50), np.zeros((5, 6))
    )
    tier, longest_s = scheduler.assign(round_s)
    assert longest_s == 47.5
    assert tier[4] == 0
    assert (tier[:3] == 5).all()


def test_no_bandwidth_puts_everyone_where_least_is_sent():
    """See methods/dtfl.md check 9."""
    sent = np.array([6.25, 25, 25, 12.5, 12.5, 6.25, 6.25]) * MIB
    profile = Profile(np.linspace(1, 6, 7), np.linspace(1, 0.1, 7))
    transfer_s = np.broadcast_to(sent * 50 / 1.0, (5, 7))
    round_s = scheduler.estimate(profile, TAU, np.zeros(5, np.int64), np.full(5, 50), transfer_s)
    assert set(scheduler.assign(round_s)[0] + 1) <= {1, 6, 7}


def test_equal_clients_get_equal_tiers():
    """See methods/dtfl.md check 10."""
    round_s = np.broadcast_to(golden()[2], (7, 6))
    assert len(set(scheduler.assign(round_s)[0].tolist())) == 1


def test_the_lagged_rule_falls_back_to_the_shallowest_tier():
    round_s = golden()
    tier, longest_s = scheduler.assign(round_s, 50.0)
    assert longest_s == pytest.approx(165.1)
    np.testing.assert_array_equal(tier, [5, 5, 5, 0, 0])
    everything, _ = scheduler.assign(round_s, 1000.0)
    assert (everything == 5).all()


def test_tiers_that_a_device_cannot_hold_are_left_out():
    round_s = golden()
    round_s[:, 3:] = np.inf
    round_s[4, 0] = np.inf
    tier, _ = scheduler.assign(round_s)
    assert (tier <= 2).all()
    tier, _ = scheduler.assign(round_s, 1e-3)
    np.testing.assert_array_equal(tier, [0, 0, 0, 0, 1])


def test_observations_stay_positive_and_others_keep_theirs():
    history = scheduler.begin(4, 2, np.array([0, 1, 0, 1]))
    history = scheduler.observe(history, np.array([2, 1]), np.array([0, 1]), np.array([-3.0, 2]), 1)
    assert history.ema_s[2, 0] == 1e-9
    history = scheduler.reassign(history, np.array([2]), np.array([1]), 7.0)
    np.testing.assert_array_equal(history.tier, [0, 1, 1, 1])
    assert np.isnan(history.ema_s[[0, 3]]).all()
    assert history.longest_s == 7.0


def test_ten_thousand_clients_at_once():
    """One call, no loop over clients: the shapes say so."""
    rng = np.random.default_rng(0)
    n, m = 10_000, 7
    profile = Profile(np.linspace(1, 6, m), np.linspace(1, 0.1, m))
    history = scheduler.begin(n, m, 1)
    tier = rng.integers(0, m, n)
    history = scheduler.observe(history, np.arange(n), tier, rng.uniform(1, 9, n), 2 / 3)
    round_s = scheduler.estimate(
        profile,
        history.ema_s[np.arange(n), tier],
        tier,
        rng.integers(10, 500, n),
        rng.uniform(0, 2, (n, m)),
    )
    chosen, longest_s = scheduler.assign(round_s)
    assert chosen.shape == (n,)
    assert longest_s == round_s.min(axis=1).max()
    assert (round_s[np.arange(n), chosen] <= longest_s * (1 + 1e-9)).all()


def test_a_switched_device_is_reassigned_within_three_observations():
    """Smoothing with 2/3 forgets in three rounds, also in a tier that was visited before.

    See methods/dtfl.md check 12.
    """
    profile = Profile(CLIENT, 0.02 * SERVER)
    batches = np.full(5, 50)
    transfer_s = SENT[None, :] * batches[:, None] / RATE[:, None]
    who = np.arange(5)

    def rounds(history, unit_s, count):
        for _ in range(count):
            history = scheduler.advance(
                history,
                Scheduler(),
                profile,
                clients=who,
                tier=history.tier,
                compute_s=unit_s * CLIENT[history.tier],
                samples=batches,
                transfer_s=transfer_s,
                holds=np.ones((5, 6), bool),
            )
        return history

    before = rounds(scheduler.begin(5, 6, 1), TAU, 12)
    switched = TAU[[4, 1, 2, 3, 0]]
    settled = rounds(scheduler.begin(5, 6, 1), switched, 12)
    assert (before.tier != settled.tier).any()
    np.testing.assert_array_equal(rounds(before, switched, 3).tier, settled.tier)


def test_profiles_by_name_and_measured():
    cost = cost_table(with_exits(mlp((8,), 10, hidden=(4,) * 7)))
    tiers = price_tiers(cost, cuts(8, 6))
    published = profiles.choose("paper", tiers, 1e9)
    np.testing.assert_allclose(published.client_s, [1.00, 1.63, 2.16, 2.68, 3.30, 3.81])
    np.testing.assert_allclose(published.server_s[0], tiers.server_flops[0] / 1e9)
    np.testing.assert_allclose(published.server_s[5] / published.server_s[0], 0.20)
    code = profiles.choose("code", price_tiers(cost, cuts(8, 2)), 1e9)
    np.testing.assert_allclose(code.client_s, [0.118, 0.160])
    assert (profiles.choose("analytic", tiers, np.inf).server_s == 0).all()
    own = profiles.choose(profiles.Profile(np.ones(6), np.zeros(6)), tiers, 1.0)
    assert own.client_s.tolist() == [1.0] * 6
    with pytest.raises(InputError, match="published for six"):
        profiles.choose("paper", price_tiers(cost, cuts(8)), 1e9)
