"""Fleets of one's own from files: CSV, JSON, and the device capacities of FedScale.

    fleet = read_csv("devices.csv", availability="availability.csv")

A file has one line per device. Names of columns carry units (`gflops`, `down_mbps`, `memory_mb`),
see `columns.UNITS`; `docs/fleets.md` lists them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import AnyPath
from fedjax_het.common.numbers import Size
from fedjax_het.common.options import checked
from fedjax_het.common.tables import Table, read_records
from fedjax_het.common.tables import read_csv as read_table
from fedjax_het.fleet import listed, recorded
from fedjax_het.fleet.amounts import speed_thirds
from fedjax_het.fleet.availability import from_intervals
from fedjax_het.fleet.bandwidth import TraceLink
from fedjax_het.fleet.columns import UNITS, renamed
from fedjax_het.fleet.dealing import Assignment, Deal, TraceAssignment
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.published import FLOPS_PER_S

_KNOWN = ("device", "class", *UNITS)
_REMEDY = "give a table with one line per device, e.g. device,class,gflops,down_mbps,up_mbps"
_FEDSCALE = "give FedScale's client_device_capacity, converted to JSON"
# FedScale divides sizes in units of 1024 bits by the rate.
_FEDSCALE_BYTES_PER_S = 128.0


@checked
def read_csv(
    path: AnyPath,
    availability: AnyPath | None = None,
    *,
    num_clients: Size | None = None,
    seed: int = 0,
    rates: AnyPath | None = None,
    columns: Mapping[str, str] | None = None,
    assignment: Assignment = "in_order",
    trace_assignment: TraceAssignment = "by_id",
    period_s: float | None = None,
) -> Fleet:
    """Devices from a CSV file, with availability and rates of links from further files.

    Args:
      path: path of a table with a line of names and one line per device: `gflops` or another unit
        of speed; if given `device` (its name), `class`, and any other column of `Fleet`.
      availability: path of a CSV file with `device`, `on_s` and `off_s`, one line per time for
        which a device is on (times that overlap count once), or of the state traces of FLASH or the
        availability traces of FedScale in JSON; None for devices that are always on.
      num_clients: number of clients, n; None for one per device of the file.
      seed: seed of what is dealt.
      rates: path of a CSV file with `device`, `time_s`, `down_mbps` and `up_mbps`: rates that hold
        until the next line of the device, and repeat; None for the constant rates of `path`.
      columns: names in place of those in `path`, e.g. `{"speed": "gflops"}`; an empty name leaves a
        column out.
      assignment: which device belongs to which client. `"in_order"`: line k to client k, and their
        numbers must be equal. `"dealt"`: the devices are shuffled and dealt to the clients, again
        and again if there are more clients, so that a device is used as often as any other, or once
        more.
      trace_assignment: which record of `availability` and of `rates` belongs to which device:
        `"by_id"`, that with the name of the device, or `"dealt"`, as above.
      period_s: time after which the intervals of a CSV file of availability repeat; None for
        intervals that happen once.

    Returns:
      The fleet.

    Raises:
      InputError: for a file that is missing or damaged, a column that is unknown or missing, a
        value that is none, or numbers of devices and clients that do not fit.
    """
    table = read_table(path, _REMEDY)
    deal = Deal(num_clients, seed, assignment, trace_assignment)
    return _fleet("csv", table, deal, availability, rates, columns, period_s)


@checked
def read_json(
    path: AnyPath,
    availability: AnyPath | None = None,
    *,
    num_clients: Size | None = None,
    seed: int = 0,
    rates: AnyPath | None = None,
    columns: Mapping[str, str] | None = None,
    assignment: Assignment = "in_order",
    trace_assignment: TraceAssignment = "by_id",
    period_s: float | None = None,
) -> Fleet:
    """Devices from a JSON file: a list of objects, or an object of objects by name of the device.

    Fields are the columns of `read_csv`, whose arguments these are. `"inf"` is written as text.
    """
    table = read_records(path, _REMEDY, "device")
    deal = Deal(num_clients, seed, assignment, trace_assignment)
    return _fleet("json", table, deal, availability, rates, columns, period_s)


@checked
def read_fedscale(
    path: AnyPath,
    availability: AnyPath | None = None,
    *,
    num_clients: Size | None = None,
    seed: int = 0,
    median_flops_per_s: float = FLOPS_PER_S,
    assignment: Assignment = "in_order",
    trace_assignment: TraceAssignment = "by_id",
) -> Fleet:
    """Devices from FedScale's `client_device_capacity`, converted from a pickle to JSON.

    Its `computation` is the time of one sample in ms, so only ratios of speeds are known;
    `communication` is the rate of both directions in units of 1024 bits per second. See `read_csv`
    for the other arguments.

    Args:
      path: path of an object of `{"computation": ..., "communication": ...}` by device.
      availability: path of FedScale's `client_behave_trace` in JSON, or as in `read_csv`.
      num_clients: number of clients, n; None for one per device.
      seed: seed of what is dealt.
      median_flops_per_s: sustained training speed of the median device.
      assignment: which device belongs to which client.
      trace_assignment: which record of `availability` belongs to which device.

    References:
      Lai et al., FedScale, ICML 2022; `benchmark/dataset/data/device_info/README.md`.
    """
    table = read_records(path, _FEDSCALE, "device")
    for name in ("computation", "communication"):
        require(name in table.columns, f"{path}, {table.head}", f"lacks {name!r}", _FEDSCALE)
        table.require(table.numbers(name) > 0, name, "must be positive", "leave the device out")
    time_ms, rate = table.numbers("computation"), table.numbers("communication")
    rate = (rate * _FEDSCALE_BYTES_PER_S).tolist()
    own = {
        "device": table.columns["device"],
        "flops_per_s": (median_flops_per_s * np.median(time_ms) / time_ms).tolist(),
        "downlink_bytes_per_s": rate,
        "uplink_bytes_per_s": rate,
    }
    capacity = Table(table.path, own, table.places, table.head, table.content)
    deal = Deal(num_clients, seed, assignment, trace_assignment)
    return _fleet("fedscale", capacity, deal, availability)


READERS: dict[str, Callable[..., Fleet]] = {
    "csv": read_csv,
    "fedscale": read_fedscale,
    "json": read_json,
}


def without_paths(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a fleet without paths of its files, of whose content it has a digest."""
    paths = ("path", "availability", "rates") if options.get("name") in READERS else ()
    return {name: value for name, value in options.items() if name not in paths}


