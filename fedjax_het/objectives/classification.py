"""Classification with integer labels: softmax cross-entropy over the samples of a mini-batch."""

import jax
import jax.numpy as jnp
import optax

from fedjax_het.data.batches import Batch


def cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Mean softmax cross-entropy over the samples of positive weight.

    Args:
      logits: float32[B, classes], or [B, T, classes] for sequences (a sample's loss is then the
        mean over its T positions).
      batch: labels int32[B] or [B, T], and `weight` float32[B].

    Returns:
      float32 scalar; 0 for an empty batch.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y)
    losses = losses.reshape(losses.shape[0], -1).mean(axis=1)
    return jnp.sum(losses * batch.weight) / jnp.maximum(jnp.sum(batch.weight), 1.0)
