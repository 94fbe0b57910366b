"""Slices of a convolution's input, one per element of its window."""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def padded(x: Array, padding: tuple[tuple[int, int], ...]) -> Array:
    """`x` with zeros around its spatial axes, or cropped where `padding` is negative.

    Args:
      x: `[batch, *space, channels]`.
      padding: pairs (low, high), one a spatial axis.
    """
    if not any(low or high for low, high in padding):
        return x
    edges = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def offsets(window: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All positions inside `window`, last axis fastest."""
    return list(itertools.product(*(range(k) for k in window)))


def shifted(
    x: Array,
    first: int,
    offset: tuple[int, ...],
    size: tuple[int, ...],
    strides: tuple[int, ...],
) -> Array:
    """The strided slice of `x` at `offset` along the axes from `first` on; other axes whole.

    Args:
      x: `[batch, *space, channels]`.
      first: axis of `x` that `offset[0]` is for.
      offset: position in the window.
      size: of the convolution's output along those axes.
      strides: of the convolution along them.
    """
    if not offset:
        return x
    start, stop, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
    for axis, (o, n, s) in enumerate(zip(offset, size, strides), start=first):
        start[axis], stop[axis], step[axis] = o, o + (n - 1) * s + 1, s
    return lax.slice(x, start, stop, step)


def side_by_side(
    x: Array, skip: int, window: tuple[int, ...], size: tuple[int, ...], strides: tuple[int, ...]
) -> Array:
    """Slices along the spatial axes from `skip` on, one per window element, along the channels.

    Args:
      x: `[batch, *space, channels]`, padded.
      skip: leading spatial axes that are left whole.
      window: of the convolution, all axes.
      size: of its output.
      strides: of the convolution.
    """
    pieces = [
        shifted(x, skip + 1, offset, size[skip:], strides[skip:])
        for offset in offsets(window[skip:])
    ]
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)
