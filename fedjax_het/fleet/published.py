"""The fleets of published systems, as their papers and code describe them.

Every builder is `(num_clients, seed, **options) -> Fleet`; `presets.build` calls them by name.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Count, Depth, Size
from fedjax_het.common.options import checked
from fedjax_het.fleet.amounts import speed_thirds
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.redraw import Redraw
from fedjax_het.fleet.speed import random_walk, require_walk

# The unit of time where only ratios are known: between the 1e9 FLOP/s that training code sustains
# on the CPU of a mid-range phone and the 1e11 of the accelerator of a high-end phone.
FLOPS_PER_S = 1e10
MIB = 2.0**20


@checked
def adel(
    num_clients: Size,
    seed: int = 0,
    *,
    flops_per_sample_layer: float = 1e6,
    stages: Depth = 8,
    max_power: float = 8192.0,
    min_share: float = 0.05,
    max_communication_s: float = 1.0,
    drift: float = 0.0,
    drift_every_s: float = 10.0,
    drift_until_s: float = 1000.0,
) -> Fleet:
    """ADEL-FL's users (methods/adel_fl.md 1.1, A5): exponential layer times, constant transfers.

    User u has the power `P_u ~ U(min_share, 1) * max_power` samples x layers per second. Its
    communication takes `B_u ~ U(0, max_communication_s)` seconds for any size, half in each
    direction: `P_u = flops_per_s / flops_per_sample_layer` and `B_u = 2 * latency_s`.

    Args:
      num_clients: number of users, U.
      seed: seed of P and B.
      flops_per_sample_layer: factor from P to FLOP/s; `step_flops(0, None) / L` of the model's cost
        table gives the paper's unit of time.
      stages: number of layers, L, whose times add up.
      max_power: upper limit of P.
      min_share: lower limit of P over the upper; with the authors' 0 one user can delay all others.
      max_communication_s: upper limit of B.
      drift: log-std of a step in the random walk of every user's power; 0 for constant power, as in
        the paper.
      drift_every_s: virtual seconds between steps.
      drift_until_s: virtual time at which the walks end.
    """
    require(0 < min_share <= 1, f"min_share = {min_share}", "must be in (0, 1]", "use 0.05")
    require(
        max_communication_s >= 0,
        f"max_communication_s = {max_communication_s}",
        "must be at least 0",
        "use 1, or 0 for free links",
    )
    require_walk(drift_every_s, drift_until_s)
    rng = np.random.default_rng(seed)
    power = max_power * rng.uniform(min_share, 1.0, num_clients)
    return Fleet(
        flops_per_s=power * flops_per_sample_layer,
        latency_s=rng.uniform(0.0, max_communication_s, num_clients) / 2,
        compute_distribution="exponential",
        compute_stages=stages,
        speed_trace=random_walk(
            num_clients, seed, step=drift, every_s=drift_every_s, until_s=drift_until_s
        )
        if drift
        else None,
        **speed_thirds(power),
        name="adel",
    )


@checked
def fedel(
    num_clients: Size,
    seed: int = 0,
    *,
    slowdowns: Sequence[float] = (1.0, 2.0, 3.0, 4.0),
    assignment: Literal["random", "cyclic"] = "random",
    base_flops_per_s: float = FLOPS_PER_S,
) -> Fleet:
    """FedEL's fleets: device types that take 1, 2, 3 and 4 times as long (methods/fedel.md 5.1).

    The test bed of five Orin and five Xavier boards is `slowdowns=(1, 2), assignment="cyclic"`.

    Args:
      num_clients: number of clients, n.
      seed: seed of a random assignment.
      slowdowns: time of each type over that of the fastest.
      assignment: assignment of types: drawn per client, or type k mod the number of types for
        client k ("cyclic").
      base_flops_per_s: speed at slowdown 1.
    """
    require_known(assignment, ("random", "cyclic"), "assignment")
    slow = np.asarray(slowdowns, np.float64)
    require(
        slow.ndim == 1 and slow.size >= 1 and bool((slow > 0).all()),
        f"slowdowns = {slowdowns}",
        "must be a list of positive numbers",
        "give one per device type",
    )
    types = np.arange(num_clients) % slow.size
    if assignment == "random":
        types = np.random.default_rng(seed).integers(0, slow.size, num_clients)
    return Fleet(
        flops_per_s=base_flops_per_s / slow[types],
        groups=types,
        group_names=tuple(f"{s:g}x slower" if s != 1 else "fastest" for s in slow),
        name="fedel",
    )


# Compute time over that of the reference machine, and link rate (methods/dtfl.md 5).
_DTFL_COEFFICIENT = np.array([16.0, 20.0, 34.0, 130.0, 250.0]) / 14.5
_DTFL_RATE = np.array([100.0, 30.0, 30.0, 30.0, 10.0])


@checked
def dtfl(
    num_clients: Size,
    seed: int = 0,
    *,
    profiles: Sequence[int] = (1, 2, 3, 4, 5),
    rate_unit: Literal["MiB/s", "Mbit/s"] = "MiB/s",
    base_flops_per_s: float = FLOPS_PER_S,
    link_scale: float = 1.0,
    redraw_every: Count | None = None,
    redraw_share: float = 0.3,
) -> Fleet:
    """DTFL's five resource profiles (methods/dtfl.md 5); client k has `profiles[k mod len]`.

    Args:
      num_clients: number of clients, n.
      seed: seed of the re-drawn profiles.
      profiles: numbers of the profiles, 1..5; the paper's case 1 is (2, 3, 4), its case 2 (1, 3,
        5).
      rate_unit: unit of the rates 100, 30, 30, 30, 10. The paper says Mbps; its code and its Table
        1 agree on MiB/s.
      base_flops_per_s: speed of the reference machine, to which the coefficients refer.
      link_scale: factor on the rates. For networks whose activations are smaller than those of
        ResNet-56 it keeps the paper's ratio of compute time to transfer time.
      redraw_every: rounds after which a share of the clients gets new profiles from `profiles`;
        None for constant profiles.
      redraw_share: share of the clients that are re-drawn.
    """
    require_known(rate_unit, ("MiB/s", "Mbit/s"), "rate_unit")
    for name, value in (("base_flops_per_s", base_flops_per_s), ("link_scale", link_scale)):
        require(value > 0, f"{name} = {value}", "must be positive", "leave it out for its default")
    chosen = np.asarray(profiles)
    require(
        chosen.dtype.kind in "iu" and chosen.size > 0 and bool(np.isin(chosen, range(1, 6)).all()),
        f"profiles = {profiles}",
        "must be a list of numbers 1..5",
        "use (1, 2, 3, 4, 5)",
    )
    profile = chosen[np.arange(num_clients) % chosen.size] - 1
    speed = base_flops_per_s / _DTFL_COEFFICIENT
    rate = _DTFL_RATE * (MIB if rate_unit == "MiB/s" else 1e6 / 8) * link_scale
    redraw = None
    if redraw_every is not None:
        redraw = Redraw(profile, speed, rate, chosen - 1, redraw_every, redraw_share, seed)
    return Fleet(
        flops_per_s=speed[profile],
        downlink_bytes_per_s=rate[profile],
        uplink_bytes_per_s=rate[profile],
        redraw=redraw,
        groups=profile,
        group_names=tuple(f"profile {p}" for p in range(1, 6)),
        name="dtfl",
    )


# Link rates in MiB/s (methods/pr_fl.md 8).
_PRFL_DOWN = np.array([20.0, 18.0, 12.0, 10.0, 6.0, 4.0, 2.5, 2.0, 2.0, 1.5])
_PRFL_UP = np.array([5.0, 4.0, 3.0, 2.5, 1.5, 1.0, 0.6, 0.5, 0.5, 0.4])


@checked
def prfl(
    num_clients: Size,
    seed: int = 0,
    *,
    sigma: float = 0.3,
    draws: Count = 20,
    scale: float = 1.0,
    flops_per_s: float = FLOPS_PER_S,
) -> Fleet:
    """PR-FL's ten clients (methods/pr_fl.md 8): equal speeds; client k has link k mod 10.

    The authors multiply each rate by the mean of `draws` samples of LogNormal(0, sigma), which is
    close to a log-normal with the same two moments: `E = e^{sigma^2 / 2}` and
    `s^2 = ln(1 + (e^{sigma^2} - 1) / draws)`. The mean of the transfer times, which are the
    inverse, is `e^{s^2} / E` times the nominal time. The rates contain that factor; the jitter has
    log-std s.

    Args:
      num_clients: number of clients, n.
      seed: unused, because the jitter is drawn per task.
      sigma: log-std of one sample; 0 for constant links.
      draws: number of averaged samples.
      scale: factor on all rates; a model of N weights has the paper's times at N / 9,747,136.
      flops_per_s: speed of every device; the authors measured wall-clock time instead.
    """
    del seed
    require(
        0 <= sigma <= 10 and draws >= 1,
        f"sigma = {sigma}, draws = {draws}",
        "must be >= 0 and at most 10, and >= 1",
        "use 0.3 and 20",
    )
    require(scale > 0, f"scale = {scale}", "must be positive", "use 1 for the paper's model")
    variance = np.log1p(np.expm1(sigma**2) / draws)
    unit = np.exp(sigma**2 / 2 - variance) * MIB * scale
    link = np.arange(num_clients) % _PRFL_DOWN.size
    return Fleet(
        flops_per_s=np.full(num_clients, flops_per_s, np.float64),
        downlink_bytes_per_s=_PRFL_DOWN[link] * unit,
        uplink_bytes_per_s=_PRFL_UP[link] * unit,
        link_jitter=np.sqrt(variance),
        groups=link,
        group_names=tuple(f"{rate:g} MiB/s" for rate in _PRFL_DOWN),
        name="prfl",
    )
