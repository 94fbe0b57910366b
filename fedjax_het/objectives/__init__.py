"""Losses and metrics on the output of a model's last block."""

from fedjax_het.objectives.classification import cross_entropy

__all__ = ["cross_entropy"]
