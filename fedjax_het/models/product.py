"""The matrix product of a layer, with a gradient that a CPU computes fast.

Both products of the gradient transpose one of their factors, and the choice of this factor decides
the speed on a CPU. The gradient of a convolution's kernel is a product over all rows of the
activations, the longest product of a step, with a small result::

    x^T g            transposes the wide factor:    119 GFLOP/s for [3920, 800]^T [3920, 64]
    (g^T x)^T        transposes the narrow factor:  238 GFLOP/s

The gradient of a linear layer's input is a product of a few rows, a mini-batch, with a large
transposed matrix::

    g w^T            transposes the matrix:          51 GFLOP/s for [20, 512] [3136, 512]^T
    (w g^T)^T        transposes the rows:           278 GFLOP/s

XLA rewrites the second form to the first, because they are equal; a barrier prevents this.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero

Array = jax.Array

# Transposing fewer elements than this costs almost nothing.
_LARGE = 2**16

_Numbers = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers: _Numbers,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Replacement of `jax.lax.dot_general` in `nn.Dense(..., dot_general=dot_general)`.

    On a CPU it uses `product`, which has no forward-mode derivative.

    Args:
      lhs: left factor, `[..., k]`.
      rhs: right factor, `[k, n]`.
      dimension_numbers: contracted and batch axes, as in lax.
      precision: precision of products, as in lax.
      preferred_element_type: dtype of the result, as in lax.

    Returns:
      Product, `[..., n]`.
    """
    linear = rhs.ndim == 2 and jax.tree.leaves(dimension_numbers) == [lhs.ndim - 1, 0]
    plain = precision is None and preferred_element_type is None
    if linear and plain and jax.default_backend() == "cpu":
        # All positions of a sequence are rows of one product.
        rows = product(lhs.reshape(-1, lhs.shape[-1]), rhs)
        return rows.reshape(*lhs.shape[:-1], rhs.shape[-1])
    return lax.dot_general(
        lhs,
        rhs,
        dimension_numbers,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )


@jax.custom_vjp
def product(x: Array, weights: Array) -> Array:
    """`[rows, k] x [k, n]`; has no forward-mode derivative."""
    return x @ weights


def _forward(x: Any, weights: Any) -> tuple[Array, tuple[Array | None, Array | None]]:
    # A factor is kept only if the other one needs a gradient, because the cost of a step is counted
    # from these computations.
    kept = (x.value if weights.perturbed else None, weights.value if x.perturbed else None)
    return x.value @ weights.value, kept


def _backward(kept: tuple[Array | None, Array | None], g: Any) -> tuple[Array | None, Array | None]:
    x, weights = kept
    if isinstance(g, SymbolicZero):
        return None, None
    of_x = None if weights is None else _of_rows(weights, g)
    return of_x, None if x is None else _over_rows(x, g)


def _of_rows(weights: Array, g: Array) -> Array:
    """`g w^T`."""
    numbers = (((1,), (1,)), ((), ()))
    if g.shape[0] < weights.shape[0] and weights.size >= _LARGE:
        return lax.optimization_barrier(lax.dot_general(weights, g, numbers)).T
    return lax.dot_general(g, weights, numbers)


def _over_rows(x: Array, g: Array) -> Array:
    """`x^T g`."""
    numbers = (((0,), (0,)), ((), ()))
    if g.shape[-1] < min(x.shape):
        return lax.optimization_barrier(lax.dot_general(g, x, numbers)).T
    return lax.dot_general(x, g, numbers)


product.defvjp(_forward, _backward, symbolic_zeros=True)
