"""Groups of hidden units: where they lie, that their units take each other's places; refusals."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_het.common.errors import InputError
from fedjax_het.contract.widths import Axes, Span, size_of, take
from fedjax_het.models import build, freeze, from_flax, lora
from fedjax_het.models.norm import GroupNorm
from fedjax_het.models.saving import leaf_paths
from fedjax_het.models.units import layout_of

IMAGE = (8, 8, 3)
SMALL_TRANSFORMER = {"layers": 2, "width": 8, "heads": 2, "hidden": 12}


def spans_of(model):
    """The spans of every tensor by name, e.g. `blocks/0/Dense_0/kernel`."""
    axes = leaf_paths(layout_of(model).axes)
    return {"/".join(path[path[0] == "params" :]): each.spans for path, each in axes.items()}


def samples(model, rng):
    shape = model.input_shapes(3)
    if jnp.issubdtype(shape.dtype, jnp.integer):
        return jnp.asarray(rng.integers(0, model.num_classes, shape.shape), shape.dtype)
    return jnp.asarray(rng.normal(size=shape.shape), shape.dtype)


def outputs(model, variables, x):
    return model.apply_exits(variables, x)[0] if model.exits else model.apply(variables, x)[0]


def random_variables(model, rng):
    """Variables all of whose values differ; scales and variances are positive."""

    def values(shape):
        draws = rng.uniform(0.5, 1.5, shape.shape)
        if len(shape.shape) > 1:
            draws = rng.normal(size=shape.shape) / math.sqrt(math.prod(shape.shape[:-1]))
        return jnp.asarray(draws, shape.dtype)

    return jax.tree.map(values, model.shapes)


def check_interchangeable(model):
    """The spans cover the tensors, and outputs stay when the units of all groups are reordered."""
    layout, rng = layout_of(model), np.random.default_rng(0)
    variables, x = random_variables(model, rng), samples(model, rng)
    jax.tree.map(
        lambda axes, leaf: (
            [size_of(spans, layout.sizes) for spans in axes.spans] == list(leaf.shape)
            or pytest.fail(f"{axes} of {leaf.shape}")
        ),
        layout.axes,
        variables,
    )
    run = jax.jit(functools.partial(outputs, model))
    before = np.asarray(run(variables, x))
    assert np.std(before) > 1e-3
    names = {
        span.group for axes in jax.tree.leaves(layout.axes) for axis in axes.spans for span in axis
    }
    assert names - {None} == set(layout.sizes)
    orders = {
        group: jnp.asarray(rng.permutation(size), jnp.int32) for group, size in layout.sizes.items()
    }
    moved = jax.jit(functools.partial(take, layout, layout.sizes))(variables, orders)
    after = np.asarray(run(moved, x))
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4 * np.std(before))


BUILT = {
    "mlp": lambda: build("mlp", (8,), 3, hidden=(5, 4)),
    "mlp batch": lambda: build("mlp", (8,), 3, hidden=(5, 4), norm="batch", dropout=0.1),
    "leaf_cnn": lambda: build("leaf_cnn", (28, 28, 1), 10, hidden=32),
    "pfl_cnn": lambda: build("pfl_cnn", (12, 12, 3), 4),
    "cifar_cnn": lambda: build("cifar_cnn", (12, 12, 3), 4),
    "adel_cnn2": lambda: build("adel_cnn2", (28, 28, 1), 10),
    "vgg11": lambda: build("vgg11", (32, 32, 3), 4, width=0.1, norm="none", hidden=(20,)),
    "vgg13 batch": lambda: build("vgg13", (32, 32, 3), 4, width=0.1, norm="batch"),
    "resnet20": lambda: build("resnet20", IMAGE, 4, width=4, norm="batch"),
    "resnet20 module": lambda: build(
        "resnet20", IMAGE, 4, width=4, norm="none", granularity="module"
    ),
    "bottleneck": lambda: build(
        "resnet", IMAGE, 4, units_per_group=1, bottleneck=True, width=4, norm="batch"
    ),
    "conv1d": lambda: build("conv1d", (16, 9), 6, channels=(4, 8), norm="batch", dropout=0.5),
    "char_lstm": lambda: build("char_lstm", (5,), 7, units=4),
    "char_lstm last": lambda: build("char_lstm", (5,), 7, units=4, layers=1, predict="last"),
    "transformer": lambda: build("transformer", (6,), 7, **SMALL_TRANSFORMER),
    "unet": lambda: build("unet", (8, 8, 3), 2, width=4, norm="batch"),
    "mlp exits": lambda: build("mlp", (8,), 3, hidden=(5, 4), exits=True),
    "leaf_cnn exits": lambda: build("leaf_cnn", (28, 28, 1), 10, hidden=32, exits=True),
    "transformer shared exit": lambda: build(
        "transformer", (6,), 7, exits="shared", **SMALL_TRANSFORMER
    ),
    "unet exits": lambda: build("unet", (8, 8, 3), 2, width=4, norm="none", exits=True),
    "bfloat16": lambda: build("mlp", (8,), 3, hidden=(5, 4), compute_dtype="bfloat16"),
}


@pytest.mark.parametrize("name", [name for name in BUILT if name != "bfloat16"])
def test_units_of_built_in_models_take_each_others_places(name):
    check_interchangeable(BUILT[name]())


def test_sizes_and_spans_of_an_image_network():
    model = BUILT["leaf_cnn"]()
    conv1, conv2, fc1 = (f"{name}/bias" for name in ("conv1/Conv_0", "conv2/Conv_0", "fc1/Dense_0"))
    assert layout_of(model).sizes == {conv1: 32, conv2: 64, fc1: 32}
    spans = spans_of(model)
    window = (Span(None, 5),)
    assert spans["blocks/0/Conv_0/kernel"] == (window, window, (Span(None, 1),), (Span(conv1),))
    assert spans["blocks/1/Conv_0/kernel"] == (window, window, (Span(conv1),), (Span(conv2),))
    assert spans["blocks/2/Dense_0/kernel"] == ((Span(conv2, outer=49),), (Span(fc1),))
    assert spans["blocks/3/Dense_0/kernel"] == ((Span(fc1),), (Span(None, 10),))
    assert spans["blocks/3/Dense_0/bias"] == ((Span(None, 10),),)


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_norms_do_not_change_the_groups(norm):
    model = build("vgg11", (32, 32, 3), 4, width=0.1, norm=norm)
    assert list(layout_of(model).sizes.values()) == [6, 13, 26, 26, 51, 51, 51, 51]
    spans = spans_of(model)
    norms = {name: each for name, each in spans.items() if f"{norm}_norm" in name}
    assert len(norms) == {"group": 16, "batch": 32, "none": 0}[norm]
    assert all(each[0][0].group is not None for each in norms.values())


@pytest.mark.parametrize("granularity", ["unit", "module"])
def test_a_residual_stage_shares_one_group(granularity):
    model = build("resnet20", IMAGE, 4, width=4, norm="batch", granularity=granularity)
    sizes = layout_of(model).sizes
    # One shared group a stage, and one inside each of its three units.
    assert sorted(sizes.values()) == [4] * 4 + [8] * 4 + [16] * 4
    spans = spans_of(model)
    read = {
        name: each[2][0].group
        for name, each in spans.items()
        if name.endswith("ConvNorm_0/Conv_0/kernel") and name.count("/") > 2
    }
    stem = "stem/ConvNorm_0/Conv_0/kernel"
    assert list(read.values()).count(stem) == 4  # units 1 to 3, and the first of the next stage
    assert len(set(read.values())) == 4  # samples and three stages
    [shortcut] = [
        each for name, each in spans.items() if "shortcut/Conv" in name and each[2][0].group == stem
    ]
    assert shortcut[3][0].group in read.values()


def test_a_bottleneck_has_two_groups_inside():
    sizes = layout_of(BUILT["bottleneck"]()).sizes
    # Stem and three stages, four times as wide; twice two planes at every width.
    assert sorted(sizes.values()) == sorted([4, 16, 32, 64] + 4 * [4, 8, 16])


def test_gates_of_a_recurrence_are_one_unit():
    spans = spans_of(BUILT["char_lstm"]())
    vector, first = "embedding/symbol", "lstm1/inputs/bias"
    assert spans["blocks/0/symbol"] == ((Span(None, 7),), (Span(vector),))
    assert spans["blocks/1/inputs/kernel"] == ((Span(vector),), (Span(first, outer=4),))
    assert spans["blocks/1/states"] == ((Span(first),), (Span(first, outer=4),))
    assert spans["blocks/2/inputs/kernel"][0] == (Span(first),)


def test_attention_has_groups_within_its_heads():
    model = BUILT["transformer"]()
    layout, spans = layout_of(model), spans_of(model)
    width = "embedding/position"
    inside = ["expand", "key", "value"]
    groups = {f"encoder{i}/{name}/bias": 4 for i in (1, 2) for name in inside}
    groups |= {f"encoder{i}/expand/bias": 12 for i in (1, 2)}
    assert layout.sizes == {width: 8, **groups}
    assert spans["blocks/0/position"] == ((Span(None, 6),), (Span(width),))
    for name, group in [("query", "key"), ("key", "key"), ("value", "value")]:
        expected = ((Span(width),), (Span(f"encoder1/{group}/bias", outer=2),))
        assert spans[f"blocks/1/{name}/kernel"] == expected
    assert spans["blocks/1/out/kernel"] == ((Span("encoder1/value/bias", 2),), (Span(width),))
    assert spans["blocks/3/Dense_0/kernel"] == ((Span(width),), (Span(None, 7),))


def test_a_concatenation_gives_several_spans():
    spans = spans_of(BUILT["unet"]())
    below, kept = "middle/Twice_0/Conv_1/kernel", "down2/Twice_0/Conv_1/kernel"
    assert spans["blocks/3/Twice_0/Conv_0/kernel"][2] == (Span(below), Span(kept))


def test_exit_heads_read_units_and_keep_their_classes():
    layout = layout_of(BUILT["mlp exits"]())
    assert layout.sizes == layout_of(BUILT["mlp"]()).sizes
    spans = spans_of(BUILT["mlp exits"]())
    assert spans["exits/1/Dense_0/kernel"] == ((Span("fc2/Dense_0/bias"),), (Span(None, 3),))


def test_the_dtype_of_the_computation_does_not_matter():
    assert layout_of(BUILT["bfloat16"]()).sizes == layout_of(BUILT["mlp"]()).sizes


def test_a_layout_has_the_structure_of_the_variables_and_is_found_once():
    model = BUILT["mlp batch"]()
    layout = layout_of(model)
    assert jax.tree.structure(layout.axes) == jax.tree.structure(model.shapes)
    assert all(isinstance(leaf, Axes) for leaf in jax.tree.leaves(layout.axes))
    assert layout_of(model) is layout


class Images(nn.Module):
    """Layers of flax with a norm of each kind, and its own pooling."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(6, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.LayerNorm(use_bias=False)(nn.Conv(4, (3, 3), strides=2, use_bias=False)(x))
        x = nn.ConvTranspose(5, (2, 2), (2, 2))(nn.gelu(x))
        x = nn.pool(nn.RMSNorm()(x), 0.0, jax.lax.add, (2, 2), (2, 2), "VALID")
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(3)(nn.silu(nn.Dense(7)(x)))


