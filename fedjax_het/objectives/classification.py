"""Classification with integer labels: softmax cross-entropy, and what is predicted right."""

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
    losses = sample_losses(logits, batch.y)
    return jnp.sum(losses * batch.weight) / jnp.maximum(jnp.sum(batch.weight), 1.0)


def sample_losses(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross-entropy of every sample, float32[B]; the mean over the positions of a sequence.

    Args:
      logits: float32[B, classes] or [B, T, classes].
      y: int32[B] or [B, T].
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return losses.reshape(losses.shape[0], -1).mean(axis=1)


def correct(logits: jax.Array, y: jax.Array) -> jax.Array:
    """1 for every sample that is predicted right, float32[B]; the share of a sequence's positions.

    Args:
      logits: float32[B, classes] or [B, T, classes].
      y: int32[B] or [B, T].
    """
    right = (jnp.argmax(logits, axis=-1).astype(y.dtype) == y).astype(jnp.float32)
    return right.reshape(right.shape[0], -1).mean(axis=1)
