"""Contractions are counted exactly, wherever they hide."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from fedjax_het.common.errors import InputError
from fedjax_het.fleet.flops import contraction_flops


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


A, B = shape(3, 4), shape(4, 5)
DOT = 2 * 3 * 4 * 5


def test_dot_with_batch_dimensions():
    dot = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)
    assert contraction_flops(dot, shape(7, 3, 4), shape(7, 4, 5)) == 7 * DOT


def test_elementwise_work_is_free():
    assert contraction_flops(lambda a: jnp.sum(jnp.exp(a) * a), A) == 0


@pytest.mark.parametrize(
    "wrap", [jax.jit, jax.checkpoint, jax.vmap], ids=["jit", "checkpoint", "vmap"]
)
def test_wrappers_are_entered(wrap):
    f = wrap(lambda a: a @ jnp.ones((4, 5)))
    x = shape(2, 3, 4) if wrap is jax.vmap else A
    assert contraction_flops(f, x) == (2 if wrap is jax.vmap else 1) * DOT


def test_custom_derivatives_are_entered_once():
    @jax.custom_vjp
    def f(a, b):
        return a @ b

    f.defvjp(lambda a, b: (a @ b, (a, b)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    assert contraction_flops(f, A, B) == DOT

    def step(a, b, g):
        y, pullback = jax.vjp(f, a, b)
        return y, pullback(g)

    assert contraction_flops(step, A, B, shape(3, 5)) == 3 * DOT

    @jax.custom_jvp
    def h(a):
        return a @ jnp.ones((4, 5))

    h.defjvp(lambda x, t: (h(x[0]), h(t[0])))
    assert contraction_flops(h, A) == DOT


def test_scan_counts_its_length_and_cond_its_dearest_branch():
    w = jnp.ones((4, 4))
    scan = lambda c: lax.scan(lambda c, _: (c @ w, None), c, None, length=6)[0]
    loop = lambda c: lax.fori_loop(0, 6, lambda _, c: c @ w, c)
    assert contraction_flops(scan, A) == contraction_flops(loop, A) == 6 * 2 * 3 * 4 * 4
    cond = lambda p, c: lax.cond(p, lambda c: c @ w @ w, lambda c: c @ w, c)
    assert contraction_flops(cond, jax.ShapeDtypeStruct((), jnp.bool_), A) == 2 * 2 * 3 * 4 * 4


def test_while_is_refused_only_with_contractions_inside():
    w = jnp.ones((4, 4))
    busy = lambda c: lax.while_loop(lambda c: jnp.sum(c) > 0, lambda c: c @ w, c)
    idle = lambda c: lax.while_loop(lambda c: jnp.sum(c) > 0, lambda c: c - 1, c)
    assert contraction_flops(idle, A) == 0
    with pytest.raises(InputError, match=r"while loop.*number of iterations.*lax\.scan"):
        contraction_flops(busy, A)


def test_what_cannot_be_seen_is_refused():
    f = lambda a: jax.pure_callback(lambda a: a, A, a)
    with pytest.raises(InputError, match=r"pure_callback.*measured profile"):
        contraction_flops(f, A)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 4, 5])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_and_its_gradients_cost_the_same(stride, kernel, groups):
    size, cin, cout = 12, 4, 6

    def conv(w, x):
        return lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    w, x = shape(kernel, kernel, cin // groups, cout), shape(1, size, size, cin)
    out = -(-size // stride)
    forward = 2 * out * out * (cin // groups) * cout * kernel**2
    assert contraction_flops(conv, w, x) == forward
    y = shape(1, out, out, cout)

    def gradients(w, x, g):
        return jax.vjp(conv, w, x)[1](g)

    # vjp runs the forward pass too. Same count for each gradient; where the kernel is smaller than
    # the stride some inputs are never read, and neither are their gradients computed.
    assert contraction_flops(gradients, w, x, y) == 3 * forward


def test_recurrent_layer_counts_every_step():
    rnn = nn.RNN(nn.SimpleCell(features=8))
    x = shape(1, 10, 3)
    params = jax.eval_shape(rnn.init, jax.random.key(0), x)
    assert contraction_flops(rnn.apply, params, x) == 10 * 2 * (3 * 8 + 8 * 8)
