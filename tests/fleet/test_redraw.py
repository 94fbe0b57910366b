"""Clients that move between device profiles over the rounds."""

import numpy as np
import pytest

from fedjax_het.fleet.presets import build


def fleet(**options):
    return build("dtfl", 20, 3, redraw_every=50, **options)


def test_so_many_clients_are_drawn_every_so_many_rounds(monkeypatch):
    """Exactly round(0.3 n) clients take part in a draw; counted, for one may get what it had."""
    devices = fleet()
    counts = []
    choice = np.random.Generator.choice

    class Counting:
        def __init__(self, seed):
            self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))

        def choice(self, n, size, replace):
            counts.append((n, size, replace))
            return choice(self.rng, n, size, replace=replace)

        def integers(self, *arguments):
            return self.rng.integers(*arguments)

    monkeypatch.setattr(np.random, "default_rng", Counting)
    for round in range(0, 151):
        devices.at(round)
    assert counts == [(20, 6, False)] * 3


def test_it_is_constant_between_draws_and_the_same_whenever_asked():
    devices = fleet()
    late = devices.at(260)
    again = fleet()
    for round in (0, 49):
        np.testing.assert_array_equal(again.at(round).flops_per_s, devices.flops_per_s)
    np.testing.assert_array_equal(again.at(50).flops_per_s, again.at(99).flops_per_s)
    changed = again.at(50).groups != again.groups
    assert 0 < changed.sum() <= 6
    np.testing.assert_array_equal(again.at(260).flops_per_s, late.flops_per_s)
    np.testing.assert_array_equal(again.at(260).uplink_bytes_per_s, late.downlink_bytes_per_s)
    other = build("dtfl", 20, 4, redraw_every=50)
    assert (other.at(260).groups != late.groups).any()


def test_profiles_keep_speed_and_link_together():
    now = fleet(profiles=(1, 3, 5)).at(500)
    pairs = {(round(s), round(r)) for s, r in zip(now.flops_per_s, now.uplink_bytes_per_s)}
    first = fleet(profiles=(1, 3, 5))
    known = {(round(s), round(r)) for s, r in zip(first.flops_per_s, first.uplink_bytes_per_s)}
    assert pairs <= known
    assert set(np.unique(now.groups)) <= {0, 2, 4}


def test_a_constant_fleet_is_itself():
    devices = build("dtfl", 5)
    assert devices.at(1000) is devices
    assert devices.describe()["redraw_every_rounds"] is None
    assert fleet().describe()["redraw_every_rounds"] == 50


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_link_scale(scale):
    np.testing.assert_allclose(
        build("dtfl", 5, link_scale=scale).uplink_bytes_per_s,
        scale * build("dtfl", 5).uplink_bytes_per_s,
    )
