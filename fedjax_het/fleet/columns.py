"""The columns of a fleet: their limits, and the names and units by which files give them."""

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError

# Columns that price energy; a fleet in which all are 0 records none.
PRICES = ("joules_per_flop", "joules_per_byte_up", "joules_per_byte_down", "idle_watts")

# Limits of every column of `Fleet` that holds a number per device.
COLUMNS: dict[str, Any] = {
    "flops_per_s": {"positive": True, "may_be_inf": False},
    "downlink_bytes_per_s": {"positive": True, "may_be_inf": True},
    "uplink_bytes_per_s": {"positive": True, "may_be_inf": True},
    "memory_bytes": {"positive": True, "may_be_inf": True},
    "latency_s": {"positive": False, "may_be_inf": False},
    "compute_jitter": {"positive": False, "may_be_inf": False},
    "link_jitter": {"positive": False, "may_be_inf": False},
    **{name: {"positive": False, "may_be_inf": False} for name in PRICES},
    "failure_rate": {"positive": False, "may_be_inf": False},
    "joins_s": {"positive": False, "may_be_inf": False},
    "leaves_s": {"positive": True, "may_be_inf": True},
    "battery_joules": {"positive": True, "may_be_inf": True},
}
# Columns that a run describes only if a device has another value than this one.
USUAL = {**dict.fromkeys((*PRICES, "failure_rate", "joins_s"), 0.0)}
USUAL |= dict.fromkeys(("leaves_s", "battery_joules"), np.inf)

# One unit of a name's end in units of the column: a megabit per second is 125,000 bytes per second.
_RATES = {"kbps": 125.0, "mbps": 125e3, "gbps": 125e6, "bytes_per_s": 1.0}
_SIZES = {"bytes": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_SIZES |= {"kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_JOULES = {"joules": 1.0, "mj": 1e-3, "uj": 1e-6, "nj": 1e-9, "pj": 1e-12}

# Names of columns in files, with the column of `Fleet` and the factor of the unit.
UNITS: dict[str, tuple[str, float]] = {
    **{name: (name, 1.0) for name in COLUMNS},
    "mflops": ("flops_per_s", 1e6),
    "gflops": ("flops_per_s", 1e9),
    "tflops": ("flops_per_s", 1e12),
    **{f"down_{unit}": ("downlink_bytes_per_s", by) for unit, by in _RATES.items()},
    **{f"up_{unit}": ("uplink_bytes_per_s", by) for unit, by in _RATES.items()},
    **{f"memory_{unit}": ("memory_bytes", by) for unit, by in _SIZES.items()},
    "latency_ms": ("latency_s", 1e-3),
    **{f"{unit}_per_flop": ("joules_per_flop", by) for unit, by in _JOULES.items()},
    **{f"{unit}_per_byte_up": ("joules_per_byte_up", by) for unit, by in _JOULES.items()},
    **{f"{unit}_per_byte_down": ("joules_per_byte_down", by) for unit, by in _JOULES.items()},
    "idle_mw": ("idle_watts", 1e-3),
    "battery_kj": ("battery_joules", 1e3),
    "battery_wh": ("battery_joules", 3600.0),
}


def scaled(values: np.ndarray, factor: float) -> np.ndarray:
    """Values in units of a column, rounded once: 1.1 nJ are the number 1.1e-9."""
    return values * factor if factor >= 1 else values / round(1 / factor)


def renamed(
    names: list[str], known: tuple[str, ...], given: Mapping[str, str] | None, where: str
) -> dict[str, str]:
    """The names by which a reader knows the columns of a file.

    Capitals and spaces around a name do not matter.

    Args:
      names: names in the file.
      known: names that the reader knows.
      given: names in place of those in the file, by these; an empty one leaves a column out.
      where: place of the names, for error messages.

    Returns:
      For every known name that the file has, the name in the file.

    Raises:
      InputError: if a name is unknown, two columns have one name, or `given` names no column.
    """
    given = given or {}
    for name in given:
        if name not in names:
            raise InputError(
                f"columns = {dict(given)!r}: {where} has no column {name!r}; name one of "
                + ", ".join(names)
            )
    found: dict[str, str] = {}
    for name in names:
        own = str(given.get(name, name)).strip().lower()
        if name in given and not own:
            continue
        if own not in known:
            near = difflib.get_close_matches(own, known, n=1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"{where}, column {name!r}: is not a column that is known here; {meant}rename it, "
                f"or leave it out with columns = {{{name!r}: ''}}"
            )
        if own in found:
            raise InputError(
                f"{where}, columns {found[own]!r} and {name!r}: must not both be {own!r}; take one "
                f"away, or leave it out with columns = {{{name!r}: ''}}"
            )
        found[own] = name
    return found
