"""Recorded times of availability and rates of links, read from files of one's own.

Availability is a CSV file of intervals, or JSON in the format of the state traces of FLASH or of
the availability traces of FedScale; rates of links are a CSV file.

References:
  FLASH: Yang et al., Characterizing Impacts of Heterogeneity in Federated Learning upon
  Large-Scale Smartphone Data, WWW 2021; its README and `models/timer.py` describe the traces.
  FedScale: Lai et al., ICML 2022; `benchmark/dataset/data/device_info/README.md` describes them.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import AnyPath
from fedjax_het.common.numbers import shown
from fedjax_het.common.tables import Table, read_csv, read_json
from fedjax_het.fleet.bandwidth import BandwidthTraces
from fedjax_het.fleet.columns import UNITS, renamed, scaled

_TIMES = "write one line per interval: device,on_s,off_s"
_RATES = "write one line per change: device,time_s,down_mbps,up_mbps"
_JSON = "give the state traces of FLASH or the availability traces of FedScale, or a CSV file"
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
# Virtual time 0 on the clock of FLASH's traces.
_FLASH_START = datetime(2020, 1, 2)
_FLASH_STATES = {
    "battery_charged_on": ("charging", True),
    "battery_charged_off": ("charging", False),
    "screen_lock": ("locked", True),
    "screen_unlock": ("locked", False),
    "wifi": ("wifi", True),
    **dict.fromkeys(("unknown", "2g", "3g", "4g", "5g"), ("wifi", False)),
    **dict.fromkeys(("screen_on", "screen_off"), (None, False)),
}


class Recorded(NamedTuple):
    """Intervals of m devices that are on at some time; see `availability.from_intervals`."""

    devices: list[str]
    on_s: list[np.ndarray]  # float64[m_k, 2] each, sorted and disjoint
    period_s: np.ndarray  # float64[m], inf for intervals that happen once
    phase_s: np.ndarray  # float64[m]


def availability(path: AnyPath, period_s: float | None) -> tuple[Recorded, bytes]:
    """The availability in a file, and the content of the file.

    Args:
      path: path of a CSV file, or of a JSON file whose name ends in `.json`.
      period_s: time after which the intervals of a CSV file repeat; None if they happen once.

    Raises:
      InputError: for a file that is missing or in another format, or intervals that are none.
    """
    if str(path).lower().endswith(".json"):
        require(
            period_s is None,
            f"period_s = {period_s} with {path}",
            "belongs to intervals in a CSV file; those in JSON have periods of their own",
            "leave it out",
        )
        return _from_json(path)
    table = read_csv(path, _TIMES)
    known = ("device", *(f"{edge}_{unit}" for unit in _SECONDS for edge in ("on", "off")))
    columns = renamed([*table.columns], known, None, f"{path}, {table.head}")
    table = table.renamed(columns)
    require("device" in table.columns, f"{path}, {table.head}", "lacks 'device'", _TIMES)
    devices = table.texts("device")
    _, on_s = _seconds(table, "on")
    name, off_s = _seconds(table, "off")
    table.require(off_s > on_s, name, "must be after the time at which it goes on", "correct it")
    last_s = np.inf if period_s is None else period_s
    table.require(
        off_s <= last_s, name, f"must be at most period_s = {last_s:g}", "raise period_s, or cut it"
    )
    names = [*dict.fromkeys(devices)]
    rows = _rows_of(devices, names)
    return Recorded(
        names,
        [_union(on_s[own], off_s[own]) for own in rows],
        np.full(len(names), last_s),
        np.zeros(len(names)),
    ), table.content


def _seconds(table: Table, edge: str) -> tuple[str, np.ndarray]:
    """The name of the column of times, and the times, >= 0."""
    given = [unit for unit in _SECONDS if f"{edge}_{unit}" in table.columns]
    require(
        len(given) == 1,
        f"{table.path}, {table.head}: {len(given)} columns for {edge!r}",
        f"must be one of {edge}_s, {edge}_min and {edge}_h",
        _TIMES,
    )
    name = f"{edge}_{given[0]}"
    time_s = table.numbers(name) * _SECONDS[given[0]]
    table.require(
        (time_s >= 0) & (time_s < np.inf),
        name,
        "must be a time >= 0 and finite",
        "count from the start of the record, and end an interval with it at the latest",
    )
    return name, time_s


def _rows_of(devices: list[str], names: list[str]) -> list[np.ndarray]:
    """The rows of each device, in the order of the file."""
    number = {name: k for k, name in enumerate(names)}
    device = np.array([number[name] for name in devices])
    order = np.argsort(device, kind="stable")
    return np.split(order, np.cumsum(np.bincount(device, minlength=len(names)))[:-1])


def _union(on_s: np.ndarray, off_s: np.ndarray) -> np.ndarray:
    """The times in any of the intervals, as sorted and disjoint intervals, float64[m, 2]."""
    if on_s.size == 0:
        return np.zeros((0, 2))
    order = np.argsort(on_s, kind="stable")
    on_s, off_s = on_s[order], np.maximum.accumulate(off_s[order])
    apart = on_s[1:] > off_s[:-1]
    return np.stack([on_s[np.append(True, apart)], off_s[np.append(apart, True)]], axis=1)


def _from_json(path: AnyPath) -> tuple[Recorded, bytes]:
    records, content = read_json(path, _JSON)
    require(
        isinstance(records, dict)
        and bool(records)
        and all(isinstance(record, dict) for record in records.values()),
        f"{path}: {shown(records)}",
        "must be an object with an object for every device",
        _JSON,
    )
    first = next(iter(records.values()))
    read: Callable[[dict[str, Any], str], tuple[np.ndarray, float, float]]
    if "messages" in first:
        read = _flash
    elif "active" in first:
        read = _fedscale
    else:
        raise InputError(
            f"{path}: records with {sorted(first)[:8]}: must have 'messages', as in FLASH, or "
            f"'active', as in FedScale; {_JSON}"
        )
    found: dict[str, tuple[np.ndarray, float, float]] = {}
    for name, record in records.items():
        on_s, period_s, phase_s = read(record, f"{path}, device {name!r}")
        if len(on_s):
            found[name] = on_s, period_s, phase_s
    require(bool(found), str(path), "no device in it is ever on", "give another file")
    all_on_s, periods_s, phases_s = zip(*found.values(), strict=True)
    return Recorded([*found], [*all_on_s], np.array(periods_s), np.array(phases_s)), content


def _fedscale(record: dict[str, Any], where: str) -> tuple[np.ndarray, float, float]:
    """Intervals `active`..`inactive`, which repeat after `finish_time` seconds.

    What lies behind `finish_time` is never reached there, and is left out.
    """
    on_s, off_s = (_times(record, name, where) for name in ("active", "inactive"))
    require(
        on_s.size == off_s.size,
        f"{where}: {on_s.size} times in 'active' and {off_s.size} in 'inactive'",
        "must be equal in number",
        _JSON,
    )
    bad = np.flatnonzero(~((on_s >= 0) & (on_s < off_s)))
    require(
        bad.size == 0,
        lambda: f"{where}, interval {bad[0]}: {on_s[bad[0]]:g} to {off_s[bad[0]]:g} s",
        "must start at 0 or later, and end after that",
        "correct the record, or leave the device out",
    )
    end = record.get("finish_time")
    (period_s,) = _times({"finish_time": [end]}, "finish_time", where)
    require(period_s > 0, f"{where}: finish_time = {end}", "must be positive", "correct the record")
    within = on_s < period_s
    return _union(on_s[within], np.minimum(off_s[within], period_s)), float(period_s), 0.0


def _times(record: dict[str, Any], name: str, where: str) -> np.ndarray:
    value = record.get(name)
    good = isinstance(value, list) and all(type(each) in (int, float) for each in value)
    require(
        good and all(abs(each) < 1e15 for each in value or ()),
        f"{where}: {name} = {shown(value)}",
        "must be numbers of seconds",
        _JSON,
    )
    return np.array(value, np.float64)


def _flash(record: dict[str, Any], where: str) -> tuple[np.ndarray, float, float]:
    """Times at which a phone is locked, charging and on Wi-Fi.

    They repeat after the time from the first message to the last, on the clock common to all
    phones. A phone that is on at its last message is on until then.
    """
    messages = record.get("messages")
    if not isinstance(messages, str):
        raise InputError(f"{where}: messages = {shown(messages)}: must be text; {_JSON}")
    events = []
    for number, line in enumerate(messages.split("\n"), 1):
        if line.strip():
            events.append(_event(line, f"{where}, message {number}"))
    events.sort(key=lambda event: event[0])  # stable: messages of one second keep their order
    states = {"locked": False, "charging": False, "wifi": False}
    intervals, since_s = [], None
    for time_s, name, value in events:
        if name is not None:
            states[name] = value
        on = all(states.values())
        if on and since_s is None:
            since_s = time_s
        elif not on and since_s is not None:
            intervals.append((since_s, time_s))
            since_s = None
    if not events:
        return np.zeros((0, 2)), np.inf, 0.0
    start_s, end_s = events[0][0], events[-1][0]
    if since_s is not None:
        intervals.append((since_s, end_s))
    on_s = np.array([pair for pair in intervals if pair[0] < pair[1]]).reshape(-1, 2)
    period_s = end_s - start_s
    phase_s = float(np.mod(-start_s, period_s)) if period_s > 0 else 0.0
    return _union(*(on_s - start_s).T), period_s, phase_s


def _event(line: str, where: str) -> tuple[float, str | None, bool]:
    """The time of a message in seconds, and the state that it changes, if any, to what."""
    when, tab, state = line.strip().partition("\t")
    state = state.strip().lower()
    try:
        if len(when.strip()) != 19:
            raise ValueError
        time = datetime.fromisoformat(when.strip())
    except ValueError:
        raise InputError(
            f"{where}: {shown(line)}: must be a time as 2020-01-28 06:30:00, a tab and a state; "
            "correct the message, or leave it out"
        ) from None
    known = state in _FLASH_STATES or state.endswith("%")
    require(
        known and bool(tab),
        f"{where}: state {state!r}",
        f"must be a percentage or one of {', '.join(_FLASH_STATES)}",
        "correct the message, or leave it out",
    )
    return ((time - _FLASH_START).total_seconds(), *_FLASH_STATES.get(state, (None, False)))


def rates(path: AnyPath) -> tuple[list[str], dict[str, BandwidthTraces], bytes]:
    """The rates of links over time in a CSV file, which repeat without end.

    Args:
      path: path of a file with the columns `device`, `time_s`, and one or both of `down_mbps` and
        `up_mbps` (or another unit). Times of a device start at 0 and increase; the last rate holds
        for as long as the median step.

    Returns:
      The devices; the traces of each way by the name of the column of `Fleet`, one per device; and
      the content of the file.

    Raises:
      InputError: for a file that is missing or in another format, or values that are no rates.
    """
    table = read_csv(path, _RATES)
    links = {n: to for n, to in UNITS.items() if to[0].endswith("link_bytes_per_s")}
    known = ("device", "time_s", *links)
    table = table.renamed(renamed([*table.columns], known, None, f"{path}, {table.head}"))
    for name in ("device", "time_s"):
        require(name in table.columns, f"{path}, {table.head}", f"lacks {name!r}", _RATES)
    devices, time_s = table.texts("device"), table.numbers("time_s")
    names = [*dict.fromkeys(devices)]
    rows = _rows_of(devices, names)
    order, offsets = np.concatenate(rows), np.append(0, np.cumsum([own.size for own in rows]))
    before_s = np.append(-np.inf, time_s[order][:-1])
    first = np.zeros(len(order), bool)
    first[offsets[:-1]] = True
    good = np.zeros(len(order), bool)
    ordered_s = time_s[order]
    good[order] = (ordered_s < np.inf) & np.where(first, ordered_s == 0, ordered_s > before_s)
    table.require(
        good, "time_s", "times of a device must start at 0 and increase", "sort its lines by time"
    )
    found: dict[str, BandwidthTraces] = {}
    for name in (name for name in links if name in table.columns):
        field, factor = links[name]
        require(
            field not in found,
            f"{path}, {table.head}, column {name!r}",
            f"is a second column of {field}",
            "keep one of them",
        )
        rate = scaled(table.numbers(name), factor)
        table.require(
            (rate >= 0) & (rate <= 1e30), name, "must be a rate >= 0 and finite", "correct it"
        )
        moving = np.add.reduceat(rate[order] > 0, offsets[:-1]) > 0
        dead = [own[0] for own, moves in zip(rows, moving, strict=True) if not moves]
        good = ~np.isin(np.arange(len(order)), dead)
        table.require(good, name, "its device has no rate above 0", "leave the device out")
        which = np.zeros(len(names), np.int64)
        found[field] = BandwidthTraces(ordered_s, rate[order], offsets, (str(path),), which)
    require(bool(found), f"{path}, {table.head}", "lacks a rate", _RATES)
    return names, found, table.content
