"""Transformations of methods: each takes an algorithm and returns another."""

from fedjax_het.transforms import attack, robust, select
from fedjax_het.transforms.compose import Transformation, compose
from fedjax_het.transforms.nesting import Nested, nested
from fedjax_het.transforms.plateau import on_plateau

__all__ = [
    "Nested",
    "Transformation",
    "attack",
    "compose",
    "nested",
    "on_plateau",
    "robust",
    "select",
]