class Gated(nn.Module):
    """A residual stream that sees the positions; gates, and halves that are treated differently."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 6)(tokens) + self.param("place", nn.initializers.normal(), (5, 6))[None]
        a, b = jnp.split(nn.Dense(8)(x), 2, axis=-1)
        x = x + nn.Dense(6)(a * nn.sigmoid(b))
        y = nn.Dense(10)(x)
        y = jnp.concatenate([nn.relu(y[..., :5]), jnp.tanh(y[..., 5:])], axis=-1)
        return nn.Dense(11)(jnp.concatenate([y, x], axis=-1))


class Recurrent(nn.Module):
    """A recurrent layer of flax, which scans."""

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.OptimizedLSTMCell(6))(x)
        return nn.Dense(3)(nn.RNN(nn.GRUCell(4))(x)[:, -1])


class Padded(nn.Module):
    """A shortcut that pads the channels with zeros."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        y = nn.Conv(7, (3, 3))(x)
        y = nn.relu(y + jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, 3)]))
        return nn.Dense(3)(jnp.mean(y, (1, 2)))


class Heads(nn.Module):
    """Attention with kernels that have an axis of heads, and a class token."""

    @nn.compact
    def __call__(self, x):
        token = self.param("token", nn.initializers.normal(), (1, 1, 6))
        x = nn.Dense(6)(x)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 6)), x], axis=1)
        q, k, v = (nn.DenseGeneral((2, 4), name=name)(x) for name in "qkv")
        share = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k), axis=-1)
        y = jnp.einsum("bhts,bshd->bthd", share, v)
        return nn.Dense(3)(x[:, 0] + nn.DenseGeneral(6, axis=(-2, -1))(y)[:, 0])


