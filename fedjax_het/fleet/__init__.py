"""Devices: the cost of a sub-model, speeds, links and availability."""

from fedjax_het.fleet.availability import Availability, always, from_intervals, synthetic
from fedjax_het.fleet.bandwidth import BandwidthTraces, TraceLink
from fedjax_het.fleet.block_times import MeasuredProfile
from fedjax_het.fleet.cost import CostTable, cost_table, price
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.energy import task_joules, with_energy
from fedjax_het.fleet.files import read_csv, read_fedscale, read_json
from fedjax_het.fleet.phones import from_traces, phones
from fedjax_het.fleet.presets import FLEETS, build, exponential, speed_groups, uniform
from fedjax_het.fleet.profile import format_table, measure, with_measured
from fedjax_het.fleet.published import adel, dtfl, fedel, prfl

__all__ = [
    "FLEETS",
    "Availability",
    "BandwidthTraces",
    "CostTable",
    "Fleet",
    "MeasuredProfile",
    "TraceLink",
    "adel",
    "always",
    "build",
    "cost_table",
    "dtfl",
    "exponential",
    "fedel",
    "format_table",
    "from_intervals",
    "from_traces",
    "measure",
    "phones",
    "prfl",
    "price",
    "read_csv",
    "read_fedscale",
    "read_json",
    "speed_groups",
    "synthetic",
    "task_joules",
    "uniform",
    "with_energy",
    "with_measured",
]
