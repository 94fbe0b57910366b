"""Messages between the server and a device: arrays and words by name, whatever carries them."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.common.errors import InputError
from fedjax_het.common.types import PyTree

_KINDS: dict[type, str] = {dict: "dict", list: "list", tuple: "tuple"}


Word = str | int | float


class Message(NamedTuple):
    """What is sent in one direction.

    Attributes:
      arrays: arrays by name.
      words: text and numbers by name.
    """

    arrays: Mapping[str, np.ndarray]
    words: Mapping[str, Word]

    @property
    def payload_bytes(self) -> int:
        """Bytes of the arrays, without names and headers, which belong to the transport."""
        return sum(array.nbytes for array in self.arrays.values())


class UnusableError(ValueError):
    """A message does not hold what it should; its sender counts as one that did not answer."""


def tree_parts(name: str, tree: PyTree) -> tuple[dict[str, np.ndarray], dict[str, Word]]:
    """The arrays and the words of a tree of dictionaries, lists, tuples (named, too) and arrays.

    Numbers have the width in which programs compute.

    Args:
      name: name of the tree in the message.
      tree: tree to send.

    Raises:
      InputError: if it has a node or a leaf that no message can hold.
    """
    leaves: list[np.ndarray] = []

    def of(node: Any) -> Any:
        if node is None:
            return None
        if type(node) in _KINDS:
            # The order of `jax.tree.leaves`.
            parts = sorted(node.items() if type(node) is dict else enumerate(node))
            return {_KINDS[type(node)]: {str(key): of(part) for key, part in parts}}
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            kind = f"{type(node).__module__}:{type(node).__qualname__}"
            return {kind: {field: of(part) for field, part in zip(node._fields, node, strict=True)}}
        leaf = np.asarray(node) if isinstance(node, np.generic | np.ndarray | jax.Array) else None
        if leaf is None or leaf.dtype.kind not in "biuf":
            raise InputError(
                f"{name} of type {type(node).__name__}: cannot be sent to a device; use "
                "dictionaries with text as keys, lists, tuples and arrays of numbers"
            )
        leaves.append(leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype)))
        return len(leaves) - 1

    skeleton = json.dumps(of(tree))
    return {f"{name}.{i}": leaf for i, leaf in enumerate(leaves)}, {name: skeleton}


def tree_of(name: str, message: Message) -> PyTree:
    """The tree of this name in a message; inverse of `tree_parts`."""

    def of(node: Any) -> Any:
        if node is None or isinstance(node, int):
            return None if node is None else message.arrays[f"{name}.{node}"]
        ((kind, parts),) = node.items()
        if kind == "dict":
            return {key: of(part) for key, part in parts.items()}
        several = [of(part) for part in parts.values()]
        if ":" in kind:
            return _named_tuple(kind)(*several)
        return several if kind == "list" else tuple(several)

    return of(json.loads(str(message.words[name])))


def _named_tuple(name: str) -> type:
    """The class of this name among the named tuples of modules that are imported."""
    module, _, cls = name.partition(":")
    found = getattr(sys.modules.get(module), cls, None)
    if not (isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")):
        raise UnusableError(f"{name} is no named tuple of an imported module")
    return found


def leaf_parts(name: str, tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves of a tree whose structure both sides know."""
    return {f"{name}.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def leaves_like(name: str, message: Message, like: PyTree) -> PyTree:
    """A tree of the structure, shapes and dtypes of `like`; inverse of `leaf_parts`.

    Raises:
      UnusableError: if the message has other arrays.
    """
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, list(_leaves_like(name, message, leaves)))


def _leaves_like(name: str, message: Message, leaves: list[Any]) -> Iterator[np.ndarray]:
    for i, leaf in enumerate(leaves):
        yield array_like(message, f"{name}.{i}", leaf.shape, leaf.dtype)


def array_like(
    message: Message, name: str, shape: tuple[int, ...], dtype: Any = np.float32
) -> np.ndarray:
    """The array of this name, shape and dtype; raises `UnusableError` if there is none."""
    array = message.arrays.get(name)
    if array is None or array.shape != tuple(shape) or array.dtype != dtype:
        found = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
        raise UnusableError(f"{name}: {np.dtype(dtype)}{list(shape)} expected, {found} received")
    return array
