"""The GPU's own convolution, interpreted, is the convolution; and it lowers to Triton."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from problems import assert_close, differ, digits, fleet, one_round

from fedjax_het.algorithms import build
from fedjax_het.models import implicit_gemm
from fedjax_het.models import lowering as lowerings
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.cnn import Conv
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.lowering import implicit_fits, lowering
from fedjax_het.models.mlp import Dense
from fedjax_het.problem import Problem

NUMBERS = ("NHWC", "HWIO", "NHWC")


def draw(shape, seed, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def everything(how, x, w, strides, padding, in_axes=(0, 0)):
    """Output and both gradients of clients side by side."""

    def one(x, w):
        y = conv_general_dilated(x, w, strides, padding, dimension_numbers=NUMBERS)
        # A cotangent that differs everywhere, and that bfloat16 can hold.
        probe = jnp.round(8.0 * jnp.sin(jnp.arange(y.size, dtype=jnp.float32))) / 8.0
        return y, jnp.sum(y.astype(jnp.float32) * probe.reshape(y.shape))

    def total(x, w):
        y, sums = jax.vmap(one, in_axes)(x, w)
        return jnp.sum(sums), y

    with lowering(how, interpret=True):
        (_, y), grads = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(x, w)
    return (y, *grads)


def compare(x, w, strides=(1, 1), padding="SAME", tolerance=1e-5, **axes):
    ours = everything("implicit", x, w, strides, padding, **axes)
    wide = [a.astype(jnp.float32) for a in (x, w)]
    for value, expected in zip(ours, everything("lax", *wide, strides, padding, **axes)):
        assert value.shape == expected.shape
        assert value.dtype == x.dtype
        scale = float(np.max(np.abs(expected)))
        np.testing.assert_allclose(
            np.asarray(value, np.float32), expected, rtol=0, atol=tolerance * max(scale, 1.0)
        )


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(4, 7), st.integers(4, 7)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    padding=st.one_of(
        st.sampled_from(["SAME", "VALID"]),
        st.tuples(*[st.tuples(st.integers(-1, 2), st.integers(0, 2))] * 2),
    ),
)
def test_equals_lax_for_clients_side_by_side(size, window, strides, channels, padding):
    x, w = draw((2, 2, *size, channels[0]), 0), draw((2, *window, *channels), 1)
    compare(x, w, strides, padding)


def test_channels_in_blocks_and_tiles():
    """More channels than one product contracts, and than a tile of sums holds."""
    compare(draw((1, 1, 3, 3, 70), 0), draw((1, 1, 2, 70, 140), 1))


def test_bfloat16_sums_in_float32():
    x, w = draw((1, 3, 6, 6, 30), 0, jnp.bfloat16), draw((1, 3, 3, 30, 6), 1, jnp.bfloat16)
    # Half a unit in the last place of bf16, of the largest value; sums in bf16 would be far off.
    compare(x, w, tolerance=2.0**-8)


def test_weight_gradient_of_many_rows_is_summed_in_parts(monkeypatch):
    monkeypatch.setattr(implicit_gemm, "_SPLIT_ROWS", 64)
    compare(draw((1, 5, 6, 6, 2), 0), draw((1, 2, 2, 2, 3), 1))


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0)])
def test_kernel_or_input_shared_by_the_clients(in_axes):
    clients = [() if axis is None else (3,) for axis in in_axes]
    x, w = draw((*clients[0], 2, 4, 4, 3), 0), draw((*clients[1], 3, 3, 3, 4), 1)
    compare(x, w, (2, 1), in_axes=in_axes)


@functools.cache
def small_cnn():
    """Two convolutions and a linear layer on 8x8 digits."""
    layers = {"conv1": Conv(4, 2, pool=True), "conv2": Conv(5, 2, pool=True), "fc": Dense(10)}
    blocks = tuple(flax_block(name, module) for name, module in layers.items())
    model = BlockModel("small_cnn", blocks, (8, 8, 1), 10)
    sizes = (4, 3, 4)
    return Problem(model, digits(sizes, (8, 8, 1)), fleet(len(sizes)))


def test_whole_local_training_of_a_cnn():
    problem = small_cnn()
    start = problem.model.init(jax.random.key(0))

    def trained(how):
        # A fresh algorithm, so that nothing that was traced with the other lowering is used.
        algorithm = build("fedavg", problem, learning_rate=0.1, batch_size=4, local_steps=2)
        with lowering(how, interpret=True):
            return one_round(algorithm, problem, start, chunk=2)[0]

    ours, expected = trained("implicit"), trained("patches")
    assert_close(ours, expected)
    assert differ(ours, expected), "both took the same way"


def primitives(function, *args):
    """Of a function and of those inside it."""
    found, stack = set(), [jax.make_jaxpr(function)(*args).jaxpr]
    while stack:
        for equation in stack.pop().eqns:
            found.add(equation.primitive.name)
            stack += [v.jaxpr for v in equation.params.values() if hasattr(v, "jaxpr")]
    return found


@pytest.mark.parametrize(
    ("change", "interpret", "taken"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"precision": jax.lax.Precision.HIGHEST}, True, False),
        ({"precision": jax.lax.Precision.DEFAULT}, True, True),
        ({"preferred_element_type": jnp.bfloat16}, True, False),
        ({"dtype": jnp.float16}, True, False),
        ({"shape": (2, 9, 3), "window": (3,), "numbers": ("NWC", "WIO", "NWC")}, True, False),
        ({"rhs_dilation": (2, 2)}, True, False),
        ({"feature_group_count": 3, "channels": 1}, True, False),
        ({"shape": (1, 9, 9, 3), "window": (8, 8)}, True, False),
    ],
)
def test_what_the_kernels_cannot_do_is_left_to_others(change, interpret, taken):
    """The CPU of these tests without the interpreter, precision, dtype, rank, dilation, groups."""
    options = dict(change)
    shape, window = options.pop("shape", (2, 6, 6, 3)), options.pop("window", (3, 3))
    dtype, numbers = options.pop("dtype", jnp.float32), options.pop("numbers", NUMBERS)
    x = draw(shape, 0, dtype)
    w = draw((*window, options.pop("channels", shape[-1]), 3), 1, dtype)

    def run(x, w):
        ones = (1,) * len(window)
        return conv_general_dilated(x, w, ones, "VALID", dimension_numbers=numbers, **options)

    with lowering("implicit", interpret=interpret):
        assert ("pallas_call" in primitives(run, x, w)) == taken


def test_products_in_full_precision_are_left_to_others():
    x, w = draw((2, 6, 6, 3), 0), draw((3, 3, 3, 4), 1)
    with lowering("implicit", interpret=True):
        assert implicit_fits(x, w, None, None)
        with jax.default_matmul_precision("highest"):
            assert not implicit_fits(x, w, None, None)


class Device:
    def __init__(self, compute_capability):
        self.compute_capability = compute_capability


@pytest.mark.parametrize("capability", ["7.5", "gfx942", "9.0"])
def test_devices_that_do_not_run_them(monkeypatch, caplog, capability):
    """An old one, another maker's, and one for which nothing compiles: here there is none."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(capability)])
    lowerings.device_fits.cache_clear()
    assert not lowerings.device_fits()
    assert ("cannot be had" in caplog.text) == (capability == "9.0")
    lowerings.device_fits.cache_clear()


