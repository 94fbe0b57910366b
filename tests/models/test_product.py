"""Products and sums of shifted rows: the same as plain ones, in value and in gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.models.product import dot_general, product
from fedjax_het.models.shifts import shifted_sum

NUMBERS = (((1,), (0,)), ((), ()))


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("rows", "k", "n"),
    [(3, 1024, 70), (3, 20, 7), (20, 7, 3), (20, 3, 7), (5, 5, 5), (1, 9, 1), (9, 1, 4)],
)
@pytest.mark.parametrize("clients", [0, 3])
def test_product_and_its_gradients_are_those_of_a_matrix_product(rows, k, n, clients):
    side = (clients,) if clients else ()
    x, w, g = (draw(side + s, i) for i, s in enumerate([(rows, k), (k, n), (rows, n)]))

    def everything(multiply):
        def one(x, w, g):
            y, pullback = jax.vjp(multiply, x, w)
            return y, pullback(g)

        return jax.jit(jax.vmap(one) if clients else one)(x, w, g)

    for ours, plain in zip(
        jax.tree.leaves(everything(product)), jax.tree.leaves(everything(jnp.matmul))
    ):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


def test_a_product_computes_no_gradient_that_nobody_asks_for():
    x, w = draw((20, 7), 0), draw((7, 3), 1)
    for argument in (0, 1):
        jaxpr = jax.make_jaxpr(jax.grad(lambda x, w: jnp.sum(product(x, w)), argument))(x, w)
        assert str(jaxpr).count("dot_general[") == 2


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5), (2, 3, 4, 5)])
def test_a_linear_layer_is_one_product_over_all_its_positions(shape):
    x, w, g = draw(shape, 0), draw((5, 3), 1), draw((*shape[:-1], 3), 2)
    numbers = (((x.ndim - 1,), (0,)), ((), ()))

    def linear(x, w):
        return dot_general(x, w, numbers)

    ours, plain = jax.vjp(linear, x, w), jax.vjp(jnp.matmul, x, w)
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(ours[1](g), plain[1](g), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    on_cpu = jax.default_backend() == "cpu"
    assert ("custom_vjp" in str(jax.make_jaxpr(linear)(x, w))) == on_cpu


def test_a_linear_layer_with_a_precision_is_left_to_jax():
    x, w = draw((4, 5), 0), draw((5, 3), 1)
    traced = jax.make_jaxpr(lambda x, w: dot_general(x, w, NUMBERS, jax.lax.Precision.HIGHEST))
    assert "custom_vjp" not in str(traced(x, w))


@pytest.mark.parametrize(("rows", "size", "stride"), [(3, 6, 1), (1, 8, 1), (3, 3, 2), (2, 2, 3)])
def test_shifted_sum_is_the_sum_of_slices(rows, size, stride):
    x, g = draw((2, 8, 5, rows * 4), 0), draw((2, size, 5, 4), 1)

    def plain(x):
        parts = x.reshape(2, 8, 5, rows, 4)
        return sum(parts[:, i : i + (size - 1) * stride + 1 : stride, :, i] for i in range(rows))

    ours = jax.vjp(lambda x: shifted_sum(x, rows, size, stride), x)
    exact = jax.vjp(plain, x)
    np.testing.assert_allclose(ours[0], exact[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(ours[1](g)[0], exact[1](g)[0])
