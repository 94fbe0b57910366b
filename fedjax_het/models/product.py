"""The matrix product of a convolution's slices, with a gradient that a CPU computes fast.

The gradient of a kernel is a product over all rows of the activations, the longest one of a step,
with a small result. Which of its two factors is transposed on the way decides how fast a CPU is::

    x^T g            the wide factor is transposed: 119 GFLOP/s for [3920, 800]^T [3920, 64]
    (g^T x)^T        the narrow one is:             238 GFLOP/s

XLA takes both for the same and makes the first of the second; a barrier keeps it.
"""

from typing import Any

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero

Array = jax.Array


@jax.custom_vjp
def product(x: Array, weights: Array) -> Array:
    """`[rows, k] x [k, n]`; has no forward-mode derivative."""
    return x @ weights


def _forward(x: Any, weights: Any) -> tuple[Array, tuple[Array | None, Array | None]]:
    # Only what a gradient is asked for is kept and computed: what a step costs is counted from it.
    kept = (x.value if weights.perturbed else None, weights.value if x.perturbed else None)
    return x.value @ weights.value, kept


def _backward(kept: tuple[Array | None, Array | None], g: Any) -> tuple[Array | None, Array | None]:
    x, weights = kept
    if isinstance(g, SymbolicZero):
        return None, None
    return None if weights is None else g @ weights.T, None if x is None else _over_rows(x, g)


def _over_rows(x: Array, g: Array) -> Array:
    numbers = (((0,), (0,)), ((), ()))
    if x.shape[-1] > g.shape[-1]:
        return lax.optimization_barrier(lax.dot_general(g, x, numbers)).T
    return lax.dot_general(x, g, numbers)


product.defvjp(_forward, _backward, symbolic_zeros=True)
