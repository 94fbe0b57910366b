"""Optimisers of the clients."""

import jax
import optax

from fedjax_het.common.types import PyTree


def amsgrad(learning_rate: float) -> optax.GradientTransformation:
    """`optax.amsgrad`, also where JAX promotes no types of its own accord."""
    inner = optax.amsgrad(learning_rate)

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        # It raises a Python float to the power of an integer array.
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(grads, state, params)

    return optax.GradientTransformation(inner.init, update)
