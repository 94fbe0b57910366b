"""Samples of a model: one array, or a dictionary or tuple of arrays (tokens and their mask)."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree

_KINDS = (jnp.bool_, jnp.integer, jnp.floating)


def is_shape(value: Any) -> bool:
    """Whether `value` is the shape of one array, and no tuple of shapes."""
    return isinstance(value, tuple) and all(isinstance(n, numbers.Integral) for n in value)


def as_shapes(shape: Any) -> PyTree:
    """A shape, or a dictionary or sequence of shapes, with tuples in place of lists."""
    if isinstance(shape, Mapping):
        return {name: as_shapes(part) for name, part in shape.items()}
    parts = tuple(shape)
    return parts if is_shape(parts) else tuple(as_shapes(part) for part in parts)


def batch_of(input_shape: PyTree, input_dtype: PyTree, batch: int) -> PyTree:
    """Shapes and dtypes of a batch of samples.

    Args:
      input_shape: shape of one sample, or a dictionary or tuple of shapes.
      input_dtype: dtype of the samples, or dtypes in the same structure.
      batch: number of samples.

    Returns:
      `jax.ShapeDtypeStruct`s `[batch, *shape]` in the structure of `input_shape`.

    Raises:
      InputError: if the two structures differ.
    """
    nested = as_shapes(input_shape)
    shapes = jax.tree.leaves(nested, is_leaf=is_shape)
    structure = _structure(jax.tree.map(len, nested, is_leaf=is_shape))
    require(
        structure == _structure(input_dtype),
        f"input_dtype = {input_dtype}",
        f"must have the structure of input_shape = {input_shape}",
        "give every array of a sample its dtype",
    )
    dtypes = jax.tree.leaves(input_dtype)
    arrays = [jax.ShapeDtypeStruct((batch, *s), d) for s, d in zip(shapes, dtypes, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def check_samples(x: PyTree, name: str, input_shape: PyTree, input_dtype: PyTree) -> None:
    """Raises `InputError` unless `x` is a batch of samples of these shapes and kinds of dtype.

    Args:
      x: samples, an array or a pytree of arrays.
      name: name of the model.
      input_shape: shape of one sample, or a pytree of shapes.
      input_dtype: dtype of the samples, or dtypes in the same structure.
    """
    expected = batch_of(input_shape, input_dtype, 1)
    require(
        _structure(x) == _structure(expected),
        lambda: f"x = {jax.tree.map(_text, x)}",
        f"model {name!r} takes {jax.tree.map(_expected, expected)}",
        "give the samples the structure of input_shape",
    )
    first = jax.tree.leaves(x)[0]
    for (path, part), like in zip(
        jax.tree_util.tree_leaves_with_path(x), jax.tree.leaves(expected), strict=True
    ):
        kind = next(kind for kind in _KINDS if jnp.issubdtype(like.dtype, kind))
        require(
            part.ndim > 0
            and part.shape[1:] == like.shape[1:]
            and part.shape[0] == first.shape[0]
            and jnp.issubdtype(part.dtype, kind),
            f"x{jax.tree_util.keystr(path)} = {_text(part)}",
            f"model {name!r} takes {_expected(like)}",
            "reshape or convert the samples, or build the model for this input_shape",
        )


def batch_size(x: PyTree) -> int:
    """Number of samples in a batch."""
    return int(jax.tree.leaves(x)[0].shape[0])


def _structure(tree: PyTree) -> Any:
    return jax.tree.structure(tree)


def _text(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _expected(like: Any) -> str:
    return f"{like.dtype}[{', '.join(['batch', *map(str, like.shape[1:])])}]"
