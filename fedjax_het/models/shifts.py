"""The sum over window rows of the lowering "shift_add", with a gradient that a CPU computes fast.

JAX computes the gradient of a sum of slices as a sum of arrays, each of which is zero outside one
slice; for every element and slice it tests whether to read a value or a zero. The gradient written
here concatenates slices of one padded array, which only copies values.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def shifted_sum(products: Array, rows: int, size: int, stride: int) -> Array:
    """`y[:, p] = sum_i products[:, p * stride + i, ..., i-th part of the channels]`.

    It has no forward-mode derivative.

    Args:
      products: products of all window rows, `[batch, height, ..., rows * channels]`.
      rows: number of terms of the sum.
      size: height of the result.
      stride: rows of the input per row of the result.

    Returns:
      Sum, `[batch, size, ..., channels]`.
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
