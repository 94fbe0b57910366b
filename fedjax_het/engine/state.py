"""The two kinds of leaves of a method's state: JAX arrays on the device, NumPy arrays on the host.

Programs take and return the JAX leaves. NumPy leaves would lose their precision on a device; a
traced function gets placeholders for them and must return these placeholders unchanged.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree

# The JAX leaves of a state, in its order.
Leaves = tuple[jax.Array, ...]


@dataclass(frozen=True)
class HostLeaf:
    """A placeholder for a NumPy leaf while a program is traced; it has no value."""

    path: str
    shape: tuple[int, ...]


class StateSplit:
    """Separates the two kinds of leaves of a state, and joins them again.

    Args:
      name: name of the method, for error messages.
      state: any state of the method, for its structure.
    """

    def __init__(self, name: str, state: PyTree):
        self._name = name
        found, self._structure = jax.tree_util.tree_flatten_with_path(state)
        self._host = [
            None if isinstance(leaf, jax.Array) else HostLeaf(_words(path), np.shape(leaf))
            for path, leaf in found
        ]

    def leaves(self, state: PyTree) -> Leaves:
        """The JAX leaves of a state."""
        pairs = zip(jax.tree.leaves(state), self._host, strict=True)
        return tuple(leaf for leaf, host in pairs if host is None)

    def stepped(self, state: PyTree) -> Leaves:
        """The JAX leaves of a state that a traced step returned.

        Raises:
          InputError: if it has another structure, or another value in place of a NumPy leaf.
        """
        found, structure = jax.tree.flatten(state)
        require(
            bool(structure == self._structure),  # type: ignore[operator]
            f"update of {self._name}: returns a state of structure {structure}",
            f"must return a state of structure {self._structure}",
            "keep its fields",
        )
        for leaf, host in zip(found, self._host, strict=True):
            require(
                host is None or leaf is host,
                f"update of {self._name}: changes state{'' if host is None else host.path}",
                "must leave NumPy leaves of the state as they are, they belong to the host",
                "change them in `plan` or `observe`, or start with a JAX array in `init`",
            )
        return self.leaves(state)

    def traced(self, leaves: Leaves) -> PyTree:
        """The state with these JAX leaves, and placeholders for the other leaves."""
        return self._filled(leaves, self._host)

    def joined(self, state: PyTree, leaves: Leaves) -> PyTree:
        """The given state with its JAX leaves replaced by `leaves`."""
        return self._filled(leaves, jax.tree.leaves(state))

    def _filled(self, leaves: Leaves, others: list[Any]) -> PyTree:
        new = iter(leaves)
        filled = [
            next(new) if host is None else other
            for other, host in zip(others, self._host, strict=True)
        ]
        return jax.tree.unflatten(self._structure, filled)


def _words(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path)
