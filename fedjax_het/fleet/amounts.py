"""Checks of the values given to a fleet: numbers per device or per task, ids of clients."""

from typing import Any

import numpy as np

from fedjax_het.common import numbers
from fedjax_het.common.arrays import given_array, require_unmasked
from fedjax_het.common.errors import InputError, require

# Largest number of a device class; a count of every one is kept.
_MOST_GROUPS = 10**6
# Characters of the name of a device; an array of text has room for the longest in every place.
LONGEST_NAME = 100


def device_column(name: str, value: Any, n: int, *, positive: bool, may_be_inf: bool) -> np.ndarray:
    """A property of n devices, float64[n], read-only.

    Args:
      name: name of the property.
      value: number for all devices, or one for each.
      n: number of devices.
      positive: whether 0 is refused.
      may_be_inf: whether infinity is accepted.

    Raises:
      InputError: if the values are not such numbers.
    """
    require_unmasked(value, name)
    column = numbers.reals(value)
    if column is None:
        raise InputError(
            f"{name} = {numbers.shown(value)}: must be numbers; give one value per device"
        )
    require(
        column.shape in ((), (n,)),
        f"{name} of shape {column.shape}",
        f"must be a number or have shape ({n},), like flops_per_s",
        "give one value per device",
    )
    # One number for all is checked and held once.
    column = np.array(np.atleast_1d(column))
    # NaN fails every comparison, so it is caught here as well.
    good = ((column > 0) if positive else (column >= 0)) & (may_be_inf | (column < np.inf))
    bad = np.flatnonzero(~good)
    limit = ("positive" if positive else ">= 0") + ("" if may_be_inf else " and finite")
    require(
        bad.size == 0,
        f"{name} = {column[bad[:1]]} of device {bad[:1]}",
        f"must be {limit}",
        "leave the device out, or give it a usable value",
    )
    bad = np.flatnonzero(~(numbers.usable(column) | np.isinf(column)))
    require(
        bad.size == 0,
        f"{name} = {column[bad[:1]]} of device {bad[:1]}",
        f"must be from {numbers.LEAST:g} to {numbers.MOST:g}, as all that is physical",
        "check its unit",
    )
    column.setflags(write=False)
    return np.broadcast_to(column, (n,))


def device_groups(value: Any, names: tuple[str, ...], n: int) -> np.ndarray:
    """The class of each device, int64[n], read-only.

    Args:
      value: class of all devices, or one for each.
      names: names of the classes, or ().
      n: number of devices.

    Raises:
      InputError: if a value is not a class, or a class has no name although names are given.
    """
    require_unmasked(value, "groups")
    given = numbers.reals(value)
    groups = np.zeros(0) if given is None else np.asarray(value)
    whole = (groups >= 0) & (groups <= _MOST_GROUPS)
    require(
        groups.dtype.kind in "iu" and groups.shape in ((), (n,)) and bool(whole.all()),
        f"groups = {numbers.shown(value)}",
        f"must be {n} integers >= 0 and at most {_MOST_GROUPS}",
        "number the device classes from 0",
    )
    groups = groups.astype(np.int64)
    require(
        not names or int(groups.max()) < len(names),
        f"group {int(groups.max())} with {len(names)} group names",
        "every group needs a name",
        "name them all, or none",
    )
    groups.setflags(write=False)
    return np.broadcast_to(groups, (n,))


def device_names(value: Any, n: int) -> np.ndarray:
    """The name of each device, text[n], read-only; `InputError` if the values are no such names."""
    names = given_array(value, "device_names", "give one text per device")
    require(
        names.dtype.kind == "U" and names.shape == (n,) and names.itemsize <= 4 * LONGEST_NAME,
        f"device_names of {names.dtype} and shape {names.shape}",
        f"must be {n} texts of at most {LONGEST_NAME} characters",
        "give one per device",
    )
    names = names.copy()
    names.setflags(write=False)
    return names


def client_ids(clients: np.ndarray, n: int) -> np.ndarray:
    """The ids as an array; `InputError` unless each is one of n devices."""
    clients = np.asarray(clients)
    require(
        clients.ndim == 1
        and clients.dtype.kind in "iu"
        and bool(((clients >= 0) & (clients < n)).all()),
        lambda: f"clients = {clients}",
        f"must be a vector of ids in 0..{n - 1}",
        "the fleet has one device per client",
    )
    return clients


def task_amount(name: str, value: Any, k: int, *, whole: bool = False) -> np.ndarray:
    """An amount of k tasks, float64[k].

    Args:
      name: name of the amount.
      value: number for all tasks, or one for each.
      k: number of tasks.
      whole: whether the amount is a whole number of bytes.

    Raises:
      InputError: if a number is negative, not finite, or a fraction of a byte.
    """
    amount = np.asarray(value, np.float64)
    require(
        amount.shape in ((), (k,))
        and (not amount.size or bool(amount.min() >= 0 and amount.max() < np.inf)),
        lambda: f"{name} = {amount}",
        f"must be a finite number >= 0, or {k} of them",
        "give one value per client",
    )
    amount = amount.copy() if amount.ndim else np.full(k, amount)
    require(
        not whole or bool((amount == np.floor(amount)).all()),
        lambda: f"{name} = {amount}",
        "must be whole bytes",
        "round up",
    )
    return amount


def span(values: np.ndarray) -> list[float | None]:
    """Least, median and largest of the values, for JSON; None for infinity."""
    low, middle, high = np.quantile(values, [0, 0.5, 1], method="nearest")
    return [float(v) if np.isfinite(v) else None for v in (low, middle, high)]


def speed_thirds(speed: np.ndarray) -> dict[str, Any]:
    """Device classes for a fleet without classes: the slow, middle and fast third.

    Args:
      speed: speeds of the devices, float64[n].

    Returns:
      The arguments `groups` and `group_names` of `Fleet`.
    """
    rank = np.argsort(np.argsort(speed, kind="stable"), kind="stable")
    return {"groups": rank * 3 // speed.size, "group_names": ("slow third", "middle", "fast third")}
