"""Exit heads of models whose outputs are vectors, sequences and images."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.models.adapt import from_flax
from fedjax_het.models.exits import ExitHead, with_exits
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
