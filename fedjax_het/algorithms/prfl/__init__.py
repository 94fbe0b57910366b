"""PR-FL: pruning by time, recovery by early stopping, and buffers merged mask by mask."""

from fedjax_het.algorithms.prfl.baselines import nested_mask_sync, prfl_fedasyn, prfl_fedfix
from fedjax_het.algorithms.prfl.prfl import prfl

__all__ = ["nested_mask_sync", "prfl", "prfl_fedasyn", "prfl_fedfix"]
