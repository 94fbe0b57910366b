"""DTFL (arXiv 2312.05642): the algorithm, its tier scheduler and its profiles of the tiers."""

from fedjax_het.algorithms.dtfl.dtfl import dtfl
from fedjax_het.algorithms.dtfl.profiles import Profile
from fedjax_het.algorithms.dtfl.scheduler import Scheduler

__all__ = ["Profile", "Scheduler", "dtfl"]
