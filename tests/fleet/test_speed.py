"""Speeds that drift, and work that is done in stages."""

import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.presets import build
from fedjax_het.fleet.speed import SpeedTrace, random_walk

EVERYONE = np.arange(2)


def fleet(**kind):
    return Fleet(flops_per_s=np.asarray([1.0, 2.0]), **kind)


def test_a_task_keeps_the_speed_it_started_with():
    trace = SpeedTrace(np.asarray([0.0, 10.0]), np.asarray([[1.0, 1.0], [0.5, 4.0]]))
    devices = fleet(speed_trace=trace)
    assert devices.speed(EVERYONE, 9.99).tolist() == [1.0, 2.0]
    assert devices.speed(EVERYONE, 10.0).tolist() == [0.5, 8.0]
    assert devices.speed(EVERYONE, np.asarray([0.0, 99.0])).tolist() == [1.0, 8.0]
    timing = devices.timing(EVERYONE, 8.0, 0, 0, 9.0, None)
    assert timing.compute_s.tolist() == [8.0, 4.0]
    assert devices.describe()["speed_trace"] is True


def test_walks_start_at_one_and_are_reproducible():
    walk = random_walk(3, 7, step=0.2, every_s=5.0, until_s=50.0)
    assert walk.factor.shape == (10, 3)
    np.testing.assert_array_equal(walk.factor[0], 1.0)
    again = random_walk(3, 7, step=0.2, every_s=5.0, until_s=50.0)
    np.testing.assert_array_equal(walk.factor, again.factor)
    assert build("adel", 3, drift=0.2).speed_trace.num_devices == 3
    assert build("adel", 3).speed_trace is None


def test_bad_traces_are_named():
    one = np.ones((1, 2))
    for time_s, factor in (
        (np.zeros(2), np.ones((2, 2))),
        (np.ones(1), one),
        (np.zeros(1), -one),
        (np.zeros(1), np.full((1, 2), np.nan)),
        (np.zeros(1), np.ones(2)),
    ):
        with pytest.raises(InputError):
            SpeedTrace(time_s, factor)
    with pytest.raises(InputError, match="SpeedTrace of 3 devices"):
        fleet(speed_trace=SpeedTrace(np.zeros(1), np.ones((1, 3))))
    with pytest.raises(InputError, match="every_s"):
        random_walk(2, 0, step=0.1, every_s=0.0, until_s=1.0)


def test_stages_of_a_constant_device_are_equal():
    rng = np.random.default_rng(0)
    times = fleet().stage_times(EVERYONE, np.asarray([6.0, 6.0]), 3, 0.0, rng)
    np.testing.assert_allclose(times, [[2.0, 4.0, 6.0], [1.0, 2.0, 3.0]])


def test_a_lognormal_factor_stretches_all_stages_alike():
    rng = np.random.default_rng(0)
    times = fleet(compute_jitter=0.5).stage_times(EVERYONE, 6.0, 3, 0.0, rng)
    np.testing.assert_allclose(times[:, 1] / times[:, 0], 2.0)
    np.testing.assert_allclose(times[:, 2] / times[:, 0], 3.0)
    assert times[0, 0] != 2.0


def test_exponential_stages_add_up_to_the_fleets_own_law():
    devices = fleet(compute_distribution="exponential", compute_stages=4)
    rng = np.random.default_rng(0)
    ends = np.asarray([devices.stage_times(EVERYONE, 8.0, 4, 0.0, rng)[0, -1] for _ in range(4000)])
    assert ends.mean() == pytest.approx(8.0, rel=0.03)
    assert ends.var() == pytest.approx(8.0**2 / 4, rel=0.1)


def test_known_compute_times_replace_the_draw():
    timing = fleet().timing(EVERYONE, 8.0, 0, 0, 0.0, None, compute_s=np.asarray([1.0, 5.0]))
    assert timing.compute_s.tolist() == [1.0, 5.0]
    assert timing.flops.tolist() == [8.0, 8.0]
