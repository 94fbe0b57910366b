"""Failures and pauses of single tasks, by hand."""

import math

import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Timing
from fedjax_het.fleet.availability import from_intervals
from fedjax_het.fleet.battery import part_joules
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.interruption import interruptions

# Device 0 is on for four seconds out of ten, device 1 for eight seconds once, device 2 always.
ON = [np.array([[0.0, 4.0]]), np.array([[0.0, 3.0], [5.0, 10.0]]), np.array([[0.0, 99.0]])]
AVAILABILITY = from_intervals(ON, [10.0, np.inf, 99.0])


def plan(total_s, clients=(0, 1, 2), deadline_s=math.inf):
    """Tasks of so many seconds: one of download and one of upload, the rest is computation."""
    k = len(clients)
    one, amount = np.ones(k), np.ones(k, np.int64)
    compute_s = np.broadcast_to(np.asarray(total_s, float) - 2.0, (k,))
    return Plan(
        clients=np.asarray(clients),
        routes=[Route(0, 0)] * k,
        steps=np.ones(k, np.int32),
        batch=np.ones(k, np.int32),
        weight=np.ones(k, np.float32),
        timing=Timing(one, compute_s, one, amount, amount, one),
        deadline_s=deadline_s,
    )


def devices(**columns):
    return Fleet(np.ones(3), availability=AVAILABILITY, **columns)


def asked(fleet, tasks, now_s, seed=0):
    found = interruptions(fleet, tasks, now_s, np.random.default_rng(seed))
    return [column.tolist() for column in found[:3]]


def test_nothing_is_interrupted_if_all_finish():
    assert not devices().interrupts
    assert asked(devices(), plan(9.0), 2.0) == [[np.inf] * 3, [0.0] * 3, [np.inf] * 3]


def test_tasks_are_lost_when_their_device_goes_off():
    fails_s, paused_s, usable_s = asked(devices(on_interrupt="lose"), plan(3.5), 2.0)
    assert fails_s == [4.0, 3.0, np.inf]
    assert paused_s == [0.0] * 3
    assert usable_s == [np.inf] * 3


def test_tasks_pause_until_their_device_is_on_again():
    """Device 0 works from 2 to 4, 10 to 14 and 20 on; device 1 from 2 to 3 and from 5 to 10."""
    fleet = devices(on_interrupt="pause")
    fails_s, paused_s, usable_s = asked(fleet, plan(5.5, deadline_s=11.0), 2.0)
    assert fails_s == [np.inf] * 3
    assert paused_s == [6.0, 2.0, 0.0]
    assert usable_s == [5.0, 6.0, 11.0]
    # Six seconds and no more are left to device 1, which is then off for good.
    assert asked(fleet, plan(6.0), 2.0)[0] == [np.inf] * 3
    fails_s, paused_s, _ = asked(fleet, plan(6.5), 2.0)
    assert fails_s == [np.inf, 10.0, np.inf]
    assert paused_s == [12.0, 2.0, 0.0]


@pytest.mark.parametrize("how", ["finish", "lose", "pause"])
def test_a_client_that_leaves_gives_its_task_up(how):
    fleet = devices(on_interrupt=how, leaves_s=np.array([np.inf, np.inf, 7.0]))
    assert asked(fleet, plan(6.0), 2.0)[0][2] == 7.0
    assert asked(fleet, plan(5.0), 2.0)[0][2] == np.inf


def test_devices_may_be_off_already_when_tasks_begin():
    """The device of client 0 is off at 1 s until 50 s, client 1 has left, and 2 is on until 60."""
    on = [np.array([[0.0, 0.045], [50.0, 52.0], [53.0, 1e3]]), np.array([[0.0, 1e3]])]
    when = from_intervals([*on, np.array([[0.0, 60.0]])], [2e3] * 3)
    leaves = np.array([np.inf, 0.5, np.inf])
    at_once = np.nextafter(1.0, 2.0)
    for how, fails_s, paused_s, usable_s in (
        ("finish", [np.inf, at_once, np.inf], [0.0] * 3, [54.0] * 3),
        ("lose", [at_once, at_once, np.inf], [0.0] * 3, [54.0] * 3),
        ("pause", [np.inf, at_once, np.inf], [50.0, 0.0, 0.0], [4.0, 0.0, 54.0]),
    ):
        fleet = Fleet(np.ones(3), availability=when, leaves_s=leaves, on_interrupt=how)
        tasks = plan(3.5, deadline_s=54.0)
        # A download that takes no time does not take place either.
        instant = tasks._replace(timing=tasks.timing._replace(download_s=np.zeros(3)))
        assert asked(fleet, tasks, 1.0) == [fails_s, paused_s, usable_s], how
        found = interruptions(fleet, instant, 1.0, np.random.default_rng(0))
        assert found.fails_s.tolist() == fails_s
        gone = np.isfinite(fails_s)
        assert found.done.tolist() == [[0.0] * 3 if each else [1.0] * 3 for each in gone]


