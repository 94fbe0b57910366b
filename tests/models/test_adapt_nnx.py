"""A user's own nnx network equals the same linen network, and is cut and trained like it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_het.fleet.cost import cost_table
from fedjax_het.models.adapt import from_flax
from fedjax_het.models.exits import with_exits

KEY = jax.random.key(3)
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 1)), jnp.float32)


class Linen(nn.Module):
    """The network that the nnx network below must equal."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(8, name="layers_0")(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(0.0, deterministic=not train)(x)
        return nn.Dense(5, name="layers_1")(x)


class Net(nnx.Module):
    """Sorted by name its layers would be in another order."""

    def __init__(self, *, rngs, rate=0.0):
        self.layers = nnx.List([nnx.Linear(36, 8, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)])
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(self.norm(nnx.relu(self.conv(x))), (2, 2), (2, 2))
        x = self.drop(nnx.relu(self.layers[0](x.reshape(x.shape[0], -1))))
        return self.layers[1](x)


NAMES = ["conv", "norm", "layers_0", "layers_1"]


@pytest.fixture(scope="module")
def twins():
    """Both models with the same variables, whose statistics are not those of the start."""
    model, reference = from_flax(Net, (6, 6, 1)), from_flax(Linen(), (6, 6, 1))
    variables = model.init(KEY)
    variables = variables._replace(stats=jax.tree.map(lambda a: a + 0.5, variables.stats))
    return model, reference, variables


def as_linen(blocks):
    """Variables of the nnx model under the names of linen."""

    def renamed(block):
        (name, held), *none = block.items() or [("", {})]
        assert not none
        inside = held.items() if name == "layers" else ()
        return {f"layers_{i}": leaf for i, leaf in inside} or ({name: held} if name else {})

    return {"blocks": tuple(map(renamed, blocks["blocks"])), "exits": ()}


def close(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a, b)


def test_blocks_are_the_submodules_in_the_order_of_their_calls(twins):
    model, reference, _ = twins
    assert [block.name for block in model.blocks] == NAMES
    assert [block.name for block in reference.blocks] == NAMES
    assert (model.name, model.num_classes) == ("Net", 5)
    mine, other = cost_table(model), cost_table(reference)
    np.testing.assert_array_equal(mine.forward_flops, other.forward_flops)
    np.testing.assert_array_equal(mine.input_grad_flops, other.input_grad_flops)
    np.testing.assert_array_equal(mine.param_bytes, other.param_bytes)
    np.testing.assert_array_equal(mine.stats_bytes, other.stats_bytes)


def test_equals_linen_in_outputs_gradients_and_statistics(twins):
    model, reference, variables = twins
    twin = variables._replace(params=as_linen(variables.params), stats=as_linen(variables.stats))
    outputs = model.apply(variables, X)[0]
    np.testing.assert_array_equal(outputs, reference.apply(twin, X)[0])
    close(outputs, Linen().apply(merged(twin), X, train=False))

    def step(network, variables, x, weight):
        def loss(params):
            y, stats = network.apply(
                variables._replace(params=params), x, train=True, key=KEY, weight=weight
            )
            return jnp.mean(jnp.square(y)), (y, stats)

        return jax.grad(loss, has_aux=True)(variables.params)

    @jax.jit
    def both(x, weight):
        steps = [
            jax.vmap(functools.partial(step, network, held))(x, weight)
            for network, held in ((model, variables), (reference, twin))
        ]
        (grads, (y, stats)), theirs = steps
        return (as_linen(grads), (y, as_linen(stats))), theirs

    weight = jnp.asarray([[1.0, 1.0, 1.0, 0.0], [1.0] * 4])
    close(*both(jnp.stack([X, 2.0 * X]), weight))


def merged(variables):
    """The variables as the linen module itself would hold them."""
    tree = {"params": {}, "batch_stats": {}}
    for params, stats in zip(variables.params["blocks"], variables.stats["blocks"]):
        tree["params"].update(params)
        tree["batch_stats"].update(stats)
    return tree


