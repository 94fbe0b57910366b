"""Every lowering is the same convolution, in value and in both gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.models import conv
from fedjax_het.models.lowering import Convolution, choose, lowering

NUMBERS = ("NHWC", "HWIO", "NHWC")


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def everything(call, x, kernel, probe):
    """Output and both gradients."""
    y, pullback = jax.vjp(call, x, kernel)
    return (y, *pullback(probe))


def compare(shape, kernel_shape, strides, padding, numbers=NUMBERS, atol=1e-4, **options):
    x, kernel = draw(shape, 0), draw(kernel_shape, 1)
    call = functools.partial(
        conv.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=numbers,
        **options,
    )
    probe = draw(jax.eval_shape(call, x, kernel).shape, 2)

    @jax.jit
    def run():
        results = []
        for name in ("lax", "patches", "rows", "shift_add"):
            with lowering(name):
                results.append(everything(call, x, kernel, probe))
        return results

    exact, *others = run()
    for result in others:
        for value, expected in zip(result, exact):
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=atol)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(5, 8), st.integers(5, 8)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(
        st.sampled_from(["SAME", "VALID"]),
        st.tuples(*[st.tuples(st.integers(-1, 2), st.integers(0, 2))] * 2),
    ),
)
def test_equals_lax(size, window, strides, channels, padding):
    compare((2, *size, channels[0]), (*window, *channels), strides, padding)


def test_equals_lax_in_one_and_three_dimensions():
    compare((2, 9, 3), (4, 3, 2), (2,), "SAME", numbers=("NWC", "WIO", "NWC"))
    compare(
        (1, 4, 5, 4, 2), (2, 3, 2, 2, 3), (1, 2, 1), "SAME", numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def test_large_batches_run_in_parts_on_a_cpu():
    shape, kernel = (6, 40, 40, 16), (5, 5, 16, 2)
    # Sums of 9,600 products of normal numbers.
    compare(shape, kernel, (1, 1), "SAME", atol=2e-3)
    call = functools.partial(
        conv.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=NUMBERS,
    )
    with lowering("rows"):
        traced = str(jax.make_jaxpr(call)(draw(shape, 0), draw(kernel, 1)))
    # 6 samples of 44 x 40 x 5 x 16 values are 3.4 MB; halves of them fit.
    assert ("f32[2,3,44,44,16]" in traced) == (jax.default_backend() == "cpu")


@pytest.mark.parametrize(
    ("kernel_shape", "numbers", "options"),
    [
        ((3, 3, 1, 4), NUMBERS, {"feature_group_count": 2}),
        ((3, 3, 2, 4), NUMBERS, {"rhs_dilation": (2, 2)}),
        ((3, 3, 2, 4), NUMBERS, {"lhs_dilation": (2, 1)}),
        ((4, 7, 3, 3), None, {}),
    ],
)
def test_what_slices_cannot_do_is_left_to_lax(kernel_shape, numbers, options):
    x, kernel = draw((2, 7, 7, 2), 0), draw(kernel_shape, 1)
    arguments = (x, kernel, (1, 1), ((1, 1), (1, 1)))
    with lowering("patches"):
        y = conv.conv_general_dilated(*arguments, dimension_numbers=numbers, **options)
    expected = jax.lax.conv_general_dilated(*arguments, dimension_numbers=numbers, **options)
    np.testing.assert_array_equal(y, expected)


def test_takes_the_place_of_lax_in_a_flax_module_under_vmap_and_grad():
    plain = nn.Conv(4, (3, 3), strides=2)
    fast = nn.Conv(4, (3, 3), strides=2, conv_general_dilated=conv.conv_general_dilated)
    x = draw((3, 2, 6, 6, 5), 0)
    params = jax.vmap(lambda key: plain.init(key, x[0]))(jax.random.split(jax.random.key(0), 3))

    def loss(module, p, x):
        return jnp.sum(jnp.sin(module.apply(p, x)))

    @jax.jit
    @jax.vmap
    def grads(params, x):
        return [jax.grad(functools.partial(loss, module))(params, x) for module in (plain, fast)]

    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, *grads(params, x))


def primitives(function, *args):
    return {eqn.primitive.name for eqn in jax.make_jaxpr(function)(*args).eqns}


def test_lowering_is_forced_inside_the_context_only():
    x, kernel = draw((2, 6, 6, 1), 0), draw((3, 3, 1, 4), 1)

    def run(x, kernel):
        return conv.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)

    with lowering("lax"):
        assert "conv_general_dilated" in primitives(lambda *a: run(*a), x, kernel)
    assert "conv_general_dilated" not in primitives(run, x, kernel)
    with pytest.raises(ValueError, match="patches"), lowering("patch"):
        pass


def convolution(kernel_shape, side=32, padding=(1, 1), dtype="float32", **options):
    lhs = (20, side, side, kernel_shape[-2])
    return Convolution(dtype, lhs, kernel_shape, (1, 1), (padding, padding), **options)


def test_choice_by_backend_dtype_and_shape():
    wide, narrow = (3, 3, 32, 64), (3, 3, 3, 16)
    assert choose("tpu", convolution(wide)) == "lax"
    for dtype in ("float32", "bfloat16"):
        assert choose("gpu", convolution(wide, dtype=dtype, implicit=True)) == "implicit"
        assert choose("gpu", convolution(narrow, dtype=dtype, implicit=True)) == "patches"
        one = convolution((1, 1, 32, 64), padding=(0, 0), dtype=dtype, implicit=True)
        assert choose("gpu", one) == "patches"
    assert choose("gpu", convolution(wide)) == "patches"
    assert choose("gpu", convolution(wide, dtype="bfloat16")) == "rows"
    assert choose("gpu", convolution(narrow, dtype="bfloat16")) == "patches"
    assert choose("cpu", convolution(wide)) == "shift_add"
    assert choose("cpu", convolution(wide, side=4, padding=(2, 2))) == "patches"
    assert choose("cpu", convolution((5, 5, 32, 64), side=14, padding=(2, 2))) == "rows"
    assert choose("cpu", convolution(narrow)) == "patches"


def test_extra_rows_are_those_of_padding_and_stride():
    same = Convolution("float32", (1, 10, 10, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)))
    assert same.extra_rows == pytest.approx(0.2)
    strided = same._replace(strides=(2, 1), padding=((0, 0), (1, 1)))
    assert strided.extra_rows == pytest.approx(10 / 4 - 1)


def test_one_by_one_is_a_single_matmul():
    x, kernel = draw((2, 4, 4, 8), 0), draw((1, 1, 8, 3), 1)
    y = conv.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)
    np.testing.assert_allclose(y, jnp.einsum("nhwc,co->nhwo", x, kernel[0, 0]), rtol=1e-5)


def test_bad_arguments_name_the_remedy():
    x = draw((2, 6, 6, 3), 0)
    call = functools.partial(
        conv.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NUMBERS
    )
    with pytest.raises(ValueError, match="input_shape"):
        call(x, draw((3, 3, 2, 4), 1))
    with pytest.raises(ValueError, match="one dtype"):
        call(x, draw((3, 3, 3, 4), 1).astype(jnp.bfloat16))
