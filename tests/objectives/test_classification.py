"""Losses and hits of single samples and of sequences, by hand."""

import jax.numpy as jnp
import numpy as np

from fedjax_het.data.batches import Batch
from fedjax_het.objectives.classification import correct, cross_entropy, sample_losses

LOGITS = np.log([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
Y = np.asarray([0, 1], np.int32)


def test_single_labels():
    np.testing.assert_array_equal(correct(jnp.asarray(LOGITS), Y), [1.0, 0.0])
    losses = sample_losses(jnp.asarray(LOGITS, jnp.float32), Y)
    np.testing.assert_allclose(losses, -np.log([0.5, 0.2]), rtol=1e-6)


def test_a_sequence_counts_with_the_mean_over_its_positions():
    logits = jnp.asarray(LOGITS, jnp.float32)[None]
    np.testing.assert_array_equal(correct(logits, Y[None]), [0.5])
    np.testing.assert_allclose(sample_losses(logits, Y[None]), [-np.log(0.1) / 2], rtol=1e-6)


def test_padding_has_no_loss():
    logits = jnp.asarray(LOGITS, jnp.float32)
    batch = Batch(logits, jnp.asarray(Y), jnp.asarray([1.0, 0.0]))
    np.testing.assert_allclose(cross_entropy(logits, batch), -np.log(0.5), rtol=1e-6)
    empty = batch._replace(weight=jnp.zeros(2))
    assert cross_entropy(logits, empty) == 0
