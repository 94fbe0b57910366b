"""The matrix product of a convolution's slices, with a gradient that a CPU computes fast.

The gradient of a kernel is a product over all rows of the activations, the longest one of a step,
with a small result. Which of its two factors is transposed on the way decides how fast a CPU is::

    x^T g            the wide factor is transposed: 119 GFLOP/s for [3920, 800]^T [3920, 64]
    (g^T x)^T        the narrow one is:             238 GFLOP/s

XLA takes both for the same and makes the first of the second; a barrier keeps it.
"""

import jax
from jax import lax

Array = jax.Array


@jax.custom_vjp
def product(x: Array, weights: Array) -> Array:
    """`[rows, k] x [k, n]`; has no forward-mode derivative."""
    return x @ weights


def _forward(x: Array, weights: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ weights, (x, weights)


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, weights = saved
    over_rows = (((0,), (0,)), ((), ()))
    if x.shape[-1] > g.shape[-1]:
        return g @ weights.T, lax.optimization_barrier(lax.dot_general(g, x, over_rows)).T
    return g @ weights.T, lax.dot_general(x, g, over_rows)


product.defvjp(_forward, _backward)