def _fleet(
    kind: str,
    table: Table,
    deal: Deal,
    availability: AnyPath | None,
    rates: AnyPath | None = None,
    columns: Mapping[str, str] | None = None,
    period_s: float | None = None,
) -> Fleet:
    """The fleet of the devices in a table; see `read_csv`."""
    path = table.path
    table = table.renamed(renamed([*table.columns], _KNOWN, columns, f"{path}, {table.head}"))
    values, names = listed.numbers(table), listed.names(table)
    require(
        "flops_per_s" in values,
        f"{path}, {table.head}",
        "lacks the speed of the devices",
        "add a column such as 'gflops', the GFLOP/s that a device sustains in training",
    )
    rows = deal.devices(len(table), path)
    parts: dict[str, Any] = {field: column[rows] for field, column in values.items()}
    parts |= listed.classes(table, rows) or speed_thirds(parts["flops_per_s"])
    contents = [table.content]
    devices = None if names is None else [names[row] for row in rows]
    wanted = rows.size if devices is None else devices
    if availability is None:
        require(
            period_s is None,
            f"period_s = {period_s} without availability",
            "is the period of its intervals",
            "leave it out, or give availability",
        )
    else:
        record, content = recorded.availability(availability, period_s)
        contents.append(content)
        who = deal.records(record.devices, wanted, 1, availability)
        parts["availability"] = from_intervals(
            [record.on_s[i] for i in who], record.period_s[who], record.phase_s[who]
        )
    if rates is not None:
        known, traces, content = recorded.rates(rates)
        contents.append(content)
        who = deal.records(known, wanted, 2, rates)
        for field, trace in traces.items():
            require(
                field not in parts,
                f"{rates}: rates for {field}",
                f"must not be in {path} as well",
                "take them out of one of the files",
            )
            parts[field] = trace.mean_bytes_per_s()[who]
            parts[field.replace("bytes_per_s", "trace")] = TraceLink(
                trace, who, np.zeros(rows.size)
            )
    if devices is not None:
        parts["device_names"] = np.array(devices)
    try:
        return Fleet(**parts, name=kind, source=_digest(contents))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _digest(contents: Sequence[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:16]
