"""A user's own flax network runs, is cut and is trained as it was written."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.fleet.cost import cost_table
from fedjax_het.fleet.flops import contraction_flops
from fedjax_het.models.adapt import from_flax
from fedjax_het.models.exits import with_exits
from fedjax_het.models.lowering import lowering
from fedjax_het.models.norm import BatchNorm

KEY = jax.random.key(3)
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 1)), jnp.float32)


class Compact(nn.Module):
    """Everything in one function; sorted by name its layers would be in another order."""

    @nn.compact
    def __call__(self, x, training):
        x = nn.relu(nn.Conv(4, (3, 3), name="zebra")(x))
        x = BatchNorm(name="middle")(x, train=training)
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(3, (3, 3), name="ant")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(0.5, deterministic=not training)(x)
        return nn.Dense(5, name="head")(x)


ORDER = ["zebra", "middle", "ant", "head"]


class Shortcut(nn.Module):
    """Submodules made in `setup`, with a connection around two of them."""

    def setup(self):
        self.a = nn.Conv(4, (3, 3))
        self.b = nn.Conv(4, (3, 3))
        self.c = nn.Conv(4, (3, 3))
        self.d = nn.Dense(6)
        self.e = nn.Dense(5)

    def __call__(self, x):
        x = nn.relu(self.a(x))
        x = nn.relu(x + self.c(nn.relu(self.b(x))))
        return self.e(nn.relu(self.d(jnp.mean(x, (1, 2)))))


class Tied(nn.Module):
    """One layer used twice, and one without parameters used everywhere."""

    @nn.compact
    def __call__(self, x):
        layer, drop = nn.Dense(4, name="twice"), nn.Dropout(0.5, deterministic=True)
        x = drop(nn.Dense(4, name="before")(x.reshape(x.shape[0], -1)))
        x = nn.Dense(4, name="between")(nn.relu(layer(x)))
        return nn.Dense(5, name="after")(drop(layer(x)))


@pytest.fixture(scope="module")
def compact():
    model = from_flax(Compact(), (6, 6, 1), 5)
    variables = model.init(KEY)
    return model, variables._replace(stats=jax.tree.map(lambda a: a + 0.5, variables.stats))


def whole(variables):
    """The variables as the module itself would hold them."""
    merged: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for params, stats in zip(variables.params["blocks"], variables.stats["blocks"]):
        merged["params"].update(params)
        merged["batch_stats"].update(stats)
    return merged


def close(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), a, b)


def test_blocks_are_the_submodules_in_the_order_of_their_calls(compact):
    model, variables = compact
    assert [block.name for block in model.blocks] == ORDER
    assert [list(p) for p in variables.params["blocks"]] == [[name] for name in ORDER]
    layers = from_flax(nn.Sequential([nn.Dense(3) for _ in range(11)]), (2,), 3)
    assert [b.name for b in layers.blocks] == [f"layers_{i}" for i in range(11)]


def test_runs_as_written(compact):
    model, variables = compact
    close(model.apply(variables, X)[0], Compact().apply(whole(variables), X, False))


def test_updates_statistics_as_written(compact):
    model, variables = compact
    stats = model.apply(variables, X, train=True, key=KEY)[1]
    dropout = {"dropout": KEY}
    _, expected = Compact().apply(whole(variables), X, True, rngs=dropout, mutable=["batch_stats"])
    close(stats["blocks"][1], expected["batch_stats"])


def test_may_be_cut_frozen_and_left_early(compact):
    model, variables = compact
    logits = model.apply(variables, X)[0]
    for boundary in range(3):
        z = model.forward_to(variables, X, boundary)[0]
        close(model.forward_from(variables, z, boundary)[0], logits)

    def loss(params):
        variant = variables._replace(params=params)
        return jnp.sum(model.apply(variant, X, train=True, key=KEY, first=2)[0] ** 2)

    grads = jax.jit(jax.grad(loss))(variables.params)["blocks"]
    frozen = [all(bool(jnp.all(g == 0)) for g in jax.tree.leaves(block)) for block in grads]
    assert frozen == [True, True, False, False]

    early = with_exits(model)
    left = jax.eval_shape(lambda key: early.apply(early.init(key), X, exit=1)[0], KEY)
    assert left.shape == (4, 5)


def test_trains_with_the_fast_convolution_under_jit_grad_and_vmap(compact):
    model, variables = compact
    x = jnp.stack([X, 2.0 * X])

    def loss(params, x):
        return jnp.mean(model.apply(variables._replace(params=params), x)[0] ** 2)

    def reference(params, x):
        tree = whole(variables._replace(params=params))
        return jnp.mean(Compact().apply(tree, x, False) ** 2)

    grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))
    assert "conv_general_dilated" not in str(jax.make_jaxpr(grads)(variables.params, x))
    slow = jax.vmap(jax.grad(reference), in_axes=(None, 0))
    close(*jax.jit(lambda *a: (grads(*a), slow(*a)))(variables.params, x))


def test_a_lowering_of_ones_own_is_kept():
    own = functools.partial(jax.lax.conv_general_dilated)
    layer = nn.Conv(4, (3, 3), conv_general_dilated=own)
    model = from_flax(
        [layer, nn.Sequential([lambda x: jnp.mean(x, (1, 2)), nn.Dense(5)])], (6, 6, 1), 5
    )
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x)[0])(model.init(KEY), X)
    assert "conv_general_dilated" in str(program)
    assert nn.Conv(4, (3, 3)).conv_general_dilated is None


def test_a_sequence_gives_a_block_a_module():
    head = nn.Sequential([lambda x: jnp.mean(x, (1, 2)), nn.Dense(5)])
    model = from_flax([Plain(), Plain(), head], (6, 6, 1), 5, name="mine", stats_policy="frozen")
    assert (model.name, model.num_blocks, model.stats_policy) == ("mine", 3, "frozen")
    variables = model.init(KEY)
    assert [sorted(p) for p in variables.params["blocks"]] == [["layer"], ["layer"], ["layers_1"]]
    with lowering("lax"):
        z = Plain().apply({"params": variables.params["blocks"][0]}, X, deterministic=True)
    close(model.forward_to(variables, X, 0)[0], z)
    # Told to be random by `deterministic=False`.
    with pytest.raises(ValueError, match="key"):
        model.apply(variables, X, train=True)


class Plain(nn.Module):
    """Dropout by the keyword `deterministic`."""

    @nn.compact
    def __call__(self, x, deterministic):
        x = nn.Conv(3, (3, 3), name="layer")(x)
        return nn.Dropout(0.5, deterministic=deterministic)(x)


@pytest.mark.parametrize(
    ("module", "names"),
    [(Shortcut(), ["a+b+c", "d", "e"]), (Tied(), ["before", "twice+between", "after"])],
    ids=["shortcut", "tied"],
)
def test_submodules_that_cannot_be_parted_share_a_block(module, names):
    model = from_flax(module, (6, 6, 1), 5)
    assert [block.name for block in model.blocks] == names
    variables = model.init(KEY)

    @jax.jit
    def both(variables):
        merged = {"params": whole(variables)["params"]}
        return model.apply(variables, X)[0], module.apply(merged, X)

    close(*both(variables))


def test_a_module_without_submodules_is_one_block():
    model = from_flax(nn.Dense(5), (3,), 5)
    assert [b.name for b in model.blocks] == ["Dense"]
    assert set(jax.eval_shape(model.init, KEY).params["blocks"][0]) == {"kernel", "bias"}


def test_parts_are_priced_like_any_other_block():
    table = cost_table(from_flax(Compact(), (6, 6, 1), 5))
    assert table.forward_flops.tolist() == [2 * 36 * 9 * 4, 0, 2 * 9 * 36 * 3, 2 * 27 * 5]
    assert table.weight_grad_flops.tolist() == table.forward_flops.tolist()


class Own(nn.Module):
    """A parameter outside of any submodule."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5)(x.reshape(x.shape[0], -1))
        return x * self.param("temperature", nn.initializers.ones, ())


