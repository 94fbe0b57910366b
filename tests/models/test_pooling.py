"""Max pooling against flax, and how ties share the gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_equal_maxima_share_the_gradient_equally():
    x = jnp.asarray([[3.0, 3.0, 3.0, 1.0, 2.0, 5.0]]).reshape(1, 6, 1)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, (3,)) * jnp.asarray([[[6.0], [1.0]]])))(x)
    np.testing.assert_array_equal(gradient.ravel(), [2.0, 2.0, 2.0, 0.0, 0.0, 1.0])
    assert jnp.sum(jax.vmap(jax.grad(lambda x: jnp.sum(max_pool(x, (3,)))))(x[None])) == 2.0
