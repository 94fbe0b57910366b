"""Training at several exits: the terms by hand, constant teachers, and heads that are not held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close

from fedjax_het.local.exits import mutual_distillation

WEIGHT = jnp.asarray([1.0, 1.0, 0.0, 1.0])


def logits(heads=3, shape=(4,)):
    draws = np.random.default_rng(0).normal(size=(heads, *shape, 5))
    return jnp.asarray(draws, jnp.float32)


def by_hand(outputs, held):
    """The double sum in float64, sample by sample."""
    z = np.asarray(outputs, np.float64)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    chosen, real, total = np.flatnonzero(held), np.flatnonzero(WEIGHT), 0.0
    for i in chosen:
        for j in chosen:
            if i != j:
                kl = np.sum(p[j] * np.log(p[j] / p[i]), -1).reshape(len(WEIGHT), -1).mean(1)
                total += kl[real].mean()
    return total / max(len(chosen) - 1, 1)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 2)])
@pytest.mark.parametrize("held", [(True, True, True), (True, True, False), (True, False, False)])
def test_distillation_is_the_sum_over_pairs_of_heads(held, shape):
    outputs = logits(shape=shape)
    found = mutual_distillation(outputs, jnp.asarray(held), WEIGHT)
    np.testing.assert_allclose(found, by_hand(outputs, held), rtol=1e-5, atol=1e-7)
    assert (float(found) == 0.0) == (sum(held) == 1)


def test_heads_that_a_client_does_not_have_change_nothing():
    outputs, held = logits(), jnp.asarray([True, True, False])
    whole = jax.value_and_grad(lambda z: mutual_distillation(z, held, WEIGHT))(outputs)
    own = jax.value_and_grad(lambda z: mutual_distillation(z, held[:2], WEIGHT))(outputs[:2])
    assert_close((whole[0], whole[1][:2]), own)
    np.testing.assert_array_equal(whole[1][2], np.zeros_like(whole[1][2]))


def test_teachers_are_constant():
    """The gradient at head i is that of its own losses: (2 p_i - p_j - p_k) / 2 per sample."""
    outputs, held = logits(), jnp.ones(3, bool)
    found = jax.grad(lambda z: mutual_distillation(z, held, WEIGHT))(outputs)
    p = jax.nn.softmax(outputs)
    share = (WEIGHT / 3.0)[None, :, None]
    want = share * (2.0 * p - (jnp.sum(p, axis=0, keepdims=True) - p)) / 2.0
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-6)

    # Were the teachers not constant, the gradient would be another one.
    def moving(z):
        log = jax.nn.log_softmax(z)
        pairs = jnp.sum(jnp.exp(log)[None] * (log[None] - log[:, None]), axis=-1)
        return jnp.sum(pairs * share[..., 0][None]) / 2.0

    assert float(moving(outputs)) == pytest.approx(
        float(mutual_distillation(outputs, held, WEIGHT)), rel=1e-5
    )
    assert float(jnp.max(jnp.abs(jax.grad(moving)(outputs) - found))) > 1e-2
