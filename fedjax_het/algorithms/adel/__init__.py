"""ADEL-FL and its baselines: the layers that slow devices finish by a deadline are merged.

`adel` plans deadlines and batches (`planning`, with the bound of `bound`) and merges layers without
bias (`merging`). `baselines` has SALF, drop-stragglers and wait-for-all in the same model of time
(`depths`, `workload`). `online` holds extensions of the paper.
"""

from fedjax_het.algorithms.adel.adel import adel
from fedjax_het.algorithms.adel.baselines import adel_drop, adel_wait, salf

__all__ = ["adel", "adel_drop", "adel_wait", "salf"]