def user(module, shape, dtype=jnp.float32, **options):
    return from_flax([module], shape, input_dtype=dtype, **options)


def test_groups_of_a_users_linen_network():
    model = from_flax(Images(), IMAGE)
    assert model.num_blocks > 1
    assert sorted(layout_of(model).sizes.values()) == [4, 5, 6, 7]
    check_interchangeable(model)


def test_halves_that_are_treated_differently_are_different_groups():
    model = user(Gated(), (5,), jnp.int32)
    layout = layout_of(model)
    # Gates and their values are one unit.
    assert sorted(layout.sizes.values()) == [4, 5, 5, 6]
    [gates] = [each for name, each in spans_of(model).items() if "Dense_0/kernel" in name]
    assert gates[1][0].outer == 2
    [halves] = [each for name, each in spans_of(model).items() if "Dense_2/bias" in name]
    assert len(halves[0]) == 2
    assert halves[0][1].group == f"{halves[0][0].group}:2"
    check_interchangeable(model)


@pytest.mark.parametrize(
    ("module", "shape", "sizes"),
    [(Recurrent(), (5, 3), [4, 6]), (Padded(), IMAGE, [4]), (Heads(), (5, 3), [2, 4, 4, 6])],
    ids=lambda value: type(value).__name__,
)
def test_groups_of_other_networks(module, shape, sizes):
    model = user(module, shape)
    assert sorted(layout_of(model).sizes.values()) == sizes
    check_interchangeable(model)


