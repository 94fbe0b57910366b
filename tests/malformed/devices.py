"""Fleets, availability, and traces."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from malformed.case import Call, Case

from fedjax_het import fleet
from fedjax_het.fleet import BandwidthTraces, Fleet, TraceLink, from_intervals, synthetic, traces

# ---- fleets --------------------------------------------------------------------------------------


def devices(**columns: Any) -> Call:
    return lambda here: Fleet(**{"flops_per_s": np.full(3, 1e9), **columns})


def fleet_of(name: str, **options: Any) -> Call:
    return lambda here: fleet.build(name, 4, **options)


FLEETS: list[Case] = [
    (devices(flops_per_s=1000000000.0), "shape () | one number per device | array"),
    (devices(flops_per_s=["a", "b"]), "flops_per_s | must be numbers | one value per device"),
    (
        devices(flops_per_s=[1000000000.0, 0.0]),
        "flops_per_s = [0.] of device [1] | positive and finite | leave the device out",
    ),
    (devices(flops_per_s=[np.nan]), "[nan] of device [0] | positive and finite | usable value"),
    (
        devices(uplink_bytes_per_s=[1.0, 2.0]),
        "uplink_bytes_per_s of shape (2,) | shape (3,) | per device",
    ),
    (
        devices(uplink_bytes_per_s="fast"),
        "uplink_bytes_per_s = 'fast' | must be numbers | per device",
    ),
    (devices(memory_bytes=-1), "memory_bytes = [-1.] | positive | usable value"),
    (devices(latency_s=np.inf), "latency_s = [inf] | >= 0 and finite | usable value"),
    (
        devices(joules_per_flop=-1e-9),
        "joules_per_flop = [-1.e-09] | >= 0 and finite | usable value",
    ),
    (
        devices(joules_per_byte_up=[0.0, np.nan, 0.0]),
        "joules_per_byte_up = [nan] of device [1] | >= 0 and finite | usable value",
    ),
    (
        devices(joules_per_byte_down=[1.0, 2.0]),
        "joules_per_byte_down of shape (2,) | shape (3,) | per device",
    ),
    (devices(idle_watts=np.inf), "idle_watts = [inf] | >= 0 and finite | usable value"),
    (
        devices(battery_joules=[np.inf, 50.0, np.inf]),
        "battery_joules = 50.0 without a price of energy | never be spent | with_energy",
    ),
    (devices(idle_watts="low"), "idle_watts = 'low' | must be numbers | per device"),
    (
        devices(device_names=["a", "b"]),
        "device_names of <U1 and shape (2,) | 3 texts of at most 100 | one per device",
    ),
    (
        devices(device_names=[1, 2, 3]),
        "device_names of int64 and shape (3,) | 3 texts of at most 100 | one per device",
    ),
    (fleet_of("uniform", energy="phone"), "energy 'phone' | phone_lte, phone_wifi | did you mean"),
    (fleet_of("uniform", energy=5.0), "energy 5.0 | must be one of | choose one"),
    (devices(groups=0.5), "groups = 0.5 | integers >= 0 | from 0"),
    (
        devices(groups=[0, 1, 2], group_names=("a", "b")),
        "group 2 with 2 group names | needs a name | none",
    ),
    (
        devices(compute_distribution="normal"),
        "'normal' | must be one of exponential | 'lognormal'?",
    ),
    (
        devices(compute_distribution="exponential", compute_jitter=0.5),
        "compute_jitter up to 0.5 | belong to | set only the one",
    ),
    (
        devices(availability=synthetic(2, 0)),
        "of 2 devices in a fleet of 3 | one entry per device | same number",
    ),
    (
        fleet_of("speed_groups", relative_speeds=()),
        "relative_speeds = () | list of positive numbers | per group",
    ),
    (
        fleet_of("fedel", slowdowns=(0, 1)),
        "slowdowns = (0, 1) | positive numbers | per device type",
    ),
    (fleet_of("dtfl", profiles=(6,)), "profiles = (6,) | numbers 1..5 | (1, 2, 3, 4, 5)"),
    (fleet_of("dtfl", rate_unit="Mbps"), "'Mbps' | must be one of | 'Mbit/s'?"),
    (fleet_of("dtfl", link_scale=0), "link_scale = 0 | must be positive | default"),
    (fleet_of("dtfl", redraw_every=0), "redraw_every = 0 | at least 1 round | use 50"),
    (
        fleet_of("dtfl", redraw_every=5, redraw_share=1.5),
        "redraw_share = 1.5 | [0, 1] | use 0.3",
    ),
    (fleet_of("adel", min_share=0), "min_share = 0 | (0, 1] | 0.05"),
    (fleet_of("phones", uplink_log_std=-1), "uplink_log_std = -1 | >= 0 | default"),
    (lambda here: fleet.build("uniform", 0), "num_clients = 0 | >= 1 | clients of the data"),
    (
        lambda here: fleet.build("uniform", 4).next_available(np.array([5]), 0.0),
        "clients = [5] | ids in 0..3 | one device per client",
    ),
]

# ---- availability, bandwidth, device traces ------------------------------------------------------


def on(intervals: Any, period_s: Any = (10.0,)) -> Call:
    return lambda here: from_intervals([np.array(intervals, np.float64)], period_s)


def rates(time_s: Any, bytes_per_s: Any, offsets: Any) -> BandwidthTraces:
    times, values = np.asarray(time_s, np.float64), np.asarray(bytes_per_s, np.float64)
    ends = np.asarray(offsets)
    return BandwidthTraces(times, values, ends, ("s",), np.zeros(len(ends) - 1, np.int64))


def trace_file(reader: Call, content: Any) -> Call:
    def call(here: Path) -> None:
        path = here / traces.DEVICE_FILE
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        reader(path)

    return call


def bandwidth_file(spoil: Call, sets: Any = None) -> Call:
    def call(here: Path) -> None:
        path = here / "bandwidth.npz"
        columns = {"time_s": [0.0, 1.0], "mbps": [1.0, 2.0], "length": [2], "set": [0]}
        np.savez(path, sets=np.array(["a"]), **{k: np.array(v) for k, v in columns.items()})
        spoil(path)
        traces.bandwidth(path, sets)

    return call


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


AVAILABILITY: list[Case] = [
    (on([[0, 5], [4, 8]]), "on-intervals of device 0 | sorted, disjoint | merge"),
    (on([[0, 12]]), "on-intervals of device 0 | within 0..10.0 s | subtract the start"),
    (on([[3, 3]]), "device 0 is never on | positive length | leave the device out"),
    (on([[0, 1]], [0.0]), "period 0.0 s | positive period | length of its record"),
    (on([[0, 1]], [1.0, 2.0]), "1 devices, 2 periods | equal in number | one period per device"),
    (lambda here: synthetic(3, 0, on_fraction=2), "on_fraction = 2 | in (0, 1) | 0.055"),
    (
        lambda here: rates([0, 2, 1], [1, 1, 1], [0, 3]),
        "trace time [2.] at point [1] | increase strictly | sort",
    ),
    (lambda here: rates([0, 1], [1, -1], [0, 2]), "trace rate [-1.] | >= 0 | repair"),
    (lambda here: rates([0, 1], [0, 0], [0, 2]), "trace [0] | positive rate | leave it out"),
    (lambda here: rates([0, 1], [1, 1], [0, 3]), "2 times, 2 rates | must agree | trace lengths"),
    (
        lambda here: TraceLink(rates([0, 1], [1, 1], [0, 2]), np.array([3]), np.zeros(1)),
        "1 trace indices | indices in 0..0 | one trace",
    ),
    (fleet_of("traces"), "data_dir = None | a directory of yours | FEDJAX_HET_DATA"),
    (
        lambda here: fleet.build("traces", 4, data_dir=here),
        f"{traces.DEVICE_FILE} | no such file | another data_dir",
    ),
    (
        trace_file(traces.phones, '{"ai_benchmark_devices": [{"mo'),
        "fl_device_traces.json | not valid JSON | fetch the file again",
    ),
    (
        trace_file(traces.latencies, {"x": []}),
        "section 'training_latency_ms' | a list of records | fetch",
    ),
    (
        trace_file(traces.phones, {"ai_benchmark_devices": [{"model": "a", "ai_score": -1}]}),
        "ai_score = [-1.] | must be positive | fetch",
    ),
    (
        trace_file(traces.phones, {"ai_benchmark_devices": [{"model": "a", "ai_score": "x"}]}),
        "ai_score | not numeric | fetch",
    ),
    (
        trace_file(
            traces.availability, {"availability": [{"start": 0, "end": 9, "ready": [[5, 4]]}]}
        ),
        "availability[0] | sorted, disjoint | fetch",
    ),
    (bandwidth_file(cut_in_half), "bandwidth.npz | not a readable .npz | fetch"),
    (
        bandwidth_file(
            lambda path: np.savez(
                path,
                **dict.fromkeys(
                    ("time_s", "mbps", "length", "set", "sets"), np.array([{}], object)
                ),
            )
        ),
        "bandwidth.npz | never unpickled | fetch",
    ),
    (
        bandwidth_file(lambda path: np.savez(path, time_s=np.zeros(1), mbps=np.ones(1))),
        "lacks the arrays ['length' | bandwidth.npz | fetch",
    ),
    (bandwidth_file(lambda path: None, ("b",)), "'b' | must be one of a | choose"),
]

CASES = [*FLEETS, *AVAILABILITY]
