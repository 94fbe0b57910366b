"""FedEL (NeurIPS 2025): tensor times, selection, windows, importance, the algorithm."""

from fedjax_het.algorithms.fedel.budget import Budget
from fedjax_het.algorithms.fedel.fedel import Extensions, fedel
from fedjax_het.algorithms.fedel.importance import Probe

__all__ = ["Budget", "Extensions", "Probe", "fedel"]
