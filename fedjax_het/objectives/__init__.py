"""What is minimised and what is measured: losses over the output of a model's last block."""

from fedjax_het.objectives.classification import correct, cross_entropy, sample_losses

__all__ = ["correct", "cross_entropy", "sample_losses"]
