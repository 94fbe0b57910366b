"""Fleets by name: simple fleets, the fleets of published systems, and measured phones.

    fleet = build("speed_groups", num_clients=30, relative_speeds=(0.34, 0.71, 1.0))

Every builder takes `num_clients`, `seed` and options of its own by name; the same arguments and
files give the same fleet. With free links (infinite rate) only computation takes time, as in papers
that model nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Count, Size, Unlimited
from fedjax_het.common.options import check_options, check_types, checked
from fedjax_het.fleet.consistency import OnInterrupt
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.energy import Energy, with_energy
from fedjax_het.fleet.files import READERS
from fedjax_het.fleet.phones import from_traces, phones
from fedjax_het.fleet.published import FLOPS_PER_S, adel, dtfl, fedel, prfl


def build(
    name: str,
    num_clients: Size,
    seed: int = 0,
    *,
    energy: Energy | None = None,
    failure_rate: float = 0.0,
    on_interrupt: OnInterrupt = "finish",
    **options: Any,
) -> Fleet:
    """The fleet called `name`.

    Args:
      name: name of a builder, a key of `FLEETS`.
      num_clients: number of clients, n >= 1; there is one device per client.
      seed: seed of all draws.
      energy: kind of device whose prices of energy the fleet gets, `"phone_wifi"` or
        `"phone_lte"`, see `energy.with_energy`; None for a fleet that prices no energy.
      failure_rate: probability that a task fails on its device, see `Fleet`.
      on_interrupt: treatment of a task whose device goes off: `"finish"`, `"lose"` or `"pause"`.
      **options: keyword arguments of the builder.

    Returns:
      The fleet.

    Raises:
      InputError: if the name or an option is unknown, or the value of an option is invalid.
    """
    require_known(name, FLEETS, "fleet")
    require(
        isinstance(num_clients, (int, np.integer)) and num_clients >= 1,
        f"num_clients = {num_clients}",
        "must be an integer >= 1",
        "use the number of clients of the data",
    )
    require(
        isinstance(seed, (int, np.integer)) and seed >= 0,
        f"seed = {seed!r}",
        "must be a whole number >= 0",
        "any such number will do",
    )
    own = {"num_clients": num_clients, "failure_rate": failure_rate}
    check_types(own, f"option of fleet {name!r}", build)
    options = {"seed": seed, **options}
    check_options(options, f"option of fleet {name!r}", FLEETS[name], derived=("num_clients",))
    fleet = FLEETS[name](num_clients=int(num_clients), **options)
    if failure_rate or on_interrupt != "finish":
        fleet = replace(fleet, failure_rate=failure_rate, on_interrupt=on_interrupt)
    return fleet if energy is None else with_energy(fleet, energy)


@checked
def uniform(
    num_clients: Size,
    seed: int = 0,
    *,
    flops_per_s: float = FLOPS_PER_S,
    downlink_bytes_per_s: Unlimited = np.inf,
    uplink_bytes_per_s: Unlimited = np.inf,
) -> Fleet:
    """Equal, constant devices, for control experiments."""
    del seed
    return Fleet(
        flops_per_s=np.full(num_clients, flops_per_s, np.float64),
        downlink_bytes_per_s=downlink_bytes_per_s,
        uplink_bytes_per_s=uplink_bytes_per_s,
        name="uniform",
    )


@checked
def speed_groups(
    num_clients: Size,
    seed: int = 0,
    *,
    relative_speeds: Sequence[float] = (0.34, 0.71, 1.0),
    base_flops_per_s: float = FLOPS_PER_S,
    downlink_bytes_per_s: Unlimited = np.inf,
    uplink_bytes_per_s: Unlimited = np.inf,
) -> Fleet:
    """G groups of equal size and different speed; client k is in group k mod G.

    The default is FedPMT's setting: capacities that allow one, three and four of the four layers of
    its CNN (shares 0.339, 0.705 and 1 of a full step; see `cost.CostTable.step_flops`).

    Args:
      num_clients: number of clients, n.
      seed: unused, because nothing is drawn.
      relative_speeds: speed of each group over `base_flops_per_s`.
      base_flops_per_s: speed of a device of relative speed 1.
      downlink_bytes_per_s: download rate of every device.
      uplink_bytes_per_s: upload rate of every device.
    """
    del seed
    speeds = np.asarray(relative_speeds, np.float64)
    require(
        speeds.ndim == 1 and speeds.size >= 1,
        f"relative_speeds = {relative_speeds}",
        "must be a list of positive numbers",
        "give one per group",
    )
    groups = np.arange(num_clients) % speeds.size
    return Fleet(
        flops_per_s=base_flops_per_s * speeds[groups],
        downlink_bytes_per_s=downlink_bytes_per_s,
        uplink_bytes_per_s=uplink_bytes_per_s,
        groups=groups,
        group_names=tuple(f"speed {speed:g}" for speed in speeds),
        name="speed_groups",
    )


@checked
def exponential(
    num_clients: Size,
    seed: int = 0,
    *,
    mean_flops_per_s: float = FLOPS_PER_S,
    stages: Count = 1,
    downlink_bytes_per_s: Unlimited = np.inf,
    uplink_bytes_per_s: Unlimited = np.inf,
) -> Fleet:
    """Equal devices whose compute times are exponential, or sums of `stages` exponentials."""
    del seed
    return Fleet(
        flops_per_s=np.full(num_clients, mean_flops_per_s, np.float64),
        downlink_bytes_per_s=downlink_bytes_per_s,
        uplink_bytes_per_s=uplink_bytes_per_s,
        compute_distribution="exponential",
        compute_stages=stages,
        name="exponential",
    )


FLEETS: dict[str, Callable[..., Fleet]] = {
    "adel": adel,
    "dtfl": dtfl,
    "exponential": exponential,
    "fedel": fedel,
    "phones": phones,
    "prfl": prfl,
    "speed_groups": speed_groups,
    "traces": from_traces,
    "uniform": uniform,
    **READERS,
}
