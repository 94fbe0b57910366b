"""Transformations of methods: each takes an algorithm and returns another."""

from fedjax_het.transforms import privacy, select
from fedjax_het.transforms.compose import Transformation, compose
from fedjax_het.transforms.nesting import Nested, nested
from fedjax_het.transforms.plateau import on_plateau

__all__ = ["Nested", "Transformation", "compose", "nested", "on_plateau", "privacy", "select"]
