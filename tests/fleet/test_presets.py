"""Every named fleet can be built, is reproducible, and has the numbers of its paper."""

import json

import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.fleet.presets import FLEETS, build

OFFLINE = sorted(set(FLEETS) - {"traces", "csv", "fedscale", "json"})


@pytest.mark.parametrize("name", OFFLINE)
def test_every_fleet_works(name):
    fleet = build(name, 23, seed=4)
    assert fleet.num_devices == 23
    assert fleet.name == name
    clients = np.arange(23)
    timing = fleet.timing(clients, 1e9, 10**6, 10**6, 0.0, np.random.default_rng(0))
    assert (timing.total_s > 0).all()
    assert (fleet.next_available(clients, 5.0) >= 5.0).all()
    assert json.dumps(fleet.describe(), allow_nan=False)
    again = build(name, 23, seed=4)
    np.testing.assert_array_equal(fleet.flops_per_s, again.flops_per_s)
    np.testing.assert_array_equal(fleet.uplink_bytes_per_s, again.uplink_bytes_per_s)


@pytest.mark.parametrize("name", ["adel", "fedel", "phones"])
def test_drawn_fleets_follow_the_seed(name):
    assert (build(name, 50, seed=0).flops_per_s != build(name, 50, seed=1).flops_per_s).any()


def test_speed_groups():
    fleet = build("speed_groups", 7, base_flops_per_s=100.0)
    np.testing.assert_allclose(fleet.flops_per_s, [34, 71, 100, 34, 71, 100, 34])
    np.testing.assert_array_equal(fleet.groups, [0, 1, 2, 0, 1, 2, 0])
    assert fleet.group_names == ("speed 0.34", "speed 0.71", "speed 1")


def test_adel_powers_and_communication_times():
    fleet = build("adel", 4000, seed=2, flops_per_sample_layer=10.0)
    power = fleet.flops_per_s / 10.0
    assert power.min() >= 0.05 * 8192
    assert power.max() <= 8192
    assert power.mean() == pytest.approx(8192 * 0.525, rel=0.02)
    assert (2 * fleet.latency_s).mean() == pytest.approx(0.5, rel=0.03)
    # Its times are those of L exponential layers whatever the size of the messages.
    timing = fleet.timing(np.arange(4000), fleet.flops_per_s, 10**9, 1, 0.0, None)
    np.testing.assert_allclose(timing.total_s, 1.0 + 2 * fleet.latency_s)


def test_fedel_slowdowns():
    fleet = build("fedel", 4000, seed=1)
    slow = fleet.flops_per_s.max() / fleet.flops_per_s
    np.testing.assert_allclose(np.unique(slow), [1, 2, 3, 4])
    assert (np.bincount(fleet.groups) > 900).all()
    bed = build("fedel", 10, slowdowns=(1, 2), assignment="cyclic")
    np.testing.assert_allclose(bed.flops_per_s.max() / bed.flops_per_s, [1, 2] * 5)


def test_dtfl_profiles():
    fleet = build("dtfl", 10, base_flops_per_s=1.0)
    np.testing.assert_allclose(1 / fleet.flops_per_s[:5], [1.103, 1.379, 2.345, 8.966, 17.24], 1e-3)
    np.testing.assert_array_equal(fleet.groups, [0, 1, 2, 3, 4] * 2)
    mib = 2**20
    np.testing.assert_allclose(fleet.uplink_bytes_per_s[:5] / mib, [100, 30, 30, 30, 10])
    case2 = build("dtfl", 4, profiles=(1, 3, 5), rate_unit="Mbit/s")
    np.testing.assert_allclose(case2.downlink_bytes_per_s, [12.5e6, 3.75e6, 1.25e6, 12.5e6])
    np.testing.assert_array_equal(case2.groups, [0, 2, 4, 0])


