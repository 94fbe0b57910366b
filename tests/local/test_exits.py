"""Training at several exits: the terms by hand, constant teachers, and heads that are not held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close

from fedjax_het.local.exits import (
    Heads,
    distillation_from_last,
    from_last,
    head_weights,
    mutual_distillation,
)

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


# ---- the last exit teaches the others ------------------------------------------------------------


def test_later_heads_weigh_more():
    np.testing.assert_allclose(head_weights(jnp.ones(4, bool)), [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    held = jnp.asarray([True, True, False, False])
    np.testing.assert_allclose(head_weights(held), [1 / 3, 2 / 3, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(head_weights(jnp.asarray([True, False])), [1.0, 0.0])


def told_by_hand(outputs, last, temperature):
    """T^2 KL(p_last || p_i) in float64, sample by sample, of every head before `last`."""
    z = np.asarray(outputs, np.float64) / temperature
    log = z - np.log(np.exp(z).sum(-1, keepdims=True))
    kl = np.sum(np.exp(log[last])[None] * (log[last][None] - log), -1)
    kl = kl.reshape(*kl.shape[:2], -1).mean(-1)[:, np.flatnonzero(WEIGHT)].mean(1)
    return np.where(np.arange(len(z)) < last, temperature**2 * kl, 0.0)


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
@pytest.mark.parametrize("held", [(True, True, True), (True, True, False), (True, False, False)])
def test_the_last_head_that_is_held_teaches_those_before_it(held, shape):
    outputs = logits(shape=shape)
    found = distillation_from_last(outputs, jnp.asarray(held), WEIGHT, 3.0)
    want = told_by_hand(outputs, sum(held) - 1, 3.0)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)
    assert np.count_nonzero(want) == sum(held) - 1


def test_heads_that_agree_have_nothing_to_learn():
    outputs = jnp.broadcast_to(logits(1), (3, 4, 5))
    every = jnp.ones(3, bool)
    value, gradient = jax.value_and_grad(
        lambda z: jnp.sum(distillation_from_last(z, every, WEIGHT, 3.0))
    )(outputs)
    assert abs(float(value)) < 1e-6
    np.testing.assert_allclose(gradient, np.zeros_like(outputs), atol=1e-7)


def test_the_factor_of_a_temperature_keeps_the_size_of_gradients():
    """T^2 KL_T tends to half the squared difference of centred logits over the classes."""
    outputs, held = logits(2), jnp.ones(2, bool)
    centred = outputs - jnp.mean(outputs, axis=-1, keepdims=True)
    squared = jnp.sum(jnp.square(centred[0] - centred[1]), axis=-1) / 10.0
    want = jnp.sum(squared * WEIGHT) / 3.0
    found = distillation_from_last(outputs, held, WEIGHT, 100.0)[0]
    assert float(found) == pytest.approx(float(want), rel=0.03)


def test_the_last_head_learns_from_labels_only():
    """Its teacher's role has no gradient; a student's is gamma T (p_T - q_T) at its weight."""
    outputs, held = logits(), jnp.ones(3, bool)
    gamma, temperature = 0.5, 3.0

    def loss(z):
        heads = Heads(jnp.zeros(3), z, held, WEIGHT)
        return from_last(gamma, temperature)(heads, None)

    found = jax.grad(loss)(outputs)
    np.testing.assert_array_equal(found[2], np.zeros_like(found[2]))
    p = jax.nn.softmax(outputs / temperature)
    share = (WEIGHT / 3.0)[None, :, None] * jnp.asarray([1 / 6, 2 / 6])[:, None, None]
    want = gamma * temperature * share * (p[:2] - p[2][None])
    np.testing.assert_allclose(found[:2], want, rtol=1e-4, atol=1e-6)


def test_what_a_client_does_not_hold_does_not_count():
    outputs, losses = logits(), jnp.asarray([1.0, 2.0, np.nan])
    held = jnp.asarray([True, True, False])
    combine = from_last(0.5, 3.0)
    whole = combine(Heads(losses, outputs, held, WEIGHT), None)
    own = combine(Heads(losses[:2], outputs[:2], held[:2], WEIGHT), None)
    assert float(whole) == pytest.approx(float(own), rel=1e-6)
    told = told_by_hand(outputs, 1, 3.0)[0]
    assert float(own) == pytest.approx((1.0 + 0.5 * told) / 3.0 + 2.0 * 2.0 / 3.0, rel=1e-5)
