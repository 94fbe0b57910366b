"""The norms are those of the literature, in both modes and with the mode chosen per client."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.exits import with_exits
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


class Own(nn.Module):
    """Batch norm of this library between two operations."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.relu(BatchNorm(momentum=0.1, name="norm")(2.0 * x, train=train))


class Flax(nn.Module):
    """The same by flax, which keeps the biased variance."""

    @nn.compact
    def __call__(self, x, *, train):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")
        return nn.relu(norm(2.0 * x))


REAL = np.random.default_rng(1).normal(2.0, 3.0, (3, 4, 2)).astype(np.float32)


def reference(x, unbiased):
    """Output, statistics and gradient of sum(y^2) by x, of three real samples; NumPy, float64."""
    x = 2.0 * x.astype(np.float64)
    n = x.size // 2
    mean, var = x.mean((0, 1)), x.var((0, 1))
    normal = (x - mean) / np.sqrt(var + 1e-5)
    y = np.maximum(normal, 0.0)
    stats = {"mean": 0.1 * mean, "var": 0.9 + 0.1 * var * (n / (n - 1) if unbiased else 1.0)}
    g = 2.0 * y
    centred = g - g.mean((0, 1)) - normal * (g * normal).mean((0, 1))
    return y, stats, 2.0 * centred / np.sqrt(var + 1e-5)


def padded_step(model, padding, live=None):
    """Output of the real samples, statistics and gradient by the samples."""
    variables = model.init(jax.random.key(0))
    x = jnp.asarray(np.concatenate([REAL, padding]))
    weight = (jnp.arange(len(x)) < 3).astype(jnp.float32)

    def loss(x, weight):
        y, stats = model.apply(variables, x, train=True, weight=weight, live=live)
        rows = jnp.where(weight.reshape(-1, 1, 1) > 0, y, 0.0)
        return jnp.sum(jnp.square(rows)), (y, stats["blocks"][0]["norm"])

    # Clients of one program differ in their padding.
    steps = jax.jit(jax.vmap(jax.grad(loss, has_aux=True), in_axes=(None, 0)))
    grad, (y, stats) = jax.tree.map(
        lambda a: a[0], steps(x, jnp.stack([weight, jnp.ones_like(weight)]))
    )
    return y[:3], stats, grad[:3]


PADDINGS = {
    "none": np.zeros((0, 4, 2), np.float32),
    "zeros": np.zeros((1, 4, 2), np.float32),
    "copies": np.tile(REAL[:1], (5, 1, 1)),
    "huge": np.full((2, 4, 2), 1e6, np.float32),
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kind", ["own", "traced", "flax"])
def test_padding_is_not_seen_by_batch_norm(kind, padding):
    module = Flax() if kind == "flax" else Own()
    block = flax_block("norm", module, traced_train=kind == "traced")
    model = BlockModel("norms", (block,), (4, 2), 2)
    live = jnp.ones(1, bool) if kind == "traced" else None
    result = padded_step(model, PADDINGS[padding], live)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
        result,
        reference(REAL, unbiased=kind != "flax"),
    )


@pytest.mark.parametrize("module", [Own(), Flax()])
def test_a_batch_of_padding_alone_keeps_the_statistics(module):
    model = BlockModel("norms", (flax_block("norm", module),), (4, 2), 2)
    variables = model.init(jax.random.key(0))
    y, stats = model.apply(variables, jnp.asarray(REAL), train=True, weight=jnp.zeros(3))
    assert bool(jnp.isfinite(y).all())
    jax.tree.map(np.testing.assert_array_equal, stats, variables.stats)


def test_every_way_through_a_model_passes_the_weights_on():
    blocks = (flax_block("a", Own()), flax_block("b", Flax()), flax_block("c", nn.Dense(2)))
    model = with_exits(BlockModel("norms", blocks, (4, 2), 2))
    variables = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    def ways(x, weight):
        run = functools.partial(model.apply, variables, x, train=True)
        how = {"train": True, "weight": weight}
        z, half = model.forward_to(variables, x, 0, **how)
        after = model.forward_from(variables._replace(stats=half), z, 0, **how)
        walked = model.walk(variables, x, lambda b, z: z, **how)
        exits, stats = model.apply_exits(variables, x, **how)
        real = model.apply(variables, x[:3], train=True)
        return real, [run(weight=weight), (exits[-1], stats), walked, after], run()

    padded = jnp.concatenate([jnp.asarray(REAL), jnp.full((2, 4, 2), 9.0)])
    real, every, without = ways(padded, jnp.asarray([1.0, 1.0, 1.0, 0.0, 0.0]))
    for outputs, stats in every:
        np.testing.assert_allclose(outputs[:3], real[0], rtol=1e-4, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), stats, real[1])
    assert bool(jnp.any(without[0][:3] != real[0]))


def test_a_mask_of_ones_own_is_kept():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9)
            first = jnp.arange(x.shape[0]).reshape(-1, 1, 1) == 0
            return norm(x, mask=first)

    model = BlockModel("inner", (flax_block("inner", Inner()),), (4, 2), 2)
    variables = model.init(jax.random.key(0))
    _, stats = model.apply(variables, jnp.asarray(REAL), train=True, weight=jnp.ones(3))
    mean = stats["blocks"][0]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * REAL[0].mean(0), rtol=1e-5)
