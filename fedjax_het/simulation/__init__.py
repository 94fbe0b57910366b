"""The loop over server steps: server, evaluation, records, checkpoints."""

from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.saved import SavedModel, load_model
from fedjax_het.simulation.simulate import Result, simulate
from fedjax_het.simulation.simulation import Simulation
from fedjax_het.simulation.sinks import SINKS, Sink

__all__ = [
    "SINKS",
    "Evaluator",
    "Result",
    "RunOptions",
    "SavedModel",
    "Simulation",
    "Sink",
    "load_model",
    "simulate",
]
