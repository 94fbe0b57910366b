"""Names of types that every room uses."""

from typing import Any, TypeAlias

# Nested tuples, lists, dicts and NamedTuples of arrays, as `jax.tree` walks them.
PyTree: TypeAlias = Any
