"""Federated learning on unequal devices: whole cohorts in one XLA program, on one virtual clock."""

from fedjax_het import (
    algorithms,
    contract,
    data,
    fleet,
    local,
    models,
    objectives,
    report,
    transforms,
)
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common.errors import InputError
from fedjax_het.contract import (
    Aggregator,
    Algorithm,
    ClientResult,
    Merged,
    Plan,
    Route,
    Schedule,
    Variables,
    aggregation,
    clock,
    masks,
    selection,
)
from fedjax_het.problem import Problem
from fedjax_het.simulation import Result, RunOptions, SavedModel, Simulation, load_model, simulate
from fedjax_het.sweeps import Sweep, sweep
from fedjax_het.transforms import (
    attack,
    compose,
    compress,
    pace,
    privacy,
    robust,
    select,
    server,
)

__version__ = "0.1.0"

__all__ = [
    "Aggregator",
    "Algorithm",
    "ClientResult",
    "InputError",
    "Merged",
    "Plan",
    "Problem",
    "Result",
    "Route",
    "RunOptions",
    "SavedModel",
    "Schedule",
    "Simulation",
    "Sweep",
    "TrainingOptions",
    "Variables",
    "__version__",
    "aggregation",
    "algorithms",
    "attack",
    "clock",
    "compose",
    "compress",
    "contract",
    "data",
    "fleet",
    "load_model",
    "local",
    "masks",
    "models",
    "objectives",
    "pace",
    "privacy",
    "report",
    "robust",
    "select",
    "selection",
    "server",
    "simulate",
    "sweep",
    "transforms",
]
