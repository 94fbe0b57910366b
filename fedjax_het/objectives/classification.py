"""Classification with integer labels: softmax cross-entropy and correct predictions."""

import jax
import jax.numpy as jnp
import optax

from fedjax_het.data.batches import Batch


def cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    """Mean softmax cross-entropy over the samples of positive weight.

    Args:
      logits: logits of the samples, float32[B, classes], or [B, T, classes] for sequences (a
        sample's loss is then the mean over its T positions).
      batch: batch with labels int32[B] or [B, T], and `weight` float32[B].

    Returns:
      The loss, float32 scalar; 0 for an empty batch.
    """
    losses = sample_losses(logits, batch.y)
    return jnp.sum(losses * batch.weight) / jnp.maximum(jnp.sum(batch.weight), 1.0)


def sample_losses(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross-entropy of every sample, for a sequence the mean over positions; float32[B].

    Args:
      logits: logits of the samples, float32[B, classes] or [B, T, classes].
      y: labels of the samples, int32[B] or [B, T].
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return losses.reshape(losses.shape[0], -1).mean(axis=1)


def correct(logits: jax.Array, y: jax.Array) -> jax.Array:
    """1 for every correctly predicted sample, for a sequence the share of positions; float32[B].

    Args:
      logits: logits of the samples, float32[B, classes] or [B, T, classes].
      y: labels of the samples, int32[B] or [B, T].
    """
    right = (jnp.argmax(logits, axis=-1).astype(y.dtype) == y).astype(jnp.float32)
    return right.reshape(right.shape[0], -1).mean(axis=1)
