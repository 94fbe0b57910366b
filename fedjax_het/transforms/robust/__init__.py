"""Merges that some attackers cannot steer: transformations of methods that merge by the mean."""

from collections.abc import Callable

from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.robust.coordinates import median, trimmed_mean
from fedjax_het.transforms.robust.krum import krum
from fedjax_het.transforms.robust.norms import norm_bound

__all__ = ["ROBUST", "krum", "median", "norm_bound", "trimmed_mean"]

# Factories of transformations by name.
ROBUST: dict[str, Callable[..., Transformation]] = {
    "krum": krum,
    "median": median,
    "norm_bound": norm_bound,
    "trimmed_mean": trimmed_mean,
}
