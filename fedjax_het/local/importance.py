"""Training of the largest weights: the forward pass prunes, the gradient knows by how much."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def effective_weights(theta: jax.Array, threshold: jax.Array) -> jax.Array:
    r"""The weights that are at least the threshold in magnitude, and zero for the others.

    The magnitude is also the importance by which a weight is kept or not, so the gradient has a
    second term: $\nabla_\theta = 1[|\theta| \ge \tau] (1 + 2 \tau |\theta| / (|\theta| + \tau)^2)
    \nabla$, with the gradient $\nabla$ with respect to the result.

    Args:
      theta: weights, of any shape.
      threshold: threshold tau, a scalar of the same dtype.
    """
    return jnp.where(jnp.abs(theta) >= threshold, theta, 0.0)


def _forward(theta: jax.Array, threshold: jax.Array) -> tuple[jax.Array, Any]:
    return effective_weights(theta, threshold), (theta, threshold)


def _backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    theta, threshold = kept
    return gradient * importance_factor(theta, threshold), None


def importance_factor(theta: jax.Array, threshold: jax.Array) -> jax.Array:
    """Factor from the gradient of the effective weights to that of theta; 0 for pruned weights."""
    size = jnp.abs(theta)
    total = size + threshold
    # A weight of zero is held only with a threshold of zero, where the second term vanishes.
    total = jnp.where(total > 0, total, 1.0)
    return jnp.where(size >= threshold, 1.0 + 2.0 * threshold * size / (total * total), 0.0)


effective_weights.defvjp(_forward, _backward)


def kth_largest(magnitudes: Sequence[jax.Array], counts: np.ndarray) -> jax.Array:
    """The k-th largest of the values of all arrays together, exactly, for several k.

    Args:
      magnitudes: values >= 0, float32.
      counts: k of each result, within 1 and the number of values, int32[m].

    Returns:
      The values, float32[m].
    """
    # Floats >= 0 have the order of their bits; every pass decides one bit of the results.
    bits = [jax.lax.bitcast_convert_type(leaf, jnp.int32) for leaf in magnitudes]

    def decide(i: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | jnp.left_shift(jnp.int32(1), 30 - i)

        def at_least(value: jax.Array) -> jax.Array:
            return jnp.sum(jnp.stack([jnp.sum(leaf >= value, dtype=jnp.int32) for leaf in bits]))

        return jnp.where(jax.vmap(at_least)(tried) >= counts, tried, found)

    found = jax.lax.fori_loop(0, 31, decide, jnp.zeros(len(counts), jnp.int32))
    return jax.lax.bitcast_convert_type(found, jnp.float32)
