"""Every lowering is the same convolution, in value and in both gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.models import conv, windows
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
        for name in ("lax", "patches", "rows", "shift_add", "direct"):
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


def convolutions(function, *args):
    """The parameters of every convolution of XLA's in a program."""
    found = []

    def look(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                found.append(eqn.params)
            for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns")):
                look(value) if hasattr(value, "eqns") else None

    look(jax.make_jaxpr(function)(*args).jaxpr)
    return found


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_direct_is_plain_convolutions_alone_and_products_under_vmap(axes):
    """Dilated and grouped ones, and windows as large as the image, are slow in a loop on a CPU."""
    x, kernel = draw((3, 2, 7, 6, 4), 0), draw((3, 3, 2, 4, 5), 1)
    call = functools.partial(
        conv.conv_general_dilated,
        window_strides=(1, 1),
        padding=((1, 0), (0, 2)),
        dimension_numbers=NUMBERS,
    )

    def gradients(x, kernel):
        y, pullback = jax.vjp(call, x, kernel)
        return (y, *pullback(jnp.sin(y)))

    operands = [a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes)]
    alone = [a[0] if axis == 0 else a for a, axis in zip(operands, axes)]
    with lowering("direct"):
        plain = convolutions(gradients, *alone)
        assert len(plain) == 2
        for found in plain:
            assert set(found["lhs_dilation"] + found["rhs_dilation"]) == {1}
        batched = jax.vmap(gradients, in_axes=axes)
        assert not convolutions(batched, *operands)
        values = jax.jit(batched)(*operands)
    with lowering("lax"):
        expected = jax.jit(lambda *a: jax.vmap(gradients, in_axes=axes)(*a))(*operands)
    for value, exact in zip(values, expected):
        np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-4)


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


def test_direct_leaves_strides_and_precision_to_others():
    x, kernel = draw((2, 6, 6, 4), 0), draw((3, 3, 4, 4), 1)

    def run(x, kernel, strides=(1, 1), precision=None):
        return conv.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=NUMBERS, precision=precision
        )

    with lowering("direct"):
        assert len(convolutions(run, x, kernel)) == 1
        assert not convolutions(functools.partial(run, strides=(1, 2)), x, kernel)
        assert not convolutions(functools.partial(run, precision="highest"), x, kernel)


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
    large = convolution((5, 5, 32, 64), side=14, padding=(2, 2), direct=True)
    assert choose("cpu", large) == "direct"
    for other in (
        large._replace(direct=False),
        large._replace(rhs=(5, 5, 32, 50)),
        large._replace(dtype="bfloat16"),
    ):
        assert choose("cpu", other) == "rows"
    assert choose("cpu", convolution(wide, side=8, direct=True)) == "direct"
    assert choose("cpu", convolution(wide, side=7, direct=True)) == "patches"
    assert choose("cpu", convolution((3, 3, 32, 32), direct=True)) == "shift_add"
    assert choose("cpu", convolution(narrow)) == "patches"
    quarter = convolution((5, 5, 8, 16), side=14, padding=(2, 2), direct=True)
    assert choose("cpu", quarter) == "shift_add"
    assert choose("cpu", convolution((5, 5, 8, 16), side=12, padding=(2, 2))) == "patches"
    assert choose("cpu", convolution((5, 5, 3, 16), side=14, padding=(2, 2))) == "patches"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_slices_of_few_channels_are_those_of_every_offset(channels):
    x = draw((2, 9, 11, channels), 0)
    window, size, strides = (5, 3), (3, 5), (2, 2)
    pieces = [windows.shifted(x, 1, offset, size, strides) for offset in windows.offsets(window)]
    found = windows.side_by_side(x, 0, window, size, strides)
    np.testing.assert_array_equal(found, jnp.concatenate(pieces, axis=-1))
    program = str(jax.make_jaxpr(lambda x: windows.side_by_side(x, 0, window, size, strides))(x))
    assert program.count(" slice[") == (8 if channels < 4 else 15)


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
