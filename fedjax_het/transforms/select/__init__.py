"""Selections as transformations of methods: who takes part, with any method and pace."""

from collections.abc import Callable

from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.select.fedcs import fedcs
from fedjax_het.transforms.select.oort import oort
from fedjax_het.transforms.select.simple import power_of_choice, uniform, weighted
from fedjax_het.transforms.select.tifl import tifl

__all__ = [
    "SELECTIONS",
    "fedcs",
    "oort",
    "power_of_choice",
    "tifl",
    "uniform",
    "weighted",
]

# Factories of transformations by name.
SELECTIONS: dict[str, Callable[..., Transformation]] = {
    "fedcs": fedcs,
    "oort": oort,
    "power_of_choice": power_of_choice,
    "tifl": tifl,
    "uniform": uniform,
    "weighted": weighted,
}
