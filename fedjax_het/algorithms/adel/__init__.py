"""ADEL-FL and its relatives: layers that slow devices finish by a deadline are not lost.

`methods.adel` plans deadlines and batches (`planning`, on the bound of `bound`) and merges layers
without bias (`merging`); `relatives` holds SALF, drop-stragglers and wait-for-all in the same model
of time (`depths`, `setting`).
"""

from fedjax_het.algorithms.adel.baselines import adel_drop, adel_wait, salf
from fedjax_het.algorithms.adel.methods import adel

__all__ = ["adel", "adel_drop", "adel_wait", "salf"]
