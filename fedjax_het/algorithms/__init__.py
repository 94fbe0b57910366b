"""The published methods, one file each, and the registry that finds them by name."""

from fedjax_het.algorithms.fedavg import drop_stragglers, fedavg, fedprox
from fedjax_het.algorithms.feddrop import feddrop
from fedjax_het.algorithms.fedopt import fedadam, fedopt, fedyogi
from fedjax_het.algorithms.fedpmt import fedpmt
from fedjax_het.algorithms.registry import ALGORITHMS, TRAINING_OPTIONS, build, register

__all__ = [
    "ALGORITHMS",
    "TRAINING_OPTIONS",
    "build",
    "drop_stragglers",
    "fedadam",
    "fedavg",
    "feddrop",
    "fedopt",
    "fedpmt",
    "fedprox",
    "fedyogi",
    "register",
]
