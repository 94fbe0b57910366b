"""Sub-networks by width compute what a network built at that width computes."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models.layouts import SMALL, layout_of, of_chain, small_heterofl, small_mlp, small_resnet

from fedjax_het.contract.widths import Layout, live, put, take
from fedjax_het.fleet.cost import cost_table
from fedjax_het.models.adapt import from_flax
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.cnn import heterofl_cnn
from fedjax_het.models.exits import with_exits
from fedjax_het.models.frozen import freeze
from fedjax_het.models.lowering import lowering
from fedjax_het.models.mlp import mlp
from fedjax_het.models.narrow import sub_network
from fedjax_het.models.norm import GroupNorm
from fedjax_het.models.precision import with_compute_dtype

KEY = jax.random.key(3)
BATCH_NORM = {
    "mlp_batch": functools.partial(small_mlp, norm="batch"),
    "mlp_group": functools.partial(small_mlp, norm="group"),
    "resnet_batch": functools.partial(small_resnet, norm="batch"),
    "heterofl_batch": functools.partial(small_heterofl, norm="batch"),
}
ALL = {**SMALL, **BATCH_NORM}
# Seconds of compilation.
LARGE = ("resnet", "resnet_batch", "unet", "vgg")
MOST = [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in ALL]
# XLA's gradient of bias, group norm, ReLU and max pooling is wrong for 6 and 12 channels on a CPU.
COMPLETE = ("heterofl_cnn", "vgg")


def setting(name):
    model, sizes, rules = ALL[name]()
    layout = layout_of(model, sizes, rules)
    variables = model.init(KEY)

    def moved(leaf):
        # Norms and statistics are not those of the start; variances stay positive.
        noise = jax.random.uniform(jax.random.key(leaf.size), leaf.shape, minval=-0.2, maxval=0.2)
        return leaf + noise

    return model, layout, jax.jit(lambda v: jax.tree.map(moved, v))(variables)


def samples(model, batch=3):
    like = model.input_shapes(batch)
    if like.dtype == jnp.int32:
        return jax.random.randint(KEY, like.shape, 0, model.num_classes)
    return jax.random.normal(KEY, like.shape)


def share(sizes, numerator, denominator):
    return {g: max(1, numerator * n // denominator) for g, n in sizes.items()}


def close(a, b, rtol=1e-3):
    def one(a, b):
        # Some gradients are zero but for rounding: of keys' biases, of biases before a batch norm.
        atol = 1e-5 + rtol * float(jnp.max(jnp.abs(b)))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)

    jax.tree.map(one, a, b)


def trained(model, variables, x, train=True):
    """Outputs, statistics and gradient."""

    def loss(params):
        y, stats = model.apply(variables._replace(params=params), x, train=train, key=KEY)
        return jnp.sum(jnp.sin(y)), (y, stats)

    return jax.grad(loss, has_aux=True)(variables.params)


@pytest.mark.parametrize("name", ALL)
def test_a_native_sub_network_is_the_network_built_at_its_width(name):
    model, layout, variables = setting(name)
    half = share(layout.sizes, 1, 2)
    sub, built = sub_network(model, layout, half), ALL[name](2)[0]
    assert jax.tree.map(lambda a: a.shape, sub.shapes) == jax.tree.map(
        lambda a: a.shape, built.shapes
    )
    assert sub.activation_shapes(2) == built.activation_shapes(2)
    held, x = take(layout, half, variables, None), samples(model)
    # The same operations on the same values.
    programs = [
        str(jax.make_jaxpr(lambda v, m=m: m.apply(v, x, train=True, key=KEY))(held))
        for m in (sub, built)
    ]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("name", ALL)
def test_at_full_width_it_is_the_model(name):
    model, layout, variables = setting(name)
    sub, x = sub_network(model, layout, layout.sizes), samples(model)
    jax.tree.map(np.testing.assert_array_equal, model.init(KEY), sub.init(KEY))
    programs = [
        str(jax.make_jaxpr(lambda v, m=m: m.apply(v, x, train=True, key=KEY))(variables))
        for m in (sub, model)
    ]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("name", MOST)
def test_zeros_behind_the_live_units_change_nothing(name):
    model, layout, variables = setting(name)
    level = layout.sizes if name in COMPLETE else share(layout.sizes, 3, 4)
    few, x = share(layout.sizes, 3, 8), samples(model)
    orders = {
        group: jax.random.permutation(jax.random.key(i), size).astype(jnp.int32)
        for i, (group, size) in enumerate(layout.sizes.items())
    }
    held = take(layout, few, variables, orders)
    inside = live(layout, level, few)
    padded = jax.tree.map(
        lambda a, m: jnp.where(jnp.broadcast_to(m, a.shape), a, 0.0),
        take(layout, level, variables, orders),
        inside,
    )

    def native(scale):
        return trained(sub_network(model, layout, few, scale=scale), held, x)

    def traced(padded, few, scale):
        net = sub_network(model, layout, level, live=few, scale=scale)
        return trained(net, padded, x)

    # The recurrent matrix of an LSTM cannot be scaled.
    scale = 1.0 if name == "lstm" else 1.5
    grad, (y, stats) = jax.jit(functools.partial(native, scale))()
    runs = [jax.jit(functools.partial(traced, scale=scale))(padded, few)]
    if name in ("mlp_group", "transformer"):
        runs.append(jax.jit(functools.partial(traced, few=few, scale=scale))(padded))
    for grad_, (y_, stats_) in runs:
        close(y_, y)
        within = Layout(level, layout.axes)
        inner = take(within, few, variables._replace(params=grad_, stats=stats_), None)
        close(inner, variables._replace(params=grad, stats=stats))


def test_live_units_differ_between_the_clients_of_a_program():
    model, layout, variables = setting("transformer")
    x = samples(model)
    counts = [share(layout.sizes, n, 8) for n in (3, 4, 8)]

    def padded(few):
        tree = jax.tree.map(
            lambda a, m: jnp.where(jnp.broadcast_to(m, a.shape), a, 0.0),
            variables,
            live(layout, layout.sizes, few),
        )
        return sub_network(model, layout, layout.sizes, live=few).apply(tree, x)[0]

    many = {g: jnp.asarray([each[g] for each in counts], jnp.int32) for g in layout.sizes}
    found = jax.jit(jax.vmap(padded))(many)
    for few, y in zip(counts, found):
        net = sub_network(model, layout, few)
        close(y, jax.jit(net.apply)(take(layout, few, variables, None), x)[0])


@pytest.mark.parametrize("name", ["heterofl_cnn", "mlp_batch", "transformer"])
def test_bfloat16(name):
    model, layout, variables = setting(name)
    model = with_compute_dtype(model, "bfloat16")
    few, x = share(layout.sizes, 1, 2), samples(model)
    held, zeros = (
        take(layout, few, variables, None),
        put(layout, few, take(layout, few, variables, None), None),
    )
    nets = [
        (sub_network(model, layout, few, scale=2.0), held),
        (sub_network(model, layout, layout.sizes, live=few, scale=jnp.float32(2.0)), zeros),
    ]
    a, b = (jax.jit(lambda v, m=m: m.apply(v, x, train=True))(v)[0] for m, v in nets)
    assert a.dtype == b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=0.1, atol=0.1)


def test_hidden_layers_cost_the_product_of_the_shares():
    model = mlp((8,), 4, hidden=(16, 16, 16))
    rules = {
        **of_chain(0, [("Dense_0", "")], None, ["a"]),
        **of_chain(1, [("Dense_0", "")], "a", ["b"]),
        **of_chain(2, [("Dense_0", "")], "b", ["c"]),
        **of_chain(3, [("Dense_0", "")], "c", [None]),
    }
    layout = layout_of(model, {"a": 16, "b": 16, "c": 16}, rules)
    full = cost_table(model)
    cut = cost_table(sub_network(model, layout, {"a": 4, "b": 8, "c": 16}))
    shares = np.asarray([1 / 4, 1 / 4 * 1 / 2, 1 / 2, 1.0])
    np.testing.assert_array_equal(cut.forward_flops, shares * full.forward_flops)
    np.testing.assert_array_equal(cut.weight_grad_flops, shares * full.weight_grad_flops)
    np.testing.assert_array_equal(cut.input_grad_flops[1:], (shares * full.input_grad_flops)[1:])
    np.testing.assert_array_equal(cut.activation_bytes, [16, 32, 64, 16])


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_parameters_of_the_levels_of_heterofl(norm):
    model = heterofl_cnn(norm=norm)
    rules, before = {}, None
    for i in range(4):
        name = f"Normalize_0.{norm}_norm"
        rules |= of_chain(i, [("Conv_0", name)], before, [f"c{i}"])
        before = f"c{i}"
    sizes = dict(zip(("c0", "c1", "c2", "c3"), (64, 128, 256, 512)))
    layout = layout_of(model, sizes, {**rules, r"blocks\.4\.kernel": ("c3", None)})

    def size(rate):
        counts = {g: math.ceil(rate * n) for g, n in sizes.items()}
        leaves = jax.tree.leaves(sub_network(model, layout, counts).shapes.params)
        return sum(math.prod(leaf.shape) for leaf in leaves)

    rates = (1, 0.5, 0.25, 0.125, 0.0625)
    assert [size(rate) for rate in rates] == [1_556_874, 391_370, 98_922, 25_274, 6_594]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ["mlp", "leaf"])
def test_a_scaler_multiplies_the_outputs_of_hidden_layers_in_training(name, train):
    model, layout, variables = setting(name)
    x = samples(model)
    plain, scaled = model, sub_network(model, layout, layout.sizes, scale=2.0)
    # ReLU passes a positive factor on, and biases are scaled too.
    first = plain.forward_to(variables, x, 0)[0]
    found = scaled.forward_to(variables, x, 0, train=train)[0]
    np.testing.assert_array_equal(found, 2.0 * first if train else first)
    last = model.num_blocks - 1
    z = plain.forward_to(variables, x, last - 1)[0]
    ends = [m.forward_from(variables, z, last - 1, train=train)[0] for m in (plain, scaled)]
    np.testing.assert_array_equal(*ends)


def test_a_scaler_follows_the_mode_of_each_client():
    model, layout, variables = setting("heterofl_batch")
    x = samples(model)
    net = sub_network(model, layout, layout.sizes, scale=2.0)

    def both(net):
        return jax.jit(lambda on: net.apply(variables, x, train=True, live=on)[1])

    on = jnp.asarray([True, False, False])
    scaled, plain = (both(m)(on)["blocks"] for m in (net, model))
    old = variables.stats["blocks"]
    mean = [tree[0]["Normalize_0"]["batch_norm"]["mean"] for tree in (scaled, plain, old)]
    close(mean[0] - 0.9 * mean[2], 2.0 * (mean[1] - 0.9 * mean[2]))
    jax.tree.map(np.testing.assert_array_equal, scaled[1], old[1])


def test_exit_heads_are_narrow():
    model, sizes, rules = small_mlp()
    model = with_exits(model)
    layout = layout_of(model, sizes, rules)
    half, variables = share(sizes, 1, 2), model.init(KEY)
    sub, built = sub_network(model, layout, half), with_exits(small_mlp(2)[0])
    held, x = take(layout, half, variables, None), samples(model)
    np.testing.assert_array_equal(sub.apply_exits(held, x)[0], built.apply_exits(held, x)[0])
    assert cost_table(sub).exit_param_count.tolist() == [15, 27, 0]


class Attention(nn.Module):
    """Layers of flax itself: vectors, attention, norms, a channel-wise convolution."""

    groups: int = 2

    @nn.compact
    def __call__(self, x, train):
        x = nn.Embed(7, 8, name="embed")(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attend")(nn.LayerNorm(name="before")(x))
        x = nn.Conv(8, (3,), feature_group_count=8, name="each")(nn.RMSNorm(name="root")(x))
        x = nn.GroupNorm(self.groups, name="group")(nn.DenseGeneral((8,), name="general")(x))
        return nn.Dense(3, name="out")(jnp.mean(x, 1))


def attention(groups=2):
    model = from_flax(Attention(groups), (5,), input_dtype=jnp.int32)
    rules = {
        r".*\.embed\.embedding": (None, "s"),
        r".*\.attend\.(query|key)\.kernel": ("s", None, "d"),
        r".*\.attend\.(query|key)\.bias": (None, "d"),
        r".*\.attend\.value\.kernel": ("s", None, "v"),
        r".*\.attend\.value\.bias": (None, "v"),
        r".*\.attend\.out\.kernel": (None, "v", "s"),
        r".*\.(attend\.out|each)\.bias": ("s",),
        r".*\.each\.kernel": (None, "s"),
        r".*\.general\.kernel": ("s", "g"),
        r".*\.general\.bias": ("g",),
        r".*\.(before|root)\..*": ("s",),
        r".*\.group\..*": ("g",),
        r".*\.out\.kernel": ("g", None),
    }
    # The kernel of attention's "out" has three axes; that of the last layer has two.
    rules = dict(sorted(rules.items(), key=lambda rule: "attend" not in rule[0]))
    return model, layout_of(model, {"s": 8, "d": 4, "v": 4, "g": 8}, rules)


def test_layers_of_flax():
    model, layout = attention()
    variables, x = model.init(KEY), jax.random.randint(KEY, (3, 5), 0, 7)
    few, level = {"s": 5, "d": 1, "v": 2, "g": 4}, {"s": 6, "d": 3, "v": 4, "g": 6}
    held = take(layout, few, variables, None)
    native = jax.jit(lambda v: trained(sub_network(model, layout, few), v, x))(held)
    tree = take(layout, level, put(layout, few, held, None), None)
    padded = jax.jit(lambda v, n: trained(sub_network(model, layout, level, live=n), v, x))
    grad, (y, _) = padded(tree, few)
    close(y, native[1][0])
    inner = take(Layout(level, layout.axes), few, variables._replace(params=grad), None)
    close(inner.params, native[0])


class Nnx(nnx.Module):
    """Convolution, norm and linear layers of nnx."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 6, rngs=rngs), nnx.Linear(6, 5, rngs=rngs)])
        self.layer_norm = nnx.LayerNorm(6, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.relu(self.layer_norm(self.layers[0](jnp.mean(x, (1, 2)))))
        return self.layers[1](x)


def test_layers_of_nnx():
    model = from_flax(Nnx, (4, 4, 1))
    rules = {
        r".*\.conv\.kernel": ("a",),
        r".*\.(conv|norm)\..*": ("a",),
        r".*\.layers\.0\.kernel": ("a", "b"),
        r".*\.(layers\.0|layer_norm)\..*": ("b",),
        r".*\.layers\.1\.kernel": ("b", None),
    }
    layout = layout_of(model, {"a": 8, "b": 6}, rules)
    variables, x = model.init(KEY), samples(model)
    few, level = {"a": 3, "b": 2}, {"a": 5, "b": 4}
    held = take(layout, few, variables, None)

    def plain(v):
        parts = {name: tree for block in v.params["blocks"] for name, tree in block.items()}
        layers = {i: t for b in v.params["blocks"] for i, t in b.get("layers", {}).items()}
        z = 2.0 * jax.lax.conv_general_dilated(
            x, parts["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean, var = jnp.mean(z, (0, 1, 2), keepdims=True), jnp.var(z, (0, 1, 2), keepdims=True)
        z = jnp.mean(jax.nn.relu((z - mean) / jnp.sqrt(var + 1e-5)), (1, 2))
        z = 2.0 * (z @ layers["0"]["kernel"])
        mean, var = jnp.mean(z, -1, keepdims=True), jnp.var(z, -1, keepdims=True)
        return jax.nn.relu((z - mean) / jnp.sqrt(var + 1e-6)) @ layers["1"]["kernel"]

    with lowering("lax"):
        expected = jax.jit(plain)(held)
        native = sub_network(model, layout, few, scale=2.0)
        close(jax.jit(lambda v: native.apply(v, x, train=True)[0])(held), expected)
        tree = take(layout, level, put(layout, few, held, None), None)
        padded = sub_network(model, layout, level, live=few, scale=2.0)
        close(jax.jit(lambda v: padded.apply(v, x, train=True)[0])(tree), expected)


class Fixed(nn.Module):
    """A module that reads a width from its attribute."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(self.width, name="in")(x)
        return nn.Dense(3, name="out")(y.reshape(-1, 2, self.width // 2).reshape(-1, self.width))


class Adapted(Fixed):
    def at_width(self, lengths):
        return {"width": sum(lengths("in", "kernel")[1])}


class Custom(nn.Module):
    """Layers that `layer` makes, between two linear ones."""

    layer: object

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="out")(self.layer(nn.Dense(8, name="in")(x)))


def custom(module, **rules):
    model = BlockModel("user", (flax_block("only", module),), (4,), 3)
    found = {
        r"blocks\.0\.in\.kernel": (None, "a"),
        r"blocks\.0\.in\.bias": ("a",),
        r"blocks\.0\.out\.kernel": ("a", None),
        **{rf"blocks\.0\.layer\.{name}": axes for name, axes in rules.items()},
    }
    return model, layout_of(model, {"a": 8}, found)


def run(model, layout, counts, **options):
    net = sub_network(model, layout, counts, **options)
    return net.apply(take(layout, counts, model.init(KEY), None), samples(model), train=True)[0]


def test_a_module_of_a_user_says_its_width():
    model, layout = custom(Adapted())
    built = BlockModel("user", (flax_block("only", Adapted(6)),), (4,), 3)
    held = take(layout, {"a": 6}, model.init(KEY), None)
    expected = built.apply(held, samples(model), train=True)[0]
    np.testing.assert_array_equal(run(model, layout, {"a": 6}), expected)


NORM = {"scale": ("a",), "bias": ("a",)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(*custom(Fixed()), {"a": 6}), "block 'only' cannot run.*at_width"),
        (
            lambda: run(*custom(Custom(nn.GroupNorm(4)), **NORM), {"a": 6}),
            "block 'only', layer 'layer'.*6 channels.*4 groups",
        ),
        (
            lambda: run(*custom(Custom(GroupNorm(4)), **NORM), {"a": 8}, live={"a": 6}),
            "block 'only', layer 'layer'.*6 channels.*4 groups",
        ),
        (
            lambda: run(
                *custom(Custom(nn.LayerNorm(use_scale=False, use_bias=False))),
                {"a": 8},
                live={"a": 6},
            ),
            "block 'only', layer 'layer'.*no parameter of every channel",
        ),
        (
            lambda: run(
                *custom(Custom(nn.GroupNorm(None, group_size=2)), **NORM), {"a": 8}, live={"a": 6}
            ),
            "block 'only', layer 'layer'.*several widths",
        ),
        (
            lambda: run(
                *custom(Custom(nn.Einsum((8, 8), "ab,bc->ac")), kernel=("a", "a"), bias=("a",)),
                {"a": 6},
            ),
            "block 'only', layer 'layer' .Einsum.*at_width",
        ),
        (
            lambda: run(*setting("lstm")[:2], share(setting("lstm")[1].sizes, 1, 2), scale=2.0),
            "block 'lstm1'.*Lstm.*'states'.*scaler",
        ),
        (lambda: run(*setting("mlp")[:2], {"a": 8}), r"counts of the groups \['a'\]"),
        (lambda: run(*setting("mlp")[:2], {"a": 8, "b": 0}), r"counts\['b'\] = 0.*1..16"),
        (
            lambda: run(*setting("mlp")[:2], {"a": 8, "b": 16}, live={"a": 9, "b": 1}),
            r"live\['a'\] = 9.*1..8",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_parameters_of_another_width_are_refused():
    model, layout, variables = setting("mlp")
    net = sub_network(model, layout, share(layout.sizes, 1, 2))
    with pytest.raises(ValueError, match=r"block 'fc1' cannot run.*shape"):
        net.apply(variables, samples(model))


def test_a_model_with_constant_values_has_no_sub_networks():
    model, layout, variables = setting("mlp")
    small = freeze(model, variables, "kernel")
    with pytest.raises(ValueError, match="take its sub-networks before freeze"):
        sub_network(small, layout, layout.sizes)
