"""Transformations of methods: each takes an algorithm and returns another."""

from fedjax_het.transforms.nesting import Nested, nested
from fedjax_het.transforms.plateau import on_plateau

__all__ = ["Nested", "nested", "on_plateau"]
