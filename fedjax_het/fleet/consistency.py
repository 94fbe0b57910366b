"""Checks of columns of a fleet that belong together."""

from typing import Any, Literal, get_args

import numpy as np

from fedjax_het.common.errors import require, require_known

# Treatments of a task whose device goes off, see `Fleet`.
OnInterrupt = Literal["finish", "lose", "pause"]


def require_consistent(fleet: Any) -> None:
    """Raises `InputError` unless the fields of a `Fleet` go together."""
    _require_jitter(
        fleet.compute_distribution, fleet.compute_stages, float(fleet.compute_jitter.max())
    )
    _require_interruptions(fleet.on_interrupt, fleet.failure_rate, fleet.joins_s, fleet.leaves_s)
    least_joules = fleet.battery_joules.min()
    require(
        bool(np.isinf(least_joules)) or fleet.prices_energy,
        f"battery_joules = {least_joules} without a price of energy",
        "would never be spent",
        "set it after fh.fleet.with_energy, or give prices such as joules_per_flop",
    )
    links = (fleet.downlink_trace, fleet.uplink_trace)
    require(
        not fleet.link_jitter.any() or links == (None, None),
        f"link_jitter up to {fleet.link_jitter.max()} together with a trace",
        "a trace already varies over time",
        "set link_jitter = 0",
    )
    for part in (*links, fleet.speed_trace, fleet.availability, fleet.redraw):
        n = fleet.num_devices
        known = n if part is None or part.num_devices is None else part.num_devices
        require(
            known == n,
            f"{type(part).__name__} of {known} devices in a fleet of {n}",
            "must have one entry per device",
            "build both for the same number of devices",
        )


def _require_jitter(distribution: str, stages: int, jitter: float) -> None:
    """Raises `InputError` unless distribution, stages and largest jitter go together."""
    require_known(distribution, ("lognormal", "exponential"), "compute_distribution")
    exponential = distribution == "exponential"
    require(
        stages >= 1 and (exponential or stages == 1) and not (exponential and jitter > 0),
        f"{distribution} compute times with compute_stages = {stages} and compute_jitter up to "
        f"{jitter}",
        "stages belong to 'exponential' and jitter to 'lognormal'",
        "set only the one that the distribution uses",
    )


def _require_interruptions(
    on_interrupt: str, failure_rate: np.ndarray, joins_s: np.ndarray, leaves_s: np.ndarray
) -> None:
    """Raises `InputError` unless tasks can succeed, and clients leave after they join."""
    require_known(on_interrupt, get_args(OnInterrupt), "on_interrupt")
    require(
        bool((failure_rate < 1).all()),
        f"failure_rate up to {failure_rate.max()}",
        "must be less than 1",
        "leave out devices whose tasks always fail",
    )
    bad = np.flatnonzero(leaves_s <= joins_s)
    require(
        bad.size == 0,
        f"device {bad[:1]} with joins_s = {joins_s[bad[:1]]} and leaves_s = {leaves_s[bad[:1]]}",
        "must leave after it joins",
        "leave the device out",
    )
