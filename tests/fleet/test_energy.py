"""Prices of energy: the formula, the published figures, and fleets that keep their prices."""

import numpy as np
import pytest
from problems import fleet

from fedjax_het.common.errors import InputError
from fedjax_het.fleet import FLEETS, Fleet, build, task_joules, with_energy
from fedjax_het.fleet.columns import PRICES

COLUMNS = {
    "joules_per_flop": [1e-9, 2e-9, 3e-9],
    "joules_per_byte_up": [1e-6, 2e-6, 4e-6],
    "joules_per_byte_down": [5e-7, 0.0, 1e-6],
    "idle_watts": [0.5, 0.25, 0.0],
}


def test_a_task_costs_its_work_its_bytes_and_its_waiting():
    devices = Fleet(np.full(3, 1e9), **COLUMNS)
    joules = task_joules(devices, np.array([2, 0]), 1e9, np.array([100, 200]), 1000, [7.0, 4.0])
    assert joules.tolist() == pytest.approx(
        [3.0 + 1e-6 * 100 + 4e-6 * 1000, 1.0 + 5e-7 * 200 + 1e-6 * 1000 + 0.5 * 4], rel=1e-14
    )
    with pytest.raises(InputError, match="flops = -1"):
        task_joules(devices, np.array([0]), -1, 0, 0, 0)
    with pytest.raises(InputError, match=r"ids in 0\.\.2"):
        task_joules(devices, np.array([3]), 0, 0, 0, 0)


def test_a_fleet_without_prices_is_described_as_before():
    plain, priced = Fleet(np.ones(3)), Fleet(np.ones(3), idle_watts=0.5)
    assert not plain.prices_energy
    assert priced.prices_energy
    added = set(priced.describe()) - set(plain.describe())
    assert added == {"idle_watts (min, median, max)"}
    assert priced.describe()["idle_watts (min, median, max)"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("energy", "up", "down"),
    [
        ("phone_wifi", 8 * 283.17e-9 + 0.13286 / 1e5, 8 * 137.01e-9 + 0.13286 / 2e5),
        ("phone_lte", 8 * 438.39e-9 + 1.28804 / 1e5, 8 * 51.97e-9 + 1.28804 / 2e5),
    ],
)
def test_a_phone_has_the_published_powers(energy, up, down):
    """4.9 W while it computes; a transfer at 0.8 or 1.6 Mbit/s has the power of Huang's model."""
    devices = with_energy(fleet(3), energy)
    np.testing.assert_allclose(devices.joules_per_flop * devices.flops_per_s, 4.9)
    np.testing.assert_allclose(devices.joules_per_byte_up, up)
    np.testing.assert_allclose(devices.joules_per_byte_down, down)
    assert devices.idle_watts.tolist() == [0.0114] * 3
    rate = devices.uplink_bytes_per_s[0]
    megabits = 8e-6 * rate
    alpha, beta = (283.17, 132.86) if energy == "phone_wifi" else (438.39, 1288.04)
    assert devices.joules_per_byte_up[0] * rate == pytest.approx(1e-3 * (alpha * megabits + beta))


def test_free_links_cost_the_bits_only():
    devices = with_energy(build("uniform", 2), "phone_wifi")
    np.testing.assert_allclose(devices.joules_per_byte_up, 8 * 283.17e-9)


@pytest.mark.parametrize("name", sorted({*FLEETS} - {"traces", "csv", "fedscale", "json"}))
def test_every_fleet_by_name_can_be_priced(name):
    plain, priced = build(name, 6), build(name, 6, energy="phone_lte")
    assert not plain.prices_energy
    assert priced.prices_energy
    np.testing.assert_array_equal(plain.flops_per_s, priced.flops_per_s)
    assert {k: v for k, v in priced.describe().items() if k in plain.describe()} == plain.describe()


def test_prices_change_with_the_profile():
    """A client that is re-drawn has speed, link and prices of its new profile."""
    devices = build("dtfl", 20, redraw_every=1, redraw_share=1.0, energy="phone_wifi")
    later = devices.at(3)
    assert (later.groups != devices.groups).any()
    np.testing.assert_allclose(later.joules_per_flop * later.flops_per_s, 4.9)
    np.testing.assert_allclose(
        later.joules_per_byte_up, 8 * 283.17e-9 + 0.13286 / later.uplink_bytes_per_s
    )


def test_a_client_keeps_prices_of_its_own_when_it_is_redrawn():
    plain = build("dtfl", 5, redraw_every=1)
    own = {name: np.arange(1.0, 6.0) for name in PRICES}
    devices = Fleet(plain.flops_per_s, **own, redraw=plain.redraw)
    for name in PRICES:
        np.testing.assert_array_equal(getattr(devices.at(4), name), own[name])