class Whole(nnx.Module):
    """A network of nnx with a norm of each kind."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.batch = nnx.BatchNorm(6, rngs=rngs)
        self.conv2 = nnx.Conv(6, 4, (3, 3), rngs=rngs)
        self.layer = nnx.LayerNorm(4, rngs=rngs)
        self.hidden = nnx.Linear(4, 5, rngs=rngs)
        self.rms = nnx.RMSNorm(5, use_scale=False, rngs=rngs)
        self.out = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.batch(self.conv(x)))
        x = jnp.mean(nnx.relu(self.layer(self.conv2(x))), (1, 2))
        return self.out(nnx.relu(self.rms(self.hidden(x))))


class Nested(nnx.Module):
    """Its norms are no direct submodules of the network."""

    def __init__(self, rngs):
        self.inner = Whole(rngs)

    def __call__(self, x):
        return self.inner(x)


@pytest.mark.parametrize("kind", [Whole, Nested])
def test_groups_of_a_users_nnx_network(kind):
    model = from_flax(lambda rngs: kind(rngs), IMAGE)
    assert sorted(layout_of(model).sizes.values()) == [4, 5, 6]
    check_interchangeable(model)


def test_group_norms_of_flax_count_as_elementwise():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for norm in (nn.GroupNorm(2), nn.InstanceNorm(), GroupNorm(2)):
                x = nn.relu(norm(nn.Conv(4, (3, 3))(x)))
            return nn.Dense(3)(jnp.mean(x, (1, 2)))

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.norm = nnx.GroupNorm(4, 2, rngs=rngs)
            self.out = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.out(jnp.mean(self.norm(self.conv(x)), (1, 2)))

    assert list(layout_of(from_flax(Net(), IMAGE)).sizes.values()) == [4, 4, 4]
    assert list(layout_of(from_flax(lambda rngs: Nnx(rngs), IMAGE)).sizes.values()) == [4]


def between(function, hidden=6):
    """A network that runs a function on hidden units `[batch, hidden]`."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="after")(function(nn.Dense(hidden, name="before")(x)))

    return user(Net(), (4,), name="net")


