"""The lowering "onednn" is the same convolution, alone; elsewhere it is replaced."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, digits, fleet, one_round

from fedjax_het.algorithms import build
from fedjax_het.models import autotune, onednn
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.cnn import Conv
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.lowering import Convolution, lowering
from fedjax_het.models.mlp import Dense
from fedjax_het.problem import Problem

KEPT_FROM = "jax_persistent_cache_min_compile_time_secs"


@pytest.fixture
def library(monkeypatch):
    """Needs the calls; other tests go on keeping their programs."""
    if not onednn.available():
        pytest.skip("the runtime of this platform or version of JAX is not known to have oneDNN")
    before = getattr(jax.config, KEPT_FROM)
    yield
    jax.config.update(KEPT_FROM, before)


def operands(lhs, rhs):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (lhs, rhs)]


def gradients(x, kernel, padding="SAME"):
    """Output and both gradients."""
    spatial = "HWD"[: x.ndim - 2]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    call = functools.partial(
        conv_general_dilated,
        window_strides=(1,) * len(spatial),
        padding=padding,
        dimension_numbers=numbers,
    )
    y, pullback = jax.vjp(call, x, kernel)
    return (y, *pullback(jnp.sin(y)))


def calls(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count("ffi_call[")


@pytest.mark.parametrize(
    ("lhs", "rhs", "padding"),
    [
        ((3, 7, 6, 4), (3, 3, 4, 5), "SAME"),
        ((2, 9, 8, 16), (4, 5, 16, 32), ((1, 0), (2, 3))),
        ((2, 9, 8, 1), (2, 4, 1, 3), "VALID"),
        # The kernel gradient is a convolution up to 14 x 14 and a product above.
        ((2, 14, 14, 8), (5, 5, 8, 7), "SAME"),
        ((2, 15, 14, 8), (5, 5, 8, 7), "SAME"),
        ((4, 21, 3), (4, 3, 6), "SAME"),
        ((4, 210, 3), (4, 3, 6), ((3, 0),)),
        ((2, 4, 5, 6, 3), (2, 3, 2, 3, 4), "SAME"),
        ((2, 6, 7, 6, 3), (2, 3, 2, 3, 4), ((0, 1), (2, 0), (1, 1))),
    ],
)
def test_equals_lax_in_value_and_gradients(library, lhs, rhs, padding):
    x, kernel = operands(lhs, rhs)
    run = functools.partial(gradients, padding=padding)
    with lowering("onednn"):
        assert calls(run, x, kernel) == 3
        found = jax.jit(lambda *a: run(*a))(x, kernel)
    with lowering("lax"):
        expected = jax.jit(lambda *a: run(*a))(x, kernel)
    for value, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, exact, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)])
def test_is_products_under_vmap(library, axes):
    x, kernel = operands((3, 2, 7, 6, 4), (3, 3, 2, 4, 5))
    x, kernel = (a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes))
    batched = jax.vmap(gradients, in_axes=axes)
    with lowering("onednn"):
        assert calls(batched, x, kernel) == 0
        found = jax.jit(batched)(x, kernel)
    with lowering("lax"):
        expected = jax.jit(lambda *a: jax.vmap(gradients, in_axes=axes)(*a))(x, kernel)
    for value, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("lhs", "rhs", "padding", "dtype"),
    [
        ((2, 6, 6, 4), (3, 3, 4, 4), ((3, 0), (0, 0)), "float32"),
        ((2, 6, 6, 4), (3, 3, 4, 4), ((-1, 0), (0, 0)), "float32"),
        ((2, 6, 6, 4), (3, 3, 4, 4), "SAME", "bfloat16"),
        ((2, 6, 6, 4), (1, 1, 4, 4), "SAME", "float32"),
        ((1, 3, 3, 3, 3, 2), (2, 2, 2, 2, 2, 3), "VALID", "float32"),
    ],
)
def test_what_it_cannot_do_is_left_to_others(library, lhs, rhs, padding, dtype):
    x, kernel = (a.astype(dtype) for a in operands(lhs, rhs))
    spatial = "HWDE"[: x.ndim - 2]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")

    def run(x, kernel):
        return conv_general_dilated(
            x, kernel, (1,) * len(spatial), padding, dimension_numbers=numbers
        )

    with lowering("onednn"):
        assert calls(run, x, kernel) == 0
        assert getattr(jax.config, KEPT_FROM) < math.inf


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (onednn.jax, "__version__", "0.13.0"),
        (onednn.jax, "default_backend", lambda: "gpu"),
        (onednn.sys, "platform", "darwin"),
        (onednn.platform, "machine", lambda: "aarch64"),
    ],
)
def test_is_used_only_where_the_calls_are_known(monkeypatch, where, name, value):
    monkeypatch.setattr(where, name, value)
    x, kernel = operands((2, 6, 6, 4), (3, 3, 4, 4))
    assert not onednn.available.__wrapped__()
    monkeypatch.setattr(onednn, "available", onednn.available.__wrapped__)
    assert not onednn.fits(x, kernel, ((1, 1), (1, 1)))


def test_a_measurement_may_choose_it_for_one_client_at_a_time():
    one = Convolution("float32", (4, 6, 6, 3), (3, 3, 3, 4), (1, 1), ((1, 1), (1, 1)))
    able = one._replace(direct=True, onednn=True)
    assert autotune.candidates(able, 1)[-2:] == ("direct", "onednn")
    assert "onednn" not in autotune.candidates(able, 2)
    assert "onednn" not in autotune.candidates(able._replace(onednn=False), 1)
    with_it, without = autotune.key_of(able, 1), autotune.key_of(able._replace(onednn=False), 1)
    assert with_it == f"{without}, onednn"
    assert autotune.key_of(able, 2) == autotune.key_of(able._replace(onednn=False), 2)


def test_cohort_trains_with_it_and_keeps_no_program(library, monkeypatch, tmp_path):
    monkeypatch.setattr(autotune, "file", lambda: tmp_path / "verdicts.json")
    monkeypatch.setattr(autotune, "measure", lambda *_: {"rows": 2.0, "onednn": 1.0})
    blocks = (flax_block("conv", Conv(4, 2, pool=True)), flax_block("fc", Dense(10)))
    model = BlockModel("small_cnn", blocks, (8, 8, 1), 10)
    problem = Problem(model, digits((4, 3), (8, 8, 1)), fleet(2))
    fedavg = build("fedavg", problem, learning_rate=0.1, batch_size=4)
    start = model.init(jax.random.key(0))
    assert getattr(jax.config, KEPT_FROM) < math.inf
    by_table = one_round(fedavg, problem, start, chunk=1)[0]
    assert getattr(jax.config, KEPT_FROM) < math.inf
    measured = one_round(fedavg, problem, start, chunk=1, convolution="tuned")[0]
    assert getattr(jax.config, KEPT_FROM) == math.inf
    assert_close(measured, by_table)
