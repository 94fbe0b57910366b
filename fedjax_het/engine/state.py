"""The two kinds of leaves of a method's state: JAX arrays on the device, the rest on the host.

Programs take and return the JAX leaves. NumPy leaves would lose their precision on a device; a
traced function sees stand-ins in their places and must hand those on as they are.
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
    """Stands for a NumPy leaf while a program is traced; it has no value there."""

    path: str
    shape: tuple[int, ...]


class StateSplit:
    """Separates the leaves of a state, and puts them together again.

    Args:
      name: the method's name, for messages.
      state: a state with the structure that all others have.
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
        """The JAX leaves of what a traced step has made of a state.

        Raises:
          InputError: it has another structure, or something else in place of a NumPy leaf.
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
        """The state with these JAX leaves, and stand-ins for the others."""
        return self._filled(leaves, self._host)

    def joined(self, state: PyTree, leaves: Leaves) -> PyTree:
        """The state with these JAX leaves in place of its own."""
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
