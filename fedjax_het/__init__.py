"""Federated learning on unequal devices: whole cohorts in one XLA program, on one virtual clock."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedjax_het import (
        algorithms,
        contract,
        data,
        export,
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
    from fedjax_het.simulation import (
        SINKS,
        Result,
        RunOptions,
        SavedModel,
        Simulation,
        load_model,
    )
    from fedjax_het.simulation.simulate import simulate
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
    "SINKS",
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
    "export",
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

# Imported when they are asked for: the command line answers `--help` before JAX is imported. Names
# that are in none of these modules are rooms.
_HOMES = {
    "fedjax_het.algorithms.training": ("TrainingOptions",),
    "fedjax_het.common.errors": ("InputError",),
    "fedjax_het.contract": (
        "Aggregator",
        "Algorithm",
        "ClientResult",
        "Merged",
        "Plan",
        "Route",
        "Schedule",
        "Variables",
        "aggregation",
        "clock",
        "masks",
        "selection",
    ),
    "fedjax_het.problem": ("Problem",),
    "fedjax_het.simulation": (
        "SINKS",
        "Result",
        "RunOptions",
        "SavedModel",
        "Simulation",
        "load_model",
        "simulate",
    ),
    "fedjax_het.sweeps": ("Sweep", "sweep"),
    "fedjax_het.transforms": (
        "attack",
        "compose",
        "compress",
        "pace",
        "privacy",
        "robust",
        "select",
        "server",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
