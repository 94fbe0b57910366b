"""Devices: what a sub-model costs them, how fast they are, and when they are on."""

from fedjax_het.fleet.availability import Availability, always, from_intervals, synthetic
from fedjax_het.fleet.bandwidth import BandwidthTraces, TraceLink
from fedjax_het.fleet.cost import CostTable, cost_table, price
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.presets import FLEETS, build
from fedjax_het.fleet.profile import MeasuredProfile, format_table, measure, with_measured

__all__ = [
    "FLEETS",
    "Availability",
    "BandwidthTraces",
    "CostTable",
    "Fleet",
    "MeasuredProfile",
    "TraceLink",
    "always",
    "build",
    "cost_table",
    "format_table",
    "from_intervals",
    "measure",
    "price",
    "synthetic",
    "with_measured",
]