def conv_between(function):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = function(nn.Conv(4, (3, 3))(x))
            return nn.Dense(3)(jnp.mean(x, (1, 2)))

    return user(Net(), IMAGE, name="net")


@pytest.mark.parametrize(
    "function",
    [
        jax.checkpoint(jnp.sin),
        lambda x: jax.lax.cond(jnp.ones(()) > 0, jnp.tanh, lambda x: jnp.zeros_like(x), x),
        lambda x: jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) + x, jnp.zeros_like(x)),
        lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, x))[1],
        lambda x: jax.lax.dynamic_slice(jnp.stack([x, 2 * x], 1), (0, 1, 0), (len(x), 1, 6))[:, 0],
        lambda x: jnp.unstack(jnp.stack([x, jnp.cos(x)], 1), axis=1)[1],
        lambda x: jax.lax.dynamic_update_slice(jnp.ones_like(x), x[:1], (0, 0)),
        lambda x: jnp.take(jnp.stack([x, 2 * x], 1), jnp.asarray([1, 0]), axis=1)[:, 0],
        lambda x: jnp.sort(jnp.stack([x, 2 * x], 1), axis=1)[:, 0] + jnp.cumsum(x, axis=0),
        lambda x: jnp.max(jnp.flip(jnp.stack([x, 2 * x], 1), 1), axis=1),
        lambda x: jnp.where(x > 0, jnp.repeat(x, 2, axis=-1)[..., ::2], jnp.tile(x, 2)[..., :6]),
        lambda x: nn.relu(jnp.flip(jnp.flip(x, -1), -1)).T.T,
        lambda x: jnp.expand_dims(x, 1).reshape(-1, 1, 6)[:, 0] * jnp.clip(x, -1.0, 1.0),
    ],
)
def test_operations_that_leave_units_apart(function):
    model = between(function)
    assert list(layout_of(model).sizes.values()) == [6]
    check_interchangeable(model)


