"""Slices of a convolution's input, one per element of its window."""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# With at least this many channels, slices are copied fast enough.
_FEW_CHANNELS = 4


def padded(x: Array, padding: tuple[tuple[int, int], ...]) -> Array:
    """`x` with zeros around its spatial axes, or cropped if `padding` is negative.

    Args:
      x: input, `[batch, *space, channels]`.
      padding: pairs (low, high), one per spatial axis.
    """
    if not any(low or high for low, high in padding):
        return x
    edges = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def offsets(window: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All positions inside `window`; the last axis varies fastest."""
    return list(itertools.product(*(range(k) for k in window)))


def shifted(
    x: Array,
    first: int,
    offset: tuple[int, ...],
    size: tuple[int, ...],
    strides: tuple[int, ...],
) -> Array:
    """The strided slice of `x` at `offset` along the axes from `first` on; other axes are whole.

    Args:
      x: input, `[batch, *space, channels]`.
      first: axis of `x` that belongs to `offset[0]`.
      offset: position in the window.
      size: size of the convolution's output along these axes.
      strides: strides of the convolution along these axes.
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
    """Slices along the spatial axes from `skip` on, concatenated along the channels.

    There is one slice per window element. On a CPU, those of an image with few channels, of which
    each is a copy of single numbers, are made axis by axis: 5 + 5 slices for a 5x5 window, not 25.

    Args:
      x: padded input, `[batch, *space, channels]`.
      skip: number of leading spatial axes that are not sliced.
      window: window of the convolution, all spatial axes.
      size: size of the output, all spatial axes.
      strides: strides of the convolution, all spatial axes.
    """
    last = len(window) - 1
    if skip < last and x.shape[-1] < _FEW_CHANNELS and jax.default_backend() == "cpu":
        x = side_by_side(x, last, window, size, strides)
        # Without the barrier XLA computes both in one loop, an element at a time.
        x = lax.optimization_barrier(x)
        return side_by_side(x, skip, window[:last], size[:last], strides[:last])
    pieces = [
        shifted(x, skip + 1, offset, size[skip:], strides[skip:])
        for offset in offsets(window[skip:])
    ]
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)