@pytest.mark.parametrize("how", ["finish", "lose", "pause"])
def test_failures_are_as_frequent_as_they_should_be_and_uniform(how):
    n = 20_000
    rate = np.where(np.arange(n) % 2, 0.3, 0.0)
    fleet = Fleet(np.ones(n), failure_rate=rate, on_interrupt=how)
    tasks = plan(4.0, clients=np.arange(n))
    found = interruptions(fleet, tasks, 100.0, np.random.default_rng(3))
    failed = np.isfinite(found.fails_s)
    assert not failed[::2].any()
    assert np.mean(failed[1::2]) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / (n / 2)))
    shares = (found.fails_s[failed] - 100.0) / 4.0
    assert np.all((shares > 0) & (shares < 1))
    assert np.mean(shares) == pytest.approx(0.5, abs=4 / math.sqrt(12 * shares.size))
    assert np.var(shares) == pytest.approx(1 / 12, rel=0.1)


def test_a_failure_counts_the_seconds_of_work_only():
    """Device 0 has worked for two seconds at 4; what fails later does so after the pause."""
    rates = {"failure_rate": np.array([0.99, 0.0, 0.99])}
    for seed in range(20):
        whole, paused = (
            asked(devices(on_interrupt=how, **rates), plan(6.0), 2.0, seed)
            for how in ("finish", "pause")
        )
        worked_s = whole[0][0] - 2.0
        if not math.isfinite(worked_s):
            continue
        late = 6.0 if worked_s > 2.0 else 0.0
        assert paused[0][0] == pytest.approx(2.0 + worked_s + late)
        assert paused[1][0] == pytest.approx(late)
        assert paused[0][2] == whole[0][2]


def test_the_order_of_the_plan_does_not_matter():
    fleet = Fleet(np.ones(6), failure_rate=0.5)
    order = np.array([3, 0, 5, 1, 4, 2])
    straight = asked(fleet, plan(4.0, clients=np.arange(6)), 0.0)[0]
    turned = asked(fleet, plan(4.0, clients=order), 0.0)[0]
    assert turned == [straight[client] for client in order]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"failure_rate": 1.0}, "failure_rate up to 1.0.*less than 1"),
        ({"failure_rate": -0.1}, "failure_rate.*>= 0"),
        ({"on_interrupt": "stop"}, "on_interrupt"),
        ({"leaves_s": 0.0}, "leaves_s.*positive"),
        ({"joins_s": 5.0, "leaves_s": 5.0}, "must leave after it joins"),
    ],
)
def test_what_no_device_does_is_refused(columns, words):
    with pytest.raises(InputError, match=words):
        Fleet(np.ones(2), **columns)


# ---- batteries -----------------------------------------------------------------------------------


def test_a_task_fails_when_the_charge_is_spent():
    """Ten joules of download in a second, four of computation in two, eight of upload in one."""
    prices = {"joules_per_byte_down": 10.0, "joules_per_flop": 4.0, "joules_per_byte_up": 8.0}
    left = np.array([5.0, 10.0, 13.0, 14.0, 20.0, 22.0, np.inf])
    k = len(left)
    fleet = Fleet(np.ones(k), battery_joules=left, **prices)
    tasks = plan(4.0, clients=np.arange(k))
    found = interruptions(fleet, tasks, 100.0, np.random.default_rng(0), left)
    expected = np.array([0.5, 1.0, 2.5, 3.0, 3.75, np.inf, np.inf])
    np.testing.assert_allclose(found.fails_s - 100.0, expected)
    joules = part_joules(fleet, np.arange(k), tasks.timing)
    np.testing.assert_allclose((joules * found.done.T).sum(axis=0), np.minimum(left, 22.0))


def test_parts_without_a_price_take_no_charge():
    for price, done in (
        ("joules_per_byte_down", [0.5, 0.0, 0.0]),
        ("joules_per_flop", [1.0, 0.5, 0.0]),
        ("joules_per_byte_up", [1.0, 1.0, 0.5]),
    ):
        fleet = Fleet(np.ones(1), battery_joules=5.0, **{price: 10.0})
        tasks = plan(4.0, clients=[0])
        found = interruptions(fleet, tasks, 0.0, np.random.default_rng(0), np.array([5.0]))
        assert found.done.tolist() == [done]
        assert found.fails_s.tolist() == [np.dot(done, [1.0, 2.0, 1.0])]


def test_a_pause_spends_no_charge():
    prices = {"joules_per_byte_down": 1.0, "joules_per_flop": 1.0, "joules_per_byte_up": 1.0}
    left = np.array([2.5, 2.5, 2.5])
    fleet = devices(on_interrupt="pause", battery_joules=left, **prices)
    found = interruptions(fleet, plan(6.0), 2.0, np.random.default_rng(0), left)
    # The charge lasts for 5.5 of the 6 seconds.
    assert found.fails_s.tolist() == [13.5, 9.5, 7.5]
    assert found.paused_s.tolist() == [6.0, 2.0, 0.0]
