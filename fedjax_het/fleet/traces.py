"""Readers of measured device traces; every value is checked.

Two files, in a directory that the user names: `fl_device_traces.json` (device speeds, link speeds
and availability, from AI-Benchmark, FLASH, FLHetBench and MobiPerf) and `bandwidth_traces.npz`
(link rates over time). A damaged file raises an `InputError` that names it: truncated JSON does not
parse, and every member of an npz has a checksum. Nothing is unpickled.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.common.arrays import Layout, given_array, read_arrays, within
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.jsonio import read_json
from fedjax_het.fleet.bandwidth import BandwidthTraces

DATA_DIR_VARIABLE = "FEDJAX_HET_DATA"
DEVICE_FILE = "fl_device_traces.json"
BANDWIDTH_FILE = "bandwidth_traces.npz"

_BANDWIDTH_ARRAYS: Layout = {
    "time_s": ("numbers", ("points",)),
    "mbps": ("numbers", ("points",)),
    "length": ("integers", ("traces",)),
    "set": ("integers", ("traces",)),
    "sets": ("text", ("sets",)),
}
_REMEDY = "fetch the file again, or name another directory"


class Phones(NamedTuple):
    """AI-Benchmark scores of the speed of phones; one row per phone model."""

    models: tuple[str, ...]
    score: np.ndarray  # float64[m], > 0, proportional to speed


class Latencies(NamedTuple):
    """Times of one training step of a ResNet on a phone; one row per measurement (FLHetBench)."""

    models: tuple[str, ...]
    latency_s: np.ndarray  # float64[m], > 0


class Links(NamedTuple):
    """Distributions of link rates; one row per device."""

    down_mean_bytes_per_s: np.ndarray  # float64[m], > 0
    down_std_bytes_per_s: np.ndarray  # float64[m], >= 0
    up_mean_bytes_per_s: np.ndarray  # float64[m], > 0
    up_std_bytes_per_s: np.ndarray  # float64[m], >= 0


class OnTraces(NamedTuple):
    """Recorded intervals (FLASH) in which phones were idle, charging and on Wi-Fi."""

    on_s: tuple[np.ndarray, ...]  # float64[m_k, 2] each, from the start of the record
    period_s: np.ndarray  # float64[m], length of the record
    start_s: np.ndarray  # float64[m], start of the record on the clock common to all


def find(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """Path of a trace file.

    Args:
      name: name of the file.
      data_dir: directory of the file; None for the value of the environment variable
        FEDJAX_HET_DATA.

    Returns:
      The path of an existing file.

    Raises:
      InputError: if no directory is given or the file is not in it.
    """
    directory = data_dir if data_dir is not None else os.environ.get(DATA_DIR_VARIABLE)
    require(
        bool(directory),
        "data_dir = None",
        f"{name} is read from a directory of yours",
        f"pass data_dir or set {DATA_DIR_VARIABLE}",
    )
    path = Path(str(directory)) / name
    require(
        os.path.isfile(path),
        str(path),
        "no such file",
        f"put {name} there, or name another data_dir",
    )
    return path


def phones(path: str | os.PathLike[str]) -> Phones:
    """Scores of phones; section `ai_benchmark_devices` of the device file."""
    rows = _section(path, "ai_benchmark_devices")
    return Phones(_texts(path, rows, "model"), _numbers(path, rows, "ai_score", positive=True))


def latencies(path: str | os.PathLike[str]) -> Latencies:
    """Training latencies; section `training_latency_ms`, without rows of missing values (0)."""
    section = _section(path, "training_latency_ms")
    lost = _numbers(path, section, "resnet_ms", positive=False) == 0
    rows = [row for row, zero in zip(section, lost) if not zero]
    require(bool(rows), str(path), "holds no latency > 0", _REMEDY)
    return Latencies(
        _texts(path, rows, "model"),
        _numbers(path, rows, "resnet_ms", positive=True) / 1e3,
    )


def wifi_links(path: str | os.PathLike[str]) -> Links:
    """Wi-Fi rates of 19 phones (FLASH); section `network_speed_distribution`.

    The file says kb/s. FLASH divides bytes / 1024 by these numbers, so they are KiB/s: a median
    download of 35 Mbit/s, in line with the 42 Mbit/s that MobiPerf measured over Wi-Fi.
    """
    rows = _section(path, "network_speed_distribution")
    return Links(
        *(
            1024 * _numbers(path, rows, name, positive=name.endswith("_u"))
            for name in ("down_u", "down_sigma", "up_u", "up_sigma")
        )
    )


def mobiperf_links(path: str | os.PathLike[str]) -> Links:
    """Downlink rates of phones (MobiPerf, kbit/s); section `mobiperf_tcp_samples`.

    Only downloads were measured; uploads get the same rates, as in FLHetBench.
    """
    rows = _section(path, "mobiperf_tcp_samples")
    mean, std = [], []
    for i, row in enumerate(rows):
        rates = _array(path, row.get("tcp_kbps"), f"mobiperf_tcp_samples[{i}].tcp_kbps")
        require(
            rates.ndim == 1 and rates.size > 0 and bool((rates > 0).all()),
            f"{path}: mobiperf_tcp_samples[{i}].tcp_kbps",
            "must be rates > 0",
            _REMEDY,
        )
        mean.append(rates.mean() * 125.0)  # 1 kbit/s = 125 bytes/s
        std.append(rates.std() * 125.0)
    down, spread = np.asarray(mean), np.asarray(std)
    return Links(down, spread, down, spread)


def availability(path: str | os.PathLike[str]) -> OnTraces:
    """On-intervals; section `availability`, without phones that were never on."""
    on_s, period_s, start_s = [], [], []
    for i, row in enumerate(_section(path, "availability")):
        where = f"availability[{i}]"
        start, end = (_array(path, row.get(key), f"{where}.{key}") for key in ("start", "end"))
        ready = _array(path, row.get("ready"), f"{where}.ready")
        require(
            start.ndim == end.ndim == 0 and (ready.shape[1:] == (2,) or ready.size == 0),
            f"{path}: {where}.ready",
            "must be pairs of seconds",
            _REMEDY,
        )
        ready = ready.reshape(-1, 2)
        flat = ready.ravel()
        require(
            bool(start < end)
            and bool((np.diff(flat) >= 0).all() and (flat >= start).all() and (flat <= end).all()),
            f"{path}: {where}",
            "intervals must be sorted, disjoint and within start..end",
            _REMEDY,
        )
        ready = ready[ready[:, 1] > ready[:, 0]]
        if len(ready):
            on_s.append(ready - start)
            period_s.append(float(end - start))
            start_s.append(float(start))
    require(bool(on_s), str(path), "no phone in it is ever on", _REMEDY)
    return OnTraces(tuple(on_s), np.asarray(period_s), np.asarray(start_s))


def bandwidth(path: str | os.PathLike[str], sets: tuple[str, ...] | None = None) -> BandwidthTraces:
    """Link rates over time.

    Args:
      path: path of an npz with `time_s` and `mbps` float32[p] (all traces one after the other),
        `length` int32[m], `set` int8[m] and `sets` (names of the collections).
      sets: names of the collections to keep; None for all.

    Returns:
      The traces.
    """
    arrays = read_arrays(path, _BANDWIDTH_ARRAYS, _REMEDY)
    time_s, mbps, length, which, names = (arrays[name] for name in _BANDWIDTH_ARRAYS)
    # Lengths are bounded before they are added, because a sum of 64 bits may wrap.
    fits = within(length, 1, time_s.size) and within(which, 0, names.size - 1)
    require(
        fits and int(length.sum(dtype=np.int64)) == time_s.size,
        f"{path}: {time_s.size} points, {length.size} lengths from {length.min()} to "
        f"{length.max()}, sets {which.min()} to {which.max()} of {names.size}",
        "the arrays do not fit together",
        _REMEDY,
    )
    known = tuple(str(name) for name in names)
    require(len(set(known)) == len(known), f"{path}: sets {known}", "must differ", _REMEDY)
    for name in sets or ():
        require_known(name, known, "bandwidth set")
    keep = np.isin(which, [known.index(name) for name in sets or known])
    points = np.repeat(keep, length)
    return BandwidthTraces(
        time_s=time_s[points].astype(np.float64),
        bytes_per_s=mbps[points].astype(np.float64) * 125_000.0,  # 1 Mbit/s
        offsets=np.append(0, np.cumsum(length[keep], dtype=np.int64)),
        sets=known,
        set_of_trace=which[keep].astype(np.int64),
    )


def _section(path: str | os.PathLike[str], name: str) -> list[dict[str, Any]]:
    content = read_json(Path(path), _REMEDY, None)
    rows = content.get(name) if isinstance(content, dict) else None
    require(
        isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows),
        str(path),
        f"lacks the section {name!r}, a list of records",
        _REMEDY,
    )
    return list(rows or ())


def _array(path: str | os.PathLike[str], value: Any, where: str) -> np.ndarray:
    array = given_array(value, f"{path}: {where}", _REMEDY)
    require(
        array.dtype.kind in "iuf",
        f"{path}: {where}",
        "is not numeric, or beyond 64 bits",
        _REMEDY,
    )
    return array.astype(np.float64)


def _numbers(
    path: str | os.PathLike[str], rows: list[dict[str, Any]], field: str, *, positive: bool
) -> np.ndarray:
    values = _array(path, [row.get(field) for row in rows], field)
    bad = np.flatnonzero(values <= 0 if positive else values < 0)
    require(
        values.ndim == 1 and bad.size == 0,
        f"{path}: {field} = {values[bad[:1]]} in record {bad[:1]}",
        "must be positive" if positive else "must be >= 0",
        _REMEDY,
    )
    return values


def _texts(path: str | os.PathLike[str], rows: list[dict[str, Any]], field: str) -> tuple[str, ...]:
    require(all(field in row for row in rows), f"{path}: {field}", "missing in a record", _REMEDY)
    return tuple(str(row[field]) for row in rows)
