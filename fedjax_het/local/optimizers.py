"""Optimisers of the clients."""

import jax
import optax

from fedjax_het.common.types import PyTree


def amsgrad(learning_rate: float) -> optax.GradientTransformation:
    """`optax.amsgrad` that also works with strict type promotion of JAX."""
    inner = optax.amsgrad(learning_rate)

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        # optax raises a Python float to the power of an integer array.
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(grads, state, params)

    return optax.GradientTransformation(inner.init, update)
