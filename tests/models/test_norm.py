"""The norms are those of the literature, in both modes and with the mode chosen per client."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.models.norm import BatchNorm, GroupNorm

X = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, (5, 4, 4, 6)), jnp.float32)
AFFINE = {
    "scale": jnp.linspace(0.5, 2.0, 6, dtype=jnp.float32),
    "bias": jnp.linspace(-1.0, 1.0, 6, dtype=jnp.float32),
}


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_equals_flax(groups):
    def outputs(module):
        def loss(params, x):
            y = module.apply({"params": params}, x)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(AFFINE, X)

    ours, theirs = outputs(GroupNorm(groups)), outputs(nn.GroupNorm(groups, epsilon=1e-5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


def batch_norm(train):
    stats = {"mean": jnp.full(6, 1.5), "var": jnp.full(6, 4.0)}
    variables = {"params": AFFINE, "batch_stats": stats}
    return BatchNorm().apply(variables, X, train=train, mutable=["batch_stats"])


def test_batch_norm_in_training():
    y, updated = batch_norm(True)
    mean, var = X.mean((0, 1, 2)), X.var((0, 1, 2))
    normal = (X - mean[None, None, None]) / jnp.sqrt(var + 1e-5)[None, None, None]
    expected = normal * AFFINE["scale"][None, None, None] + AFFINE["bias"][None, None, None]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    running = updated["batch_stats"]
    np.testing.assert_allclose(running["mean"], 0.9 * 1.5 + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 * 4.0 + 0.1 * var * 80 / 79, rtol=1e-4)


def test_batch_norm_in_evaluation_uses_and_keeps_its_statistics():
    y, updated = batch_norm(False)
    expected = (X - 1.5) / np.sqrt(4.0 + 1e-5) * AFFINE["scale"][None, None, None]
    np.testing.assert_allclose(y, expected + AFFINE["bias"][None, None, None], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(updated["batch_stats"]["mean"], jnp.full(6, 1.5))


def test_batch_norm_mode_may_be_traced():
    results = jax.jit(jax.vmap(batch_norm))(jnp.array([True, False]))
    for row, train in enumerate((True, False)):
        jax.tree.map(
            lambda a, b, row=row: np.testing.assert_allclose(a[row], b, rtol=1e-5, atol=1e-5),
            results,
            batch_norm(train),
        )


def test_norms_keep_the_dtype_of_the_activations():
    x = X.astype(jnp.bfloat16)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), AFFINE)
    assert GroupNorm(2).apply({"params": params}, x).dtype == jnp.bfloat16
    stats = {"mean": jnp.zeros(6), "var": jnp.ones(6)}
    variables = {"params": params, "batch_stats": stats}
    y, updated = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert updated["batch_stats"]["var"].dtype == jnp.float32