REAL = np.random.default_rng(1).normal(2.0, 3.0, (3, 4)).astype(np.float32)


@pytest.mark.parametrize("padding", [np.zeros((0, 4)), np.full((2, 4), 1e6), np.ones((5, 4))])
def test_padding_is_not_seen_by_batch_norm(padding):
    norm = from_flax(nnx.BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(0)), (4,))
    x = jnp.asarray(np.concatenate([REAL, padding.astype(np.float32)]))
    weight = (jnp.arange(len(x)) < 3).astype(jnp.float32)
    variables = norm.init(KEY)

    def loss(x):
        y, stats = norm.apply(variables, x, train=True, weight=weight)
        return jnp.sum(jnp.where(weight[:, None] > 0, y, 0.0) ** 3), (y, stats["blocks"][0])

    grad, (y, stats) = jax.grad(loss, has_aux=True)(x)
    mean, var = REAL.mean(0), REAL.var(0)
    normal = (REAL - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y[:3], normal, rtol=1e-4, atol=1e-5)
    close(stats, {"mean": 0.1 * mean, "var": 0.9 + 0.1 * var})
    g = 3.0 * normal**2
    expected = (g - g.mean(0) - normal * (g * normal).mean(0)) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(grad[:3], expected, rtol=1e-3, atol=1e-4)
    none = norm.apply(variables, x, train=True, weight=jnp.zeros(len(x)))[1]
    jax.tree.map(np.testing.assert_array_equal, none, variables.stats)


def test_may_be_cut_frozen_and_left_early(twins):
    model, _, variables = twins
    outputs = model.apply(variables, X)[0]
    for boundary in range(3):
        z = model.forward_to(variables, X, boundary)[0]
        close(model.forward_from(variables, z, boundary)[0], outputs)
    early = with_exits(model)
    left = jax.eval_shape(lambda key: early.apply(early.init(key), X, exit=1)[0], KEY)
    assert left.shape == (4, 5)


def test_a_module_keeps_its_values_and_a_function_makes_new_ones():
    module = Net(rngs=nnx.Rngs(5))
    model = from_flax(module, (6, 6, 1), name="mine")
    a, b = model.init(jax.random.key(0)), model.init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    kernel = a.params["blocks"][0]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, module.conv.kernel[...])
    # The module is not changed by runs of the model.
    model.apply(a, X, train=True, key=KEY)
    assert type(module.conv) is nnx.Conv
    np.testing.assert_array_equal(module.norm.mean[...], 0.0)
    # Nor the model by later changes of the module, or by the end of its arrays.
    module.conv.kernel[...] = jnp.zeros_like(kernel)
    again = model.init(KEY)
    np.testing.assert_array_equal(again.params["blocks"][0]["conv"]["kernel"], kernel)
    jax.tree.map(lambda a: a.delete(), again)
    jax.tree.map(np.testing.assert_array_equal, model.init(KEY), b)

    function = from_flax(lambda rngs: Net(rngs=rngs), (6, 6, 1))
    a, b, again = (function.init(jax.random.key(seed)) for seed in (0, 1, 0))
    jax.tree.map(np.testing.assert_array_equal, a, again)
    weights = [v.params["blocks"][2]["layers"]["0"]["kernel"] for v in (a, b)]
    assert bool(jnp.any(weights[0] != weights[1]))


def test_dropout_follows_the_key():
    model = from_flax(lambda rngs: Net(rngs=rngs, rate=0.5), (6, 6, 1))
    variables = model.init(KEY)

    def run(seed):
        return model.apply(variables, X, train=True, key=jax.random.key(seed))[0]

    np.testing.assert_array_equal(run(0), run(0))
    assert bool(jnp.any(run(0) != run(1)))
    np.testing.assert_array_equal(model.apply(variables, X)[0], model.apply(variables, X)[0])
    with pytest.raises(ValueError, match=r"block 'layers_0' draws random numbers.*key"):
        model.apply(variables, X, train=True)
    with pytest.raises(ValueError, match="evaluation must not draw"):
        from_flax(lambda rngs: Always(rngs=rngs), (3,))


