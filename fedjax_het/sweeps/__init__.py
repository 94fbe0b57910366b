"""Sweeps: the options of methods are tuned on seeds of their own, with equal budgets."""

from fedjax_het.sweeps.results import Sweep, Trial
from fedjax_het.sweeps.space import SweepOptions
from fedjax_het.sweeps.trials import sweep

__all__ = ["Sweep", "SweepOptions", "Trial", "sweep"]
