"""Fleets of phones: drawn from published statistics, or from measured traces.

Every builder is `(num_clients, seed, **options) -> Fleet`; `presets.build` calls them by name.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Size
from fedjax_het.common.options import checked
from fedjax_het.fleet import traces
from fedjax_het.fleet.amounts import speed_thirds
from fedjax_het.fleet.availability import Availability, always, from_intervals, synthetic
from fedjax_het.fleet.bandwidth import TraceLink
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.published import FLOPS_PER_S

KIB = 2.0**10


@checked
def phones(
    num_clients: Size,
    seed: int = 0,
    *,
    median_flops_per_s: float = FLOPS_PER_S,
    latency_log_std: float = 0.78,
    median_downlink_bytes_per_s: float = 4318 * KIB,
    downlink_log_std: float = 0.47,
    median_uplink_bytes_per_s: float = 3286 * KIB,
    uplink_log_std: float = 0.68,
    link_variation: float = 0.37,
    availability: Literal["always", "synthetic"] = "always",
) -> Fleet:
    """Phones drawn from published statistics, without files.

    Training latencies of 978 phones have a log-std of 0.78 (the slowest 5 % take 9 times as long as
    the fastest 5 %). Wi-Fi rates of 19 phones have medians of 4,318 KiB/s down and 3,286 KiB/s up,
    and log-stds of 0.47 and 0.68. Speed and rates are drawn independently. Only the spread of the
    speeds is measured; their median sets the unit of time.

    Args:
      num_clients: number of clients, n.
      seed: seed of the draw.
      median_flops_per_s: sustained training speed of the median phone.
      latency_log_std: log-std of the speeds.
      median_downlink_bytes_per_s: download rate of the median phone.
      downlink_log_std: log-std of the download rates.
      median_uplink_bytes_per_s: upload rate of the median phone.
      uplink_log_std: log-std of the upload rates.
      link_variation: coefficient of variation of one phone's rate from task to task.
      availability: kind of availability; `"synthetic"` is `availability.synthetic` (on for 5.5 % of
        the time).
    """
    require_known(availability, ("always", "synthetic"), "availability")
    for name, value in (
        ("latency_log_std", latency_log_std),
        ("downlink_log_std", downlink_log_std),
        ("uplink_log_std", uplink_log_std),
        ("link_variation", link_variation),
    ):
        require(0 <= value < np.inf, f"{name} = {value}", "must be >= 0", "use the default")
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((3, num_clients))
    speed = median_flops_per_s * np.exp(latency_log_std * z[0])
    when: Availability = synthetic(num_clients, seed) if availability == "synthetic" else always()
    return Fleet(
        flops_per_s=speed,
        downlink_bytes_per_s=median_downlink_bytes_per_s * np.exp(downlink_log_std * z[1]),
        uplink_bytes_per_s=median_uplink_bytes_per_s * np.exp(uplink_log_std * z[2]),
        link_jitter=_log_std(np.asarray(link_variation)),
        availability=when,
        **speed_thirds(speed),
        name="phones",
    )


@checked
def from_traces(
    num_clients: Size,
    seed: int = 0,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    speed: Literal["latency", "score"] = "latency",
    median_flops_per_s: float = FLOPS_PER_S,
    links: Literal["wifi", "mobiperf", "bandwidth", "free"] = "wifi",
    bandwidth_sets: Sequence[str] | None = None,
    recorded_availability: bool = True,
) -> Fleet:
    """Phones drawn with replacement from measured traces; see `traces` for the files.

    Args:
      num_clients: number of clients, n.
      seed: seed of the draw.
      data_dir: directory of the files; None for the one that FEDJAX_HET_DATA names.
      speed: source of the speeds: `"latency"`, measured training latencies, or `"score"`,
        AI-Benchmark scores (larger spread).
      median_flops_per_s: speed of the median phone; only the ratios are measured.
      links: source of the rates: `"wifi"` (19 phones), `"mobiperf"` (400 download rates, used for
        both directions), `"bandwidth"` (rates that change within a transfer; both directions drawn
        from the same traces) or `"free"` (transfers take no time).
      bandwidth_sets: names of the collections for `"bandwidth"`; None for all.
      recorded_availability: whether recorded on-intervals are drawn, aligned on their common clock
        so that nights coincide; False for devices that are always on.
    """
    require_known(speed, ("latency", "score"), "speed")
    require_known(links, ("wifi", "mobiperf", "bandwidth", "free"), "links")
    require(
        bandwidth_sets is None or links == "bandwidth",
        f"bandwidth_sets = {bandwidth_sets} with links = {links!r}",
        "belongs to links = 'bandwidth'",
        "leave it out",
    )
    rng = np.random.default_rng(seed)
    file = traces.find(traces.DEVICE_FILE, data_dir)

    def drawn(rows: int) -> np.ndarray:
        return rng.integers(0, rows, num_clients)

    relative = (
        1 / traces.latencies(file).latency_s if speed == "latency" else traces.phones(file).score
    )
    speeds = (median_flops_per_s / np.median(relative) * relative)[drawn(relative.size)]
    parts: dict[str, Any] = {}
    if links == "bandwidth":
        pool = traces.bandwidth(
            traces.find(traces.BANDWIDTH_FILE, data_dir),
            None if bandwidth_sets is None else tuple(bandwidth_sets),
        )
        for way in ("downlink", "uplink"):
            trace = drawn(pool.num_traces)
            link = TraceLink(pool, trace, rng.uniform(0.0, pool.period_s[trace]))
            parts[f"{way}_trace"] = link
            parts[f"{way}_bytes_per_s"] = link.mean_bytes_per_s()
    elif links != "free":
        table = traces.wifi_links(file) if links == "wifi" else traces.mobiperf_links(file)
        row = drawn(table.down_mean_bytes_per_s.size)
        down, down_std, up, up_std = (column[row] for column in table)
        variation = np.sqrt(((down_std / down) ** 2 + (up_std / up) ** 2) / 2)
        parts = {
            "downlink_bytes_per_s": down,
            "uplink_bytes_per_s": up,
            "link_jitter": _log_std(variation),
        }
    if recorded_availability:
        record = traces.availability(file)
        row = drawn(record.period_s.size)
        parts["availability"] = from_intervals(
            [record.on_s[i] for i in row],
            record.period_s[row],
            np.mod(-record.start_s[row], record.period_s[row]),
        )
    return Fleet(flops_per_s=speeds, **parts, **speed_thirds(speeds), name="traces")


def _log_std(variation: np.ndarray) -> np.ndarray:
    """Log-std of the log-normal whose coefficient of variation is `variation`."""
    return np.sqrt(np.log1p(variation**2))
