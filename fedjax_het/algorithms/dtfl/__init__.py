"""DTFL (arXiv 2312.05642): tiers, profiles, scheduler, split training; SplitFed and FedGKT."""

from fedjax_het.algorithms.dtfl.dtfl import dtfl
from fedjax_het.algorithms.dtfl.fedgkt import fedgkt
from fedjax_het.algorithms.dtfl.splitfed import splitfed

__all__ = ["dtfl", "fedgkt", "splitfed"]