def test_prfl_round_times():
    # methods/pr_fl.md 8: full VGG-11, 20 bytes per weight down and 4 up, links without jitter.
    fleet = build("prfl", 10, sigma=0.0, flops_per_s=1e15)
    weights = 9_747_136 + 3_786
    timing = fleet.timing(np.arange(10), 1.0, 20 * weights, 4 * weights, 0.0, None)
    table = [16.7, 19.6, 27.9, 33.5, 55.8, 83.7, 136.3, 167.3, 167.3, 216.9]
    np.testing.assert_allclose(timing.total_s, table, rtol=3e-3)


def test_prfl_jitter_has_the_moments_of_an_average_of_20_lognormals():
    n = 100_000
    fleet = build("prfl", n)
    rng = np.random.default_rng(0)
    times = fleet.timing(np.arange(n), 0.0, 2**20, 0, 0.0, rng).download_s
    nominal = 1 / build("prfl", n, sigma=0.0).downlink_bytes_per_s * 2**20
    multiplier = nominal / times
    assert multiplier.mean() == pytest.approx(1.0460, abs=1e-3)
    assert multiplier.std() == pytest.approx(0.0718, abs=1e-3)


def test_phones_have_the_published_spread():
    fleet = build("phones", 20_000, availability="synthetic")
    assert np.log(fleet.flops_per_s).std() == pytest.approx(0.78, abs=0.01)
    assert np.log(fleet.downlink_bytes_per_s).std() == pytest.approx(0.47, abs=0.01)
    assert np.log(fleet.uplink_bytes_per_s).std() == pytest.approx(0.68, abs=0.01)
    assert np.median(fleet.flops_per_s) == pytest.approx(1e10, rel=0.02)
    low, high = np.quantile(fleet.flops_per_s, [0.05, 0.95])
    # A log-normal of log-std 0.78 spans 13; the measured latencies, skewed, 9.
    assert high / low == pytest.approx(13, rel=0.05)
    once = fleet.timing(np.arange(20_000), 0.0, 10**6, 0, 0.0, np.random.default_rng(1)).download_s
    steady = 1e6 / fleet.downlink_bytes_per_s
    assert (once / steady).std() == pytest.approx(0.37, abs=0.01)
    assert fleet.availability.num_devices == 20_000
    assert np.bincount(fleet.groups).tolist() == [6667, 6667, 6666]
    assert fleet.flops_per_s[fleet.groups == 0].max() <= fleet.flops_per_s[fleet.groups == 1].min()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fedle", {}, "fleet 'fedle'.*did you mean 'fedel'"),
        ("uniform", {"flops": 1.0}, "option of fleet 'uniform' 'flops'.*flops_per_s"),
        ("uniform", {"num_clients": 0}, "num_clients = 0"),
        ("uniform", {"num_clients": 2.5}, "num_clients = 2.5"),
        ("uniform", {"flops_per_s": 0.0}, "positive"),
        ("speed_groups", {"relative_speeds": ()}, "relative_speeds"),
        ("speed_groups", {"relative_speeds": (1.0, -1.0)}, "positive"),
        ("fedel", {"slowdowns": (0.0,)}, "slowdowns"),
        ("fedel", {"assignment": "any"}, "assignment"),
        ("dtfl", {"profiles": (0,)}, r"1\.\.5"),
        ("dtfl", {"rate_unit": "Mbps"}, "rate_unit"),
        ("prfl", {"sigma": -1.0}, "sigma"),
        ("adel", {"min_share": 0.0}, "min_share"),
        ("exponential", {"stages": 0}, "stages"),
        ("phones", {"link_variation": -1.0}, "link_variation"),
        ("phones", {"availability": "never"}, "availability"),
        ("traces", {"links": "wired"}, "links"),
        ("traces", {"bandwidth_sets": ("fcc",)}, "belongs to links = 'bandwidth'"),
    ],
)
def test_bad_requests_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        build(name, **{"num_clients": 5, **options})