class Moody(nn.Module):
    """Calls other submodules in training."""

    @nn.compact
    def __call__(self, x, train):
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(5)(nn.Dense(5)(x) if train else x)


def lambda_layer(function):
    return nn.Sequential([function])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Own(), "'temperature'.*submodule"),
        (Moody(), "called in training.*Dense_1"),
        ([nn.Dense(4)], r"\[3, 6, 6, 4\].*\[3, ..., 5\].*leave it out"),
        ([lambda_layer(lambda x: jnp.mean(x, (1, 2, 3)))], r"\[3\].*keep a last axis"),
        ([lambda_layer(lambda x: (x, x))], r"\(\[3, 6, 6, 1\], .*one array"),
        ([], "empty sequence"),
        (jnp.tanh, "must be a flax module.*rngs"),
        ([nn.Dense(5), nn.relu], "must be a flax module"),
    ],
)
def test_bad_input_names_value_and_remedy(module, message):
    with pytest.raises(ValueError, match=message):
        from_flax(module, (6, 6, 1), 5)


class Recurrent(nn.Module):
    """Cells in compact style: their parameters stand beside the recurrent layers."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 3)(tokens)
        x = nn.RNN(nn.OptimizedLSTMCell(4))(x)
        x = nn.Bidirectional(nn.RNN(nn.GRUCell(2)), nn.RNN(nn.GRUCell(2)))(nn.tanh(x))
        return nn.Dense(5)(x)


def test_recurrent_cells_belong_to_the_layer_that_calls_them():
    model = from_flax(Recurrent(), (3,), input_dtype=jnp.int32)
    assert [b.name for b in model.blocks] == ["Embed_0", "RNN_0", "Bidirectional_0", "Dense_0"]
    assert model.num_classes == 5
    variables = jax.jit(model.init)(KEY)
    assert sorted(variables.params["blocks"][2]) == ["GRUCell_0", "GRUCell_1"]
    tokens = jnp.asarray([[0, 1, 2], [6, 5, 4]], jnp.int32)

    @jax.jit
    def cut(variables):
        z = model.forward_to(variables, tokens, 1)[0]
        return model.forward_from(variables, z, 1)[0]

    outputs = jax.jit(lambda v: model.apply(v, tokens)[0])(variables)
    assert outputs.shape == (2, 3, 5)
    expected = jax.jit(Recurrent().apply)(whole(variables), tokens)
    np.testing.assert_array_equal(outputs, expected)
    close(cut(variables), expected)
    # Four gates of inputs and states, at every of three positions.
    z = model.activation_shapes(1)[0]
    run = functools.partial(model.blocks[1].apply, stats={}, train=False, key=None)
    flops = contraction_flops(lambda p, x: run(p, x=x), model.shapes.params["blocks"][1], z)
    assert flops == 3 * 2 * (3 * 16 + 4 * 16)


class Masked(nn.Module):
    """Mean over the tokens that a mask keeps."""

    @nn.compact
    def __call__(self, x):
        keep = x["mask"][..., None].astype(jnp.float32)
        vectors = nn.Dense(4)(nn.Embed(7, 3)(x["tokens"]))
        mean = jnp.sum(vectors * keep, 1) / jnp.maximum(jnp.sum(keep, 1), 1.0)
        return nn.Dense(2)(nn.relu(mean))


def test_samples_may_be_dictionaries():
    dtypes = {"tokens": jnp.int32, "mask": jnp.bool_}
    model = from_flax(Masked(), {"tokens": (6,), "mask": [6]}, input_dtype=dtypes)
    # The mask passes around the first two layers.
    assert [b.name for b in model.blocks] == ["Embed_0+Dense_0", "Dense_1"]
    x = {"tokens": jnp.ones((3, 6), jnp.int32), "mask": jnp.arange(18).reshape(3, 6) < 9}
    variables = model.init(KEY)
    outputs = model.apply(variables, x)[0]
    np.testing.assert_array_equal(outputs, Masked().apply(whole(variables), x))
    with pytest.raises(ValueError, match=r"x\['mask'\] = bool\[3, 5\].*bool\[batch, 6\]"):
        model.apply(variables, {**x, "mask": x["mask"][:, :5]})
    with pytest.raises(ValueError, match="structure of input_shape"):
        model.apply(variables, x["tokens"])
    with pytest.raises(ValueError, match=r"input_dtype.*structure"):
        from_flax(Masked(), {"tokens": (6,), "mask": (6,)})
    assert cost_table(model).forward_flops.tolist() == [2 * 6 * 3 * 4, 2 * 4 * 2]