@pytest.mark.parametrize(
    ("model", "operation", "reason"),
    [
        (
            lambda: conv_between(lambda x: nn.Conv(8, (3, 3), feature_group_count=2)(x)),
            "conv_general_dilated",
            "groups of channels",
        ),
        (lambda: between(nn.softmax), "reduce_max", "mixes"),
        (lambda: between(lambda x: x / jnp.sum(x, -1, keepdims=True)), "reduce_sum", "mixes"),
        (lambda: between(functools.partial(jnp.cumsum, axis=-1)), "cumsum", "mixes"),
        (lambda: between(lambda x: x + jnp.cumsum(x, axis=-1)), "cumsum", "mixes"),
        (lambda: between(functools.partial(jnp.sort, axis=-1)), "sort", "mixes"),
        (lambda: between(lambda x: jax.lax.top_k(x, 2)[0]), "top_k", "mixes"),
        (
            lambda: between(lambda x: jnp.einsum("bi,bj->bij", x, x).reshape(len(x), -1)),
            "reshape",
            "merges two axes",
        ),
        (
            lambda: between(lambda x: nn.max_pool(x[..., None], (2,), (2,))[..., 0]),
            "reduce_window_max",
            "mixes",
        ),
        (
            # A shortcut around the operation does not hide it.
            lambda: between(lambda x: x + nn.max_pool(x[..., None], (3,), padding="SAME")[..., 0]),
            "reduce_window_max",
            "mixes",
        ),
        (lambda: between(lambda x: jnp.fft.rfft(x).real), "fft", "mixes"),
    ],
)
def test_operations_that_mix_units_are_refused_by_name(model, operation, reason):
    model = model()
    with pytest.raises(InputError, match=reason) as error:
        layout_of(model)
    assert f"operation {operation!r} in block 'Net_0' of model 'net'" in str(error.value)


def test_layers_of_attention_of_flax_are_refused_by_name():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8)(x)
            return nn.Dense(3)(nn.MultiHeadDotProductAttention(2)(x, x))

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.attend = nnx.MultiHeadAttention(2, 4, 4, decode=False, rngs=rngs)
            self.out = nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.out(self.attend(x))

    with pytest.raises(InputError, match=r"MultiHeadDotProductAttention in block 'Net_0'.*'Net'"):
        layout_of(user(Net(), (5, 4), name="Net"))
    with pytest.raises(InputError, match="MultiHeadAttention in block 'Nnx_0' of model 'Nnx'"):
        layout_of(from_flax([lambda rngs: Nnx(rngs)], (5, 4), name="Nnx"))


def test_softmax_over_classes_is_no_reason_to_refuse():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.log_softmax(nn.Dense(3)(nn.relu(nn.Dense(6)(x))))

    assert list(layout_of(user(Net(), (4,))).sizes.values()) == [6]


def test_units_that_meet_foreign_values_are_fixed():
    positions = np.arange(6, dtype=np.float32)[None]
    with pytest.raises(InputError, match="no hidden units"):
        layout_of(between(lambda x: x + jnp.broadcast_to(positions, x.shape)))
    # A constant that is equal everywhere leaves the units as they are.
    level = np.ones((1, 6), np.float32)
    equal = between(lambda x: x + jnp.broadcast_to(level, x.shape))
    assert list(layout_of(equal).sizes.values()) == [6]


def test_units_in_an_order_that_spans_cannot_say_are_refused():
    def mirrored(x):
        return jnp.concatenate([x, x[..., ::-1]], axis=-1)

    with pytest.raises(InputError, match=r"tensor '.*kernel' of block 'Net_0'.*order"):
        layout_of(between(mirrored))


def test_models_without_hidden_units_are_refused():
    with pytest.raises(InputError, match="'logistic': has no hidden units"):
        layout_of(build("logistic", (8,), 3))


def test_models_with_constant_values_are_refused():
    model = build("mlp", (8,), 3, hidden=(5, 4))
    variables = model.init(jax.random.key(0))
    for smaller in (freeze(model, variables, r"blocks\.[12]"), lora(model, variables, rank=2)):
        with pytest.raises(InputError, match=r"has constant values already; .*model\.origin"):
            layout_of(smaller)


def test_parameters_that_no_output_needs_are_fixed():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            nn.Dense(7, name="idle")(x)
            return nn.Dense(3)(nn.relu(nn.Dense(6)(x)))

    model = user(Net(), (4,))
    assert list(layout_of(model).sizes.values()) == [6]
    assert spans_of(model)["blocks/0/idle/kernel"] == ((Span(None, 4),), (Span(None, 7),))
