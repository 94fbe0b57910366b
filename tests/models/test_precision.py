"""bfloat16 inside a model: products in bfloat16, everything that is kept in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.fleet.cost import cost_table
from fedjax_het.models import MODELS, build, from_flax, with_compute_dtype, with_exits
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.norm import BatchNorm, GroupNorm, LayerNorm

KEY = jax.random.key(0)
SHAPES = {"logistic": (5,), "mlp": (5,), "transformer": (6,), "char_lstm": (6,)}
SHAPES |= {"conv1d": (8, 3), "unet": (8, 8, 3)}
# The other depths are the same code.
NAMES = sorted(set(MODELS) - {"resnet", "resnet56", "resnet110", "vgg13", "vgg16"})


def small(name, **options):
    options = {"mlp": {"hidden": (4,)}, "transformer": {"layers": 1}}.get(name, {}) | options
    return build(name, SHAPES.get(name, (32, 32, 3)), 4, **options)


def samples(model, batch=2):
    x = 2.0 * np.random.default_rng(0).normal(size=(batch, *model.input_shape))
    return jnp.asarray(np.abs(x) if model.input_dtype == jnp.int32 else x, model.input_dtype)


def loss(model, params, stats, x, **options):
    variables = model.shapes._replace(params=params, stats=stats)
    logits, stats = model.apply(variables, x, train=True, key=KEY, **options)
    return jnp.sum(jnp.square(logits)), (logits, stats)


def products(jaxpr):
    """Dtypes of the operands of every product inside."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield from (v.aval.dtype.name for v in equation.invars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from products(getattr(inner, "jaxpr", inner))


def traced(model):
    """Jaxpr and results' shapes of loss, logits, statistics and gradients."""
    variables = model.shapes
    step = jax.value_and_grad(lambda *args: loss(model, *args), has_aux=True)
    arguments = (variables.params, variables.stats, samples(model))
    return jax.make_jaxpr(step, return_shape=True)(*arguments)


@pytest.mark.parametrize("name", NAMES)
def test_products_are_bfloat16_and_what_is_kept_float32(name):
    norm = {"norm": "batch"} if name.startswith(("resnet", "vgg", "conv1d", "unet")) else {}
    model = small(name, compute_dtype="bfloat16", **norm)
    jaxpr, results = traced(model)
    assert set(products(jaxpr.jaxpr)) == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(results)} == {"float32"}


def test_float32_has_no_trace_of_it():
    jaxpr, _ = traced(small("mlp"))
    assert "bf16" not in str(jaxpr)


