"""FedEL (NeurIPS 2025): tensors and their times, selection, windows, importance, the algorithm."""

from fedjax_het.algorithms.fedel.fedel import fedel

__all__ = ["fedel"]