class Mode(nnx.Module):
    """Told its mode by an argument."""

    def __init__(self, *, rngs):
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x, deterministic):
        return self.out(self.drop(x, deterministic=deterministic))


class Always(Mode):
    """Forgets its mode."""

    def __call__(self, x, train=False):
        return super().__call__(x, deterministic=False)


class Tied(nnx.Module):
    """Weights that are used at both ends, one of its own, a shortcut, and a constant."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.inner = nnx.Linear(4, 4, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(()))
        self.first = nnx.data(jnp.arange(4, dtype=jnp.float32))

    def __call__(self, tokens):
        x = self.embed(tokens) + self.first[None, None]
        return self.embed.attend(x + self.inner(x * self.scale[...]))


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 3, rngs=rngs)
        self.layer = nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=rngs))
        self.out = nnx.Linear(4, 7, rngs=rngs)

    def __call__(self, tokens):
        return self.out(self.layer(self.embed(tokens)))


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (3, 5)), jnp.int32)


@pytest.mark.parametrize(
    ("module", "names"), [(Tied, ["embed+inner"]), (Recurrent, ["embed", "layer", "out"])]
)
def test_networks_of_tokens_run_as_written(module, names):
    mine = module(rngs=nnx.Rngs(0))
    model = from_flax(mine, (5,), input_dtype=jnp.int32)
    assert [block.name for block in model.blocks] == names
    variables = model.init(KEY)
    # A cell draws its first state, which is zero, so that training needs no key.
    outputs, _ = model.apply(variables, TOKENS, train=True)
    close(outputs, mine(TOKENS))
    assert outputs.shape == (3, 5, 7)
    held = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(mine, nnx.Param)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables.params)) == held


def test_the_mode_is_an_argument_where_the_module_takes_one():
    model = from_flax(Mode(rngs=nnx.Rngs(0)), (3,))
    variables = model.init(KEY)
    x = jnp.ones((2, 3))
    plain, dropped = (model.apply(variables, x, train=t, key=KEY)[0] for t in (False, True))
    np.testing.assert_array_equal(plain[0], plain[1])
    assert bool(jnp.any(plain != dropped))


def test_a_sequence_gives_a_block_a_module():
    modules = [nnx.Linear(3, 4, rngs=nnx.Rngs(0)), lambda rngs: Mode4(rngs=rngs), nn.Dense(2)]
    model = from_flax(modules, (3,), 2)
    assert [b.name for b in model.blocks] == ["Linear_0", "Mode4_1", "Dense_2"]
    twice = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    tied = from_flax(nnx.Sequential(twice, jnp.tanh, twice, modules[0]), (3,))
    assert [b.name for b in tied.blocks] == ["layers_0", "layers_3"]


class Mode4(nnx.Linear):
    def __init__(self, *, rngs):
        super().__init__(4, 4, rngs=rngs)


class Counting(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(3, 2, rngs=rngs)
        self.calls = nnx.Cache(jnp.zeros(()))

    def __call__(self, x):
        return self.out(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Counting, r"\['Cache'\].*nnx\.Param"),
        (lambda rngs: jnp.ones(()), "must be an nnx module"),
        (lambda: Net(rngs=nnx.Rngs(0)), "`rngs`"),
    ],
)
def test_bad_input_names_value_and_remedy(module, message):
    with pytest.raises(ValueError, match=message):
        from_flax(module, (3,))


def test_parameters_of_another_model_are_refused():
    model = from_flax(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), (3,))
    other = from_flax(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), (3,)).init(KEY)
    with pytest.raises(ValueError, match="do not fit its module"):
        model.apply(other, jnp.ones((2, 3)))
