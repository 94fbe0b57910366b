"""Max pooling against flax, and where its gradient goes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.models.norm import Normalize
from fedjax_het.models.pooling import max_pool


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("shape", "window"), [((2, 6, 6, 3), 2), ((2, 7, 9, 1), (3, 2))])
def test_max_pool_equals_flax(shape, window):
    x = draw(shape, 3)
    sizes = (window, window) if isinstance(window, int) else window
    y, pullback = jax.vjp(lambda x: max_pool(x, window), x)
    expected, expected_pullback = jax.vjp(lambda x: nn.max_pool(x, sizes, sizes), x)
    np.testing.assert_array_equal(y, expected)
    probe = draw(y.shape, 4)
    np.testing.assert_array_equal(pullback(probe)[0], expected_pullback(probe)[0])


def test_max_pool_rejects_a_window_that_does_not_fit():
    with pytest.raises(ValueError, match="smaller window"):
        max_pool(draw((2, 3, 3, 1), 0), 4)


def test_the_first_of_equal_maxima_gets_the_gradient():
    x = jnp.asarray([[3.0, 3.0, 3.0, 1.0, 2.0, 5.0]]).reshape(1, 6, 1)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, (3,)) * jnp.asarray([[[6.0], [1.0]]])))(x)
    np.testing.assert_array_equal(gradient.ravel(), [6.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    assert jnp.sum(jax.vmap(jax.grad(lambda x: jnp.sum(max_pool(x, (3,)))))(x[None])) == 2.0


@pytest.mark.parametrize("channels", [6, 12, 24])
def test_a_compiler_may_round_the_input_differently_in_both_passes(channels):
    """A norm that is fused into both passes: comparing values there lost half of the gradient."""
    norm, x, bias = Normalize("group"), draw((2, 8, 8, channels), 0), draw((channels,), 1)
    weights = draw((channels, 3), 2)
    params = norm.init(jax.random.key(0), x, train=True)

    def loss(bias):
        z = x + jnp.broadcast_to(bias.reshape(1, 1, 1, -1), x.shape)
        z = max_pool(nn.relu(norm.apply(params, z, train=True)), 2)
        return jnp.sum(jnp.sin(jnp.mean(z, axis=(1, 2)) @ weights))

    exact = jax.grad(loss)(bias)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(bias), exact, rtol=1e-4, atol=1e-6)
