"""ADEL-FL and its relatives: layers that slow devices finish by a deadline are not lost.

`adel` plans deadlines and batches (`planning`, on the bound of `bound`) and merges layers without
bias (`merging`); `baselines` holds SALF, drop-stragglers and wait-for-all in the same model of time
(`depths`, `workload`); `online` is what goes beyond the paper.
"""

from fedjax_het.algorithms.adel.adel import adel
from fedjax_het.algorithms.adel.baselines import adel_drop, adel_wait, salf

__all__ = ["adel", "adel_drop", "adel_wait", "salf"]
