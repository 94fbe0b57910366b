"""Energy of tasks in joules, and prices of energy from published figures."""

from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from fedjax_het.common.errors import require_known
from fedjax_het.fleet.amounts import client_ids, task_amount
from fedjax_het.fleet.device import Fleet

Energy = Literal["phone_wifi", "phone_lte"]


class _Radio(NamedTuple):
    """Power of a transfer in watts: `joules_per_bit * bits per second + base_watts`."""

    up_joules_per_bit: float
    down_joules_per_bit: float
    base_watts: float


# Huang et al., table of the data transfer power model: mW per Mbit/s is nJ per bit.
_RADIOS = {
    "phone_wifi": _Radio(283.17e-9, 137.01e-9, 0.13286),
    "phone_lte": _Radio(438.39e-9, 51.97e-9, 1.28804),
}
_IDLE_WATTS = 0.0114
_COMPUTE_WATTS = (5.5 + 5.6 + 3.6) / 3


def task_joules(
    fleet: Fleet,
    clients: np.ndarray,
    flops: Any,
    bytes_down: Any,
    bytes_up: Any,
    idle_s: Any,
) -> np.ndarray:
    """Energy that devices spend on tasks: computation, transfers and waiting for the merge.

        joules = flops * joules_per_flop + bytes_up * joules_per_byte_up
               + bytes_down * joules_per_byte_down + idle_s * idle_watts

    The energy of the server and of the network is not part of it.

    Args:
      fleet: fleet at the time of dispatch; see `Fleet.at`.
      clients: ids of the clients, int64[k].
      flops: FLOPs that were computed, float or float64[k].
      bytes_down: bytes that were received, float or float64[k].
      bytes_up: bytes that were sent, float or float64[k].
      idle_s: seconds between the end of the work and the merge, float or float64[k].

    Returns:
      Joules, float64[k].

    Raises:
      InputError: if a client is unknown, or an amount is negative or not finite.
    """
    clients = client_ids(clients, fleet.num_devices)
    amounts = {
        "joules_per_flop": ("flops", flops),
        "joules_per_byte_up": ("bytes_up", bytes_up),
        "joules_per_byte_down": ("bytes_down", bytes_down),
        "idle_watts": ("idle_s", idle_s),
    }
    joules = np.zeros(clients.size)
    for price, (name, amount) in amounts.items():
        joules += task_amount(name, amount, clients.size) * getattr(fleet, price)[clients]
    return joules


def with_energy(fleet: Fleet, energy: Energy) -> Fleet:
    """The fleet with the prices of phones, derived from published measurements of power.

    A phone computes at 4.9 W, the mean of the peak powers of the CPUs of a high-end, a mid-range
    and a low-end phone (5.5, 5.6 and 3.6 W, measured), so that `joules_per_flop = 4.9 /
    flops_per_s` (derived): a slow phone needs more energy for the same work. The power of a
    transfer at the rate r in bit/s is `alpha r + beta` (a model fitted to measurements), so that a
    byte costs `8 alpha + beta / bytes_per_s` joules (derived). For Wi-Fi alpha is 283.17 nJ/bit up
    and 137.01 nJ/bit down, and beta 0.13286 W; for LTE 438.39, 51.97 and 1.28804. The energy of
    the tail, in which the LTE radio stays on after a transfer, is left out. A phone that waits has
    its screen off, 0.0114 W (measured).

    Warning: these figures are recalled from the papers below and have not been compared with their
    tables. Give columns of your own where absolute joules matter.

    Args:
      fleet: fleet whose speeds and rates are used; earlier prices are replaced. The speeds of most
        presets are known up to a factor only, and the energy of computation has the same factor.
      energy: kind of device: `"phone_wifi"` or `"phone_lte"`.

    Raises:
      InputError: if the kind is unknown.

    References:
      Compute power: Kim and Wu, AutoFL, MICRO 2021, arXiv 2107.08147, table of mobile devices.
      Radios and idle power: Huang et al., A Close Examination of Performance and Power
      Characteristics of 4G LTE Networks, MobiSys 2012, doi 10.1145/2307636.2307658, tables of the
      power states and of the data transfer power model.
    """
    require_known(energy, get_args(Energy), "energy")
    redraw = fleet.redraw
    if redraw is not None:
        rate = redraw.bytes_per_s
        redraw = replace(redraw, prices=_prices(energy, redraw.flops_per_s, rate, rate))
    rates = fleet.downlink_bytes_per_s, fleet.uplink_bytes_per_s
    return replace(fleet, redraw=redraw, **_prices(energy, fleet.flops_per_s, *rates))


def _prices(
    energy: Energy, flops_per_s: np.ndarray, down: np.ndarray, up: np.ndarray
) -> dict[str, Any]:
    """The energy columns of devices with these speeds and rates, float64[n] each."""
    radio = _RADIOS[energy]
    return {
        "joules_per_flop": _COMPUTE_WATTS / flops_per_s,
        "joules_per_byte_up": 8 * radio.up_joules_per_bit + radio.base_watts / up,
        "joules_per_byte_down": 8 * radio.down_joules_per_bit + radio.base_watts / down,
        "idle_watts": np.full(flops_per_s.size, _IDLE_WATTS),
    }