class Layer(nn.Module):
    """Linear layer and both norms."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(8)(x)
        return nn.relu(GroupNorm(2)(BatchNorm()(x, train=train)))


def layered(dtype):
    blocks = (
        flax_block("one", Layer(), traced_train=True),
        flax_block("two", Layer()),
        flax_block("three", nn.Dense(3)),
    )
    model = with_exits(BlockModel("layered", blocks, (5,), 3))
    return with_compute_dtype(model, dtype)


def test_values_are_those_of_float32_up_to_rounding():
    start = layered("float32").init(KEY)
    x = samples(layered("float32"), 6)

    def everything(dtype):
        step = jax.value_and_grad(lambda p: loss(layered(dtype), p, start.stats, x), has_aux=True)
        (value, aux), grads = jax.jit(step)(start.params)
        return jax.tree.leaves((value, aux)), jax.tree.leaves(grads)

    for ours, exact in zip(everything("bfloat16"), everything("float32")):
        assert all(a.dtype == b.dtype == jnp.float32 for a, b in zip(ours, exact))
        a, b = (jnp.concatenate([leaf.ravel() for leaf in leaves]) for leaves in (ours, exact))
        assert 1e-4 < float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 0.05


def rounded(a):
    """Whether every value is one that bfloat16 has."""
    return bool(jnp.all(a == a.astype(jnp.bfloat16).astype(jnp.float32)))


def test_statistics_are_those_of_float32_sums():
    model = layered("bfloat16")
    start, x = model.init(KEY), samples(model, 6)
    _, stats = model.apply(start, x, train=True)
    assert not any(rounded(leaf) for leaf in jax.tree.leaves(stats))
    kernel = start.params["blocks"][0]["Dense_0"]["kernel"]
    hidden = jnp.matmul(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)).astype(jnp.float32)
    expected = 0.1 * jnp.mean(hidden, 0)
    mean = stats["blocks"][0]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-7)


def test_halves_of_a_split_are_the_whole():
    """What leaves a half is float32, which holds a bfloat16 exactly."""
    model = layered("bfloat16")
    start, x = model.init(KEY), samples(model, 4)
    whole, _ = model.apply(start, x, train=True)
    z, _ = model.forward_to(start, x, 0, train=True)
    assert z.dtype == jnp.float32
    assert rounded(z)
    halves, _ = model.forward_from(start, z, 0, train=True)
    np.testing.assert_array_equal(halves, whole)
    seen = []

    def visit(b, z):
        seen.append(z.dtype.name)
        return z

    walked, _ = model.walk(start, x, visit, train=True)
    np.testing.assert_array_equal(walked, whole)
    assert seen == ["float32"] * 3
    every, _ = model.apply_exits(start, x, train=True)
    np.testing.assert_allclose(every[-1], whole, rtol=1e-6)
    early = model.apply_exit(start, z, 0)
    assert early.dtype == every.dtype == jnp.float32
    np.testing.assert_allclose(early, every[0], rtol=1e-6)


def test_layer_norm_is_that_of_flax():
    x = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, (2, 4, 6)), jnp.float32)
    start = nn.LayerNorm().init(KEY, x)
    assert jax.tree.structure(LayerNorm().init(KEY, x)) == jax.tree.structure(start)
    start = jax.tree.map(lambda a: a + 0.3, start)
    expected = nn.LayerNorm().apply(start, x)
    np.testing.assert_allclose(LayerNorm().apply(start, x), expected, rtol=1e-5, atol=1e-5)


def test_prices_do_not_change():
    plain, mixed = (
        cost_table(small("adel_cnn2", compute_dtype=d)) for d in ("float32", "bfloat16")
    )
    for name, column in vars(plain).items():
        np.testing.assert_array_equal(getattr(mixed, name), column)


class Own(nn.Module):
    """A user's network with a layer that fixes its dtype."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        x = nn.Dense(6, dtype=jnp.float32, name="exact")(x.reshape(x.shape[0], -1))
        return nn.Dense(3, name="head")(nn.relu(x))


def test_flax_module_of_a_user():
    model = with_compute_dtype(from_flax(Own(), (6, 6, 1), 3), "bfloat16")
    jaxpr, results = traced(model)
    assert set(products(jaxpr.jaxpr)) == {"bfloat16", "float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(results)} == {"float32"}


class Recurrent(nn.Module):
    """Sums over time, in float32 whatever the input."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)

        def add(total, row):
            return total + row, None

        return jax.lax.scan(add, jnp.zeros((x.shape[0], 4)), jnp.moveaxis(x, 1, 0))[0]


class Remembering(nn.Module):
    """Keeps a running mean in the dtype of its input."""

    @nn.compact
    def __call__(self, x, *, train):
        seen = self.variable("batch_stats", "seen", jnp.zeros, (x.shape[-1],))
        if train:
            seen.value = jnp.mean(x, 0)
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (Recurrent(), (5, 3), "block 'block': cannot compute in bfloat16 \\(.*; use"),
        (Remembering(), (5,), "statistics \\['bfloat16'\\]: .* must stay \\['float32'\\]; use"),
    ],
)
def test_block_that_cannot_is_named(module, shape, words):
    model = BlockModel("own", (flax_block("block", module),), shape, 3)
    with pytest.raises(ValueError, match=words):
        with_compute_dtype(model, "bfloat16")


def test_exit_heads_are_held_to_it_as_well():
    blocks = tuple(flax_block(name, nn.Dense(3)) for name in "ab")
    model = BlockModel("own", blocks, (5, 3), 3, exits=(flax_block("head", Recurrent()),))
    with pytest.raises(ValueError, match=r"block .head.: cannot compute"):
        with_compute_dtype(model, "bfloat16")


def test_flax_norms_need_promotion():
    """They mix float32 statistics with their input: refused where promotion is strict only."""
    block = flax_block("norm", nn.Sequential([nn.Dense(3), nn.LayerNorm()]))
    model = BlockModel("own", (block,), (5,), 3)
    with pytest.raises(ValueError, match="promotion"):
        with_compute_dtype(model, "bfloat16")
    with jax.numpy_dtype_promotion("standard"):
        assert set(products(traced(with_compute_dtype(model, "bfloat16"))[0].jaxpr)) == {"bfloat16"}