def for_cuda(function, *shapes):
    """The module that a GPU would be given."""
    device = AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


@functools.cache
def triton_can_be_had():
    def double(x_ref, y_ref):
        y_ref[...] = 2.0 * x_ref[...]

    x = jax.ShapeDtypeStruct((16,), jnp.float32)
    call = pl.pallas_call(double, out_shape=x, compiler_params=plt.CompilerParams())
    try:
        return "triton" in for_cuda(call, x)
    except Exception:
        return False


# JAX has announced that Pallas will lose it.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize(
    ("channels", "strides", "dtype"),
    [((32, 64), (1, 1), "float32"), ((24, 200), (2, 2), "bfloat16"), ((3, 5), (1, 2), "float32")],
)
def test_lowers_to_triton_for_clients_side_by_side(channels, strides, dtype):
    """Nothing runs: the kernels are made of what Triton has, in shapes that it takes."""
    if not triton_can_be_had():
        pytest.skip("this jaxlib cannot lower to Triton without a GPU")
    padding = ((1, 1), (0, 1))

    def step(x, w):
        y, pullback = jax.vjp(lambda x, w: implicit_gemm.conv(x, w, strides, padding), x, w)
        return y, pullback(y)

    shapes = ((4, 20, 9, 9, channels[0]), (4, 3, 3, *channels))
    text = for_cuda(jax.vmap(step), *(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes))
    kernels = 2 + strides[0] * strides[1]
    assert text.count("stablehlo.custom_call @__gpu$xla.gpu.triton") == kernels
