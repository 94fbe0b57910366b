"""What freezing, leaving early, splitting and choosing the mode do, on small models."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.models import MODELS, build
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block, flax_block
from fedjax_het.models.exits import with_exits
from fedjax_het.models.norm import BatchNorm

KEY = jax.random.key(7)
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)


class Layer(nn.Module):
    """Linear layer, batch norm, dropout."""

    features: int = 6

    @nn.compact
    def __call__(self, x, *, train):
        x = BatchNorm()(nn.Dense(self.features)(x), train=train)
        return nn.Dropout(0.5, deterministic=isinstance(train, bool) and not train)(nn.relu(x))


class Noisy(nn.Module):
    """Dropout without running statistics."""

    features: int = 6

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(self.features)(x))


# Sorted by name the blocks would run in another order.
NAMES = ("z", "10", "9", "a")


def small(policy="mean", traced=False):
    modules = (Layer(), Noisy(), Layer(), nn.Dense(3))
    blocks = tuple(
        flax_block(name, module, traced_train=traced and isinstance(module, Layer))
        for name, module in zip(NAMES, modules)
    )
    return with_exits(BlockModel("small", blocks, (5,), 3, stats_policy=policy))


@pytest.fixture(scope="module")
def variables():
    start = small().init(KEY)
    # Statistics other than 0 and 1, so that using and updating them shows.
    return start._replace(stats=jax.tree.map(lambda a: 1.5 * a - 0.25, start.stats))


def test_shapes_are_those_of_fresh_variables_and_found_once(variables):
    model = small()
    assert jax.tree.map(lambda a: (a.shape, a.dtype), model.shapes) == jax.tree.map(
        lambda a: (a.shape, a.dtype), variables
    )
    assert model.shapes is model.shapes
    # A copy with other fields has shapes of its own.
    assert dataclasses.replace(model, exits=()).shapes.params["exits"] == ()


def same(a, b, **tolerance):
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-6}
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def identical(a, b):
    same(a, b, rtol=0, atol=0)


def grads_of(model, variables, **options):
    @jax.jit
    def run(variables):
        def loss(params):
            logits, stats = model.apply(variables._replace(params=params), X, train=True, **options)
            return jnp.sum(jnp.square(logits)), (logits, stats)

        return jax.grad(loss, has_aux=True)(variables.params)

    grads, (logits, stats) = run(variables)
    return grads, logits, stats


def total(tree):
    return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))


def test_blocks_run_in_the_given_order(variables):
    model = small()
    by_hand = X
    for block, params, stats in zip(
        model.blocks, variables.params["blocks"], variables.stats["blocks"]
    ):
        by_hand = block.apply(params, stats, by_hand, train=False, key=None)[0]
    same(model.apply(variables, X)[0], by_hand)
    assert [p["Dense_0"]["kernel"].shape for p in variables.params["blocks"][:3]] == [
        (5, 6),
        (6, 6),
        (6, 6),
    ]


def test_exits_do_not_change_the_blocks():
    model = small()
    bare = BlockModel("bare", model.blocks, (5,), 3)
    identical(bare.init(KEY).params["blocks"], model.init(KEY).params["blocks"])
    assert bare.init(KEY).params["exits"] == ()
    assert len(model.init(KEY).params["exits"]) == 3


def test_block_init_depends_on_its_index_only():
    blocks = small().blocks
    other = BlockModel("other", (flax_block("wide", nn.Dense(6)), *blocks[1:]), (5,), 3)
    identical(other.init(KEY).params["blocks"][1:], small().init(KEY).params["blocks"][1:])


def test_init_may_be_traced():
    same(jax.jit(small().init)(KEY), small().init(KEY))


@pytest.mark.parametrize("train", [False, True])
def test_exits_of_one_pass_equal_exits_one_by_one(variables, train):
    model, key = small(), jax.random.key(1)
    together, stats = model.apply_exits(variables, X, train=train, key=key)
    assert together.shape == (4, 4, 3)
    for b in range(4):
        alone, stats_b = model.apply(variables, X, train=train, key=key, exit=b)
        same(together[b], alone)
        same(stats["blocks"][: b + 1], stats_b["blocks"][: b + 1])
        identical(stats_b["blocks"][b + 1 :], variables.stats["blocks"][b + 1 :])


def test_only_the_blocks_of_the_chosen_exits_run(variables):
    model, how = small(), {"train": True, "key": jax.random.key(1)}
    some, stats = model.apply_exits(variables, X, exits=(0, 2), **how)
    assert some.shape == (2, 4, 3)
    for found, exit in zip(some, (0, 2), strict=True):
        alone, stats_of_exit = model.apply(variables, X, exit=exit, **how)
        same(found, alone)
    same(stats, stats_of_exit)
    identical(stats["blocks"][3:], variables.stats["blocks"][3:])
    run = jax.make_jaxpr(lambda v: model.apply_exits(v, X, exits=(0,))[0])(variables)
    assert str(run).count("dot_general") < str(
        jax.make_jaxpr(lambda v: model.apply_exits(v, X, exits=(0, 3))[0])(variables)
    ).count("dot_general")


@pytest.mark.parametrize("boundary", [0, 1, 2])
def test_split_equals_whole_in_training_with_dropout(variables, boundary):
    model, key = small(), jax.random.key(1)
    options = {"train": True, "key": key}
    whole, stats = model.apply(variables, X, **options)
    z, below = model.forward_to(variables, X, boundary, **options)
    logits, above = model.forward_from(variables, z, boundary, **options)
    same(logits, whole)
    cut = boundary + 1
    same(stats["blocks"], below["blocks"][:cut] + above["blocks"][cut:])
    identical(below["blocks"][cut:], variables.stats["blocks"][cut:])
    identical(above["blocks"][:cut], variables.stats["blocks"][:cut])
    early = model.apply(variables, X, exit=boundary, **options)[0]
    same(model.apply_exit(variables, z, boundary, **options), early)


def test_split_equals_whole_with_convolutions():
    model = build("leaf_cnn", (8, 8, 1), 7, hidden=16)
    variables = model.init(KEY)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 1)), jnp.float32)

    @jax.jit
    def cut(variables, x):
        z = model.forward_to(variables, x, 1)[0]
        return model.apply(variables, x)[0], model.forward_from(variables, z, 1)[0]

    np.testing.assert_allclose(*cut(variables, x), rtol=1e-5, atol=1e-5)


SHAPES = {"logistic": (4,), "mlp": (4, 2), "leaf_cnn": (28, 28, 1), "adel_cnn2": (28, 28, 1)}
SHAPES |= {"transformer": (16,), "char_lstm": (16,), "conv1d": (16, 3), "unet": (8, 8, 3)}
# Models of sequences and of images predict at every position.
POSITIONS = {"transformer": (16,), "char_lstm": (16,), "unet": (8, 8)}


# The other residual networks are the code of ResNet-20, only slower to trace.
@pytest.mark.parametrize("name", sorted(set(MODELS) - {"resnet", "resnet56", "resnet110"}))
def test_every_model_may_be_cut_anywhere(name):
    input_shape = SHAPES.get(name, (32, 32, 3))
    options = {"granularity": "module"} if name.startswith("resnet") else {}
    model = with_exits(build(name, input_shape, 7, **options))
    variables = model.shapes
    x = jax.ShapeDtypeStruct((2, *input_shape), model.input_dtype)
    output = (2, *POSITIONS.get(name, ()), 7)

    def cut(variables, x):
        whole, last = model.apply(variables, x)[0], model.num_blocks - 1
        logits = [whole]
        for boundary in sorted({0, last // 2, last - 1} & set(range(last))):
            z = model.forward_to(variables, x, boundary)[0]
            logits.append(model.forward_from(variables, z, boundary)[0])
        return logits, model.apply_exits(variables, x)[0]

    logits, exits = jax.eval_shape(cut, variables, x)
    assert {(a.shape, a.dtype) for a in logits} == {(output, jnp.dtype("float32"))}
    assert exits.shape == (model.num_blocks, *output)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_frozen_blocks_get_no_gradient_and_keep_their_statistics(variables, first):
    grads, _, stats = grads_of(small(), variables, first=first, key=jax.random.key(1))
    for b in range(4):
        assert (total(grads["blocks"][b]) == 0.0) == (b < first)
    identical(stats["blocks"][:first], variables.stats["blocks"][:first])
    if first <= 2:
        assert total(jax.tree.map(jnp.subtract, stats, variables.stats)) > 0


def test_heads_before_the_first_block_pass_no_gradient_into_frozen_blocks(variables):
    def loss(params):
        logits = small().apply_exits(variables._replace(params=params), X, first=2)[0]
        return jnp.sum(jnp.square(logits))

    grads = jax.grad(loss)(variables.params)
    assert [total(g) == 0.0 for g in grads["blocks"]] == [True, True, False, False]
    assert all(total(g) > 0 for g in grads["exits"])


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_freezing_by_route_equals_freezing_by_mask(variables, first, traced):
    model, key = small(traced=traced), jax.random.key(1)
    if traced:
        # With a traced mode dropout cannot be switched per client, so compare without it.
        blocks = [flax_block(b.name, m, traced_train=True) for b, m in zip(model.blocks, PLAIN)]
        model = BlockModel("plain", (*blocks, model.blocks[3]), (5,), 3)
        variables = model.init(KEY)
    live = jnp.arange(4) >= first
    by_route = grads_of(model, variables, key=key, first=first)
    by_mask = grads_of(model, variables, key=key, live=live)
    same(by_route[1:], by_mask[1:])
    for b in range(first, 4):
        same(by_route[0]["blocks"][b], by_mask[0]["blocks"][b])


class Plain(nn.Module):
    """Linear layer and batch norm."""

    @nn.compact
    def __call__(self, x, *, train):
        return BatchNorm()(nn.Dense(6)(x), train=train)


PLAIN = (Plain(), Plain(), Plain())


@pytest.mark.parametrize("traced", [False, True])
def test_live_chooses_the_mode_block_by_block_and_client_by_client(traced):
    blocks = [flax_block(f"b{i}", m, traced_train=traced) for i, m in enumerate(PLAIN)]
    model = BlockModel("plain", (*blocks, flax_block("head", nn.Dense(3))), (5,), 3)
    variables = model.init(KEY)
    live = jnp.array([[True, False, True, True], [False, False, False, True]])

    @jax.jit
    @jax.vmap
    def run(live):
        return model.apply(variables, X, train=True, live=live)

    logits, stats = run(live)
    for row in range(2):
        z = X
        for b, block in enumerate(model.blocks):
            params, old = variables.params["blocks"][b], variables.stats["blocks"][b]
            z, new = block.apply(params, old, z, train=bool(live[row, b]), key=None)
            same(jax.tree.map(lambda a, row=row: a[row], stats["blocks"][b]), new)
        same(logits[row], z)


def test_live_is_not_consulted_in_evaluation(variables):
    model = small()
    logits, stats = model.apply(variables, X, live=jnp.zeros(4, bool))
    identical(logits, model.apply(variables, X)[0])
    identical(stats, variables.stats)


def test_frozen_statistics_are_used_and_never_updated(variables):
    model, key = small("frozen"), jax.random.key(1)
    logits, stats = model.apply(variables, X, train=True, key=key)
    identical(stats, variables.stats)
    dead = small().apply(variables, X, train=True, key=key, live=jnp.zeros(4, bool))[0]
    same(logits, dead)


def test_trains_under_jit_grad_and_vmap(variables):
    model = small()

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def step(variables, x, key):
        def loss(params):
            logits, stats = model.apply(variables._replace(params=params), x, train=True, key=key)
            return jnp.mean(jnp.square(logits)), stats

        return jax.grad(loss, has_aux=True)(variables.params)

    keys = jax.random.split(KEY, 3)
    grads, stats = step(variables, jnp.stack([X, X, -X]), keys)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves((grads, stats["blocks"])))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))


def test_models_are_static_arguments(variables):
    model = small()
    run = jax.jit(lambda model, v, x: model.apply(v, x)[0], static_argnums=0)
    same(run(model, variables, X), model.apply(variables, X)[0])
    assert len({model, model, small()}) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, v: m.apply(v, X[:, :4]), r"x = float32\[4, 4\].*float32\[batch, 5\]"),
        (lambda m, v: m.apply(v, X.astype(jnp.int32)), "int32"),
        (lambda m, v: m.apply(v, X, exit=4), "exit = 4.*0..3"),
        (lambda m, v: m.apply(v, X, first=4), "first = 4.*0..3"),
        (lambda m, v: m.forward_to(v, X, 3), "block = 3.*0..2"),
        (lambda m, v: m.apply(v, X, train=True), "'z' draws random numbers.*key"),
        (
            lambda m, v: m.apply(v._replace(params={**v.params, "blocks": ({},) * 4}), X),
            "parameters of block 'z'.*init",
        ),
        (
            lambda m, v: BlockModel("bare", m.blocks, (5,), 3).apply(v, X, exit=1),
            "exit = 1.*with_exits",
        ),
        (lambda m, v: BlockModel("none", (), (5,), 3), "no blocks"),
        (lambda m, v: small("sometimes"), "stats_policy = 'sometimes'"),
        (lambda m, v: BlockModel("one", m.blocks, (5,), 3, m.exits[:1]), "1 exit heads.*first 3"),
        (
            lambda m, v: BlockModel("bn", m.blocks, (5,), 3, m.blocks[:3]).init(KEY),
            "running statistics",
        ),
    ],
)
def test_bad_input_names_value_and_remedy(variables, call, message):
    with pytest.raises(ValueError, match=message):
        call(small(), variables)


def test_blocks_keep_no_other_collections():
    class Cache(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("cache", "seen", jnp.zeros, ())
            return nn.Dense(2)(x)

    with pytest.raises(ValueError, match="cache"):
        flax_block("memory", Cache()).init(KEY, X)


def test_blocks_need_no_flax():
    def init(key, x):
        return {"w": jax.random.normal(key, (x.shape[-1], 3))}, {}

    def apply(params, stats, x, *, train, key):
        return x @ params["w"], stats

    model = BlockModel("by_hand", (Block("only", init, apply),), (5,), 3)
    assert model.apply(model.init(KEY), X)[0].shape == (4, 3)
    assert with_exits(model).exits == ()
