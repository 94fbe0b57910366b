"""Transformations of methods: each takes an algorithm and returns another."""

from fedjax_het.transforms import attack, compress, pace, privacy, robust, select, server
from fedjax_het.transforms.compose import Transformation, compose
from fedjax_het.transforms.nesting import Nested, nested
from fedjax_het.transforms.plateau import on_plateau

__all__ = [
    "Nested",
    "Transformation",
    "attack",
    "compose",
    "compress",
    "nested",
    "on_plateau",
    "pace",
    "privacy",
    "robust",
    "select",
    "server",
]
