"""Exit heads of models whose outputs are vectors, sequences and images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.models.adapt import from_flax
from fedjax_het.models.exits import ExitHead, ensemble, truncated, with_exits
from fedjax_het.models.mlp import mlp
from fedjax_het.models.precision import with_compute_dtype

KEY = jax.random.key(0)


def head(positions, x):
    module = ExitHead(3, positions)
    variables = module.init(KEY, x)
    layer = variables["params"]["Dense_0"]
    return module.apply(variables, x), lambda z: z @ layer["kernel"]


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 5)), jnp.float32)


def test_axes_that_the_outputs_lack_are_averaged():
    y, linear = head((), X)
    np.testing.assert_allclose(y, linear(X.mean((1, 2))), rtol=1e-5, atol=1e-6)
    y, linear = head((4,), X)
    np.testing.assert_allclose(y, linear(X.mean(2)), rtol=1e-5, atol=1e-6)
    y, linear = head((4, 6), X)
    np.testing.assert_allclose(y, linear(X), rtol=1e-5, atol=1e-6)


def test_other_resolutions_are_interpolated():
    y, linear = head((8, 6), X)
    z = np.asarray(linear(X))
    # Twice as many rows: a quarter of the way to the next, and the edge at the edge.
    np.testing.assert_allclose(y[:, 0], z[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y[:, 1], 0.75 * z[:, 0] + 0.25 * z[:, 1], rtol=1e-4, atol=1e-5)
    # A vector predicts the same everywhere.
    y, linear = head((3, 2), X[:, 0, 0])
    expected = jnp.broadcast_to(linear(X[:, 0, 0])[:, None, None], (2, 3, 2, 3))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


class Autoencoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        z = nn.relu(nn.Conv(4, (3, 3), strides=(2, 2))(x))
        z = nn.Dense(6)(z.reshape(z.shape[0], -1))
        return nn.Dense(8 * 6 * 2)(nn.relu(z)).reshape(-1, 8, 6, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_heads_have_the_shape_of_the_outputs(dtype):
    model = with_compute_dtype(with_exits(from_flax(Autoencoder(), (8, 6, 1))), dtype)
    assert model.num_classes == 2
    x = jax.ShapeDtypeStruct((5, 8, 6, 1), jnp.float32)
    every = jax.eval_shape(lambda v, x: model.apply_exits(v, x)[0], model.shapes, x)
    assert every.shape == (3, 5, 8, 6, 2)


def deep(shared, dtype="float32"):
    return with_compute_dtype(with_exits(mlp((5,), 3, hidden=(4, 4, 4)), shared=shared), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_truncated_network_is_the_network_up_to_its_exit(shared, dtype):
    model, x = deep(shared, dtype), jax.random.normal(KEY, (6, 5))
    variables = model.init(KEY)
    for block in range(4):
        small, own = truncated(model, block)
        assert small.num_blocks == min(block + 2, 4)
        assert not small.exits
        assert jax.tree.map(jnp.shape, own(variables)) == jax.tree.map(jnp.shape, small.shapes)
        outputs, _ = small.apply(own(variables), x)
        np.testing.assert_array_equal(outputs, model.apply(variables, x, exit=block)[0])


def test_an_ensemble_has_the_mean_of_the_outputs():
    model, x = deep(False), jax.random.normal(KEY, (6, 5))
    variables = model.init(KEY)
    whole, own = ensemble(model, (0, 2, 3))
    outputs, _ = whole.apply(own(variables), x)
    each = [model.apply(variables, x, exit=b)[0] for b in (0, 2, 3)]
    np.testing.assert_allclose(outputs, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    assert jax.tree.map(jnp.shape, own(variables)) == jax.tree.map(jnp.shape, whole.shapes)


def test_truncation_needs_a_block_of_the_model_and_its_head():
    with pytest.raises(InputError, match="last block to keep"):
        truncated(deep(False), 4)
    with pytest.raises(InputError, match="with_exits"):
        truncated(mlp((5,), 3, hidden=(4,)), 0)
