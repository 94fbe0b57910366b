"""Types that every room uses."""

from typing import Any, TypeAlias

# Nested tuples, lists, dicts and NamedTuples of arrays, as `jax.tree` defines them.
PyTree: TypeAlias = Any
