"""The sum over window rows of the lowering "shift_add", with a gradient a CPU computes fast.

The gradient of a sum of slices is, to JAX, a sum of arrays that are zero but for one slice each: it
reads a zero or a value, under a condition, once for every element and slice. It is the same values
side by side, which are copies of slices of one padded array.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def shifted_sum(products: Array, rows: int, size: int, stride: int) -> Array:
    """`y[:, p] = sum_i products[:, p * stride + i, ..., i-th part of the channels]`.

    Has no forward-mode derivative.

    Args:
      products: `[batch, height, ..., rows * channels]`.
      rows: terms of the sum.
      size: height of the result.
      stride: rows of the input per row of the result.

    Returns:
      `[batch, size, ..., channels]`.
    """
    channels = products.shape[-1] // rows
    parts = [
        lax.slice_in_dim(
            products[..., i * channels : (i + 1) * channels],
            i,
            i + (size - 1) * stride + 1,
            stride,
            axis=1,
        )
        for i in range(rows)
    ]
    return functools.reduce(jnp.add, parts)


def _forward(products: Array, rows: int, size: int, stride: int) -> tuple[Array, int]:
    return shifted_sum(products, rows, size, stride), products.shape[1]


def _backward(rows: int, size: int, stride: int, height: int, g: Array) -> tuple[Array]:
    edges = [(0, 0, 0)] * g.ndim
    edges[1] = (rows - 1, height - 1 - (size - 1) * stride, stride - 1)
    padded = lax.pad(g, jnp.zeros((), g.dtype), edges)
    shifted = [lax.slice_in_dim(padded, i, i + height, axis=1) for i in reversed(range(rows))]
    return (jnp.concatenate(shifted, axis=-1),)


shifted_sum.defvjp(_forward, _backward)
