"""Federated learning on unequal devices: whole cohorts in one XLA program, on one virtual clock."""

from fedjax_het import algorithms, data, fleet, models, report
from fedjax_het.common.errors import InputError
from fedjax_het.problem import Problem
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.simulation import Result, simulate, simulate_seeds

__all__ = [
    "InputError",
    "Problem",
    "Result",
    "RunOptions",
    "algorithms",
    "data",
    "fleet",
    "models",
    "report",
    "simulate",
    "simulate_seeds",
]
