"""Distillation: what a student is taught."""

import jax
import jax.numpy as jnp
import pytest

from fedjax_het.local.distillation import distillation


def test_distillation_is_zero_for_a_good_pupil_and_ignores_padding():
    """See methods/baselines.md check 14."""
    logits = jax.random.normal(jax.random.key(0), (5, 4))
    weight = jnp.asarray([1.0, 1.0, 1.0, 0.0, 0.0])
    assert float(distillation(logits, logits + 3.0, weight, 3.0)) == pytest.approx(0, abs=1e-6)
    other = logits.at[:3].set(0.0)
    told = distillation(logits, other, weight, 2.0)
    p = jax.nn.softmax(other[:3] / 2)
    wanted = 4 * jnp.mean(jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(logits[:3] / 2)), axis=1))
    assert float(told) == pytest.approx(float(wanted), rel=1e-5)
    assert float(told) == pytest.approx(float(distillation(logits[:3], other[:3], weight[:3], 2.0)))
