"""Devices as a table lists them: their numbers in the units of `Fleet`, names and classes."""

from typing import Any

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import LEAST, MOST, usable
from fedjax_het.common.tables import Table
from fedjax_het.fleet.amounts import LONGEST_NAME
from fedjax_het.fleet.columns import COLUMNS, UNITS, scaled


def numbers(table: Table) -> dict[str, np.ndarray]:
    """The columns of numbers in the units of `Fleet`, float64[rows]."""
    values: dict[str, np.ndarray] = {}
    from_name: dict[str, str] = {}
    for name in (name for name in table.columns if name in UNITS):
        field, factor = UNITS[name]
        require(
            field not in values,
            f"{table.path}, {table.head}, column {name!r}",
            f"must not be given together with {from_name.get(field)!r}, both are {field}",
            f"take one away, or leave it out with columns = {{{name!r}: ''}}",
        )
        limits = COLUMNS[field]
        column = scaled(table.numbers(name), factor)
        least = column > 0 if limits["positive"] else column >= 0
        words = "positive" if limits["positive"] else ">= 0"
        table.require(
            least & (limits["may_be_inf"] | (column < np.inf)),
            name,
            f"must be {words}" + ("" if limits["may_be_inf"] else " and finite"),
            "correct the value, or leave the device out",
        )
        table.require(
            usable(column) | np.isinf(column),
            name,
            f"must be {LEAST:g} to {MOST:g} as {field}",
            "check its unit",
        )
        values[field], from_name[field] = column, name
    if "failure_rate" in values:
        good = values["failure_rate"] < 1
        table.require(good, "failure_rate", "must be less than 1", "leave the device out")
    if {"joins_s", "leaves_s"} <= values.keys():
        good = values["leaves_s"] > values["joins_s"]
        table.require(good, "leaves_s", "must be after joins_s", "leave the device out")
    return values


def names(table: Table) -> list[str] | None:
    """The names of the devices, all different; None without a column of them."""
    if "device" not in table.columns:
        return None
    found = table.texts("device")
    _require_short(table, "device", found)
    first: dict[str, int] = {}
    good = np.array([first.setdefault(name, i) == i for i, name in enumerate(found)])
    table.require(good, "device", "must not be there twice", "name every device differently")
    return found


def classes(table: Table, rows: np.ndarray) -> dict[str, Any]:
    """The classes of the clients' devices, numbered as they appear in the file, if it has any."""
    if "class" not in table.columns:
        return {}
    texts = table.texts("class")
    _require_short(table, "class", texts)
    number = {name: k for k, name in enumerate(dict.fromkeys(texts))}
    groups = np.array([number[text] for text in texts])
    return {"groups": groups[rows], "group_names": tuple(number)}


def _require_short(table: Table, name: str, texts: list[str]) -> None:
    short = np.array([len(text) <= LONGEST_NAME for text in texts])
    table.require(short, name, f"must have at most {LONGEST_NAME} characters", "shorten it")
