"""A part of a model is trained: against gradients that are masked by hand, and in every method."""

import re
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, batch_norm_problem, digits_problem, exits_problem

from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.fleet.cost import cost_table
from fedjax_het.models import flax_block, freeze, with_compute_dtype, with_exits
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block
from fedjax_het.models.saving import named
from fedjax_het.simulation.simulate import simulate

HIDDEN = (12, 10, 8)  # four blocks
METHODS = {
    "fedavg": {},
    "fedpmt": {"depths": (1, 2)},
    "fedel": {},
    "prfl": {"interval_s": 0.02, "density": {"interval": 1}, "recovery": None},
}


def frozen(problem, trainable):
    """The problem with a smaller model, and the complete values at its start."""
    variables = problem.model.init(jax.random.key(5))
    return replace(problem, model=freeze(problem.model, variables, trainable)), variables


def trained(variables, trainable):
    """The trained parameters by their name in the complete model."""
    return {
        name: np.asarray(leaf)
        for name, leaf in named(variables).items()
        if not name.startswith("stats") and re.search(trainable, name)
    }


@pytest.mark.parametrize(
    ("trainable", "blocks"),
    [
        (r"^blocks\.[13]", ["fc1..fc2", "fc3..fc4"]),
        (r"^blocks\.0", ["fc1..fc4"]),
        (r"^blocks\.[02]", ["fc1", "fc2..fc4"]),
        ("bias", ["fc1", "fc2", "fc3", "fc4"]),
        (r"^blocks\.2\.Dense_0\.kernel$", ["fc1..fc4"]),
    ],
)
def test_blocks_without_trained_parameters_join_others(trainable, blocks):
    base = digits_problem(hidden=HIDDEN)
    small, variables = frozen(base, trainable)
    model = small.model
    assert [block.name for block in model.blocks] == blocks
    own = model.init(jax.random.key(0))
    for mine, leaf in zip(named(own).values(), trained(variables, trainable).values(), strict=True):
        np.testing.assert_array_equal(mine, leaf)
    x = jnp.asarray(base.data.test_x[:7])
    np.testing.assert_array_equal(model.apply(own, x)[0], base.model.apply(variables, x)[0])
    assert_close(model.origin.complete(own), variables, rtol=0, atol=0)


@pytest.mark.parametrize("trainable", [r"^blocks\.[13]", "bias"])
def test_a_round_is_that_of_masked_gradients(trainable):
    """FedAvg with one batch a client: a step along the mean gradient of all samples."""
    base = digits_problem(hidden=HIDDEN)
    small, variables = frozen(base, trainable)
    method = build("fedavg", small, learning_rate=0.3, batch_size=8)
    result = simulate(method, small, rounds=1)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits, _ = base.model.apply(variables._replace(params=params), jnp.asarray(base.data.x))
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(base.data.y))
        )

    wanted = {name: np.asarray(leaf) for name, leaf in named(variables).items()}
    of = variables._replace(params=gradient(variables.params))
    for name, leaf in trained(of, trainable).items():
        wanted[name] = wanted[name] - np.float32(0.3) * leaf
    complete = named(small.model.origin.complete(result.variables))
    for name, leaf in complete.items():
        np.testing.assert_allclose(leaf, wanted[name], rtol=1e-5, atol=1e-6)
    for name in set(complete) - set(trained(variables, trainable)):
        np.testing.assert_array_equal(complete[name], named(variables)[name])


def test_only_trained_parameters_are_paid_for():
    """Four dense layers of 64-12-10-8-10; those of 12 -> 10 and 8 -> 10 are trained."""
    base = digits_problem(hidden=HIDDEN)
    cost = cost_table(frozen(base, r"^blocks\.[13]")[0].model)
    forward = [2 * (64 * 12 + 12 * 10), 2 * (10 * 8 + 8 * 10)]
    np.testing.assert_array_equal(cost.forward_flops, forward)
    np.testing.assert_array_equal(cost.weight_grad_flops, [2 * 12 * 10, 2 * 8 * 10])
    sent = [4 * (12 * 10 + 10), 4 * (8 * 10 + 10)]
    np.testing.assert_array_equal(cost.param_bytes, sent)
    # Nothing is differentiated below the first trained layer: through fc4 and fc3 to that of fc2.
    through = 2 * (8 * 10 + 10 * 8)
    assert cost.step_flops() == sum(forward) + sum(cost.weight_grad_flops) + through
    assert cost.upload_bytes() == cost.download_bytes() == sum(sent)
    biases = cost_table(frozen(base, r"^blocks\.0.*bias")[0].model)
    # The gradient of the first bias needs those of the inputs of the three other layers.
    np.testing.assert_array_equal(biases.weight_grad_flops, [2 * (12 * 10 + 10 * 8 + 8 * 10)])


class _Dropping(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(6)(x))


def test_constant_blocks_use_their_statistics_and_drop_out():
    norm = batch_norm_problem().model.blocks[0]
    blocks = (norm, flax_block("drop", _Dropping()), norm, flax_block("out", nn.Dense(10)))
    base = BlockModel("mixed", blocks, (64,), 10)
    variables = base.init(jax.random.key(1))
    model = freeze(base, variables, r"^blocks\.[23]")
    own = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(2), (9, 64))
    key = jax.random.key(3)
    outputs, stats = model.apply(own, x, train=True, key=key)
    # By hand: block 0 of the smaller model is norm (constant), drop (constant), norm (trained).
    z = x
    for i, (b, train) in enumerate([(0, False), (1, True), (2, True)]):
        inner = jax.random.fold_in(jax.random.fold_in(key, 0), i)
        z, new = base.blocks[b].apply(
            variables.params["blocks"][b], variables.stats["blocks"][b], z, train=train, key=inner
        )
    z, _ = base.blocks[3].apply(variables.params["blocks"][3], {}, z, train=True, key=None)
    assert_close(outputs, z)
    assert_close(stats["blocks"], (new, {}))
    complete = model.origin.complete(own._replace(stats=stats))
    assert_close(complete.stats["blocks"], (variables.stats["blocks"][0], {}, new, {}))
    assert_close(model.apply(own, x)[0], base.apply(variables, x)[0])


def test_weights_of_samples_reach_the_trained_block_only():
    """What a block may take beside its mode and its key, as the weights of real samples."""
    seen = []

    def block(name):
        def apply(params, stats, x, **options):
            seen.append((name, options.pop("weight", None), options["train"]))
            return x * params["w"], stats

        return Block(name, lambda key, x: ({"w": jnp.ones(())}, {"s": jnp.ones(())}), apply)

    base = BlockModel("three", tuple(map(block, "abc")), (2,), 2)
    model = freeze(base, base.init(jax.random.key(0)), r"^blocks\.1")
    own, weight = model.init(jax.random.key(0)), jnp.ones(3)
    seen.clear()
    model.blocks[0].apply(
        own.params["blocks"][0],
        own.stats["blocks"][0],
        jnp.ones((3, 2)),
        train=True,
        key=None,
        weight=weight,
    )
    assert seen == [("a", None, False), ("b", weight, True), ("c", None, False)]


@pytest.mark.parametrize("shared", [False, True])
def test_exits_stay_behind_the_blocks_that_train(shared):
    base = with_exits(digits_problem(hidden=(8, 8, 8)).model, shared=shared)
    variables = base.init(jax.random.key(1))
    head = "exits" if shared else r"exits\.[02]"
    model = freeze(base, variables, rf"^blocks\.[123].*bias|{head}")
    own = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(2), (5, 64))
    kept = [1, 2, 3]  # blocks of the base model after which there is a head
    outputs, _ = model.apply_exits(own, x)
    np.testing.assert_array_equal(outputs, base.apply_exits(variables, x)[0][jnp.asarray(kept)])
    assert [bool(head) for head in own.params["exits"]] == ([True] if shared else [False, True])
    assert_close(model.origin.complete(own), variables, rtol=0, atol=0)


def test_bfloat16_constants_are_rounded_as_in_the_complete_model():
    base = with_compute_dtype(exits_problem().model, "bfloat16")
    variables = base.init(jax.random.key(1))
    model = freeze(base, variables, r"^blocks\.1.*kernel")
    x = jax.random.normal(jax.random.key(2), (5, 64))
    own = model.init(jax.random.key(0))
    np.testing.assert_array_equal(model.apply(own, x)[0], base.apply(variables, x)[0])


@pytest.mark.parametrize("name", METHODS)
def test_methods_train_and_send_the_part_only(name):
    trainable = r"^blocks\.[12]|^exits\.1"
    small, variables = frozen(exits_problem() if name == "fedel" else digits_problem(), trainable)
    method = build(name, small, learning_rate=0.1, batch_size=8, **METHODS[name])
    result = simulate(method, small, rounds=2)
    before, after = named(variables), named(small.model.origin.complete(result.variables))
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert changed
    assert changed <= set(trained(variables, trainable))
    part = 4 * sum(leaf.size for leaf in trained(variables, trainable).values())
    sent = [row["bytes_up"] for row in result.record.clients]
    # PR-FL sends the positions of weights too.
    assert max(sent) == part if name == "fedavg" else max(sent) < 1.2 * part


def test_a_frozen_model_is_finished():
    model = frozen(digits_problem(), "bias")[0].model
    variables = model.init(jax.random.key(0))
    for change in (
        lambda: freeze(model, variables, "bias"),
        lambda: with_exits(model),
        lambda: with_compute_dtype(model, "bfloat16"),
    ):
        with pytest.raises(InputError, match="has constant values already"):
            change()


def test_the_digest_is_that_of_values_and_choice():
    model = digits_problem().model
    one, two = (model.init(jax.random.key(seed)) for seed in (1, 2))
    digests = [freeze(model, *of).origin.digest for of in [(one, "bias"), (two, "bias"), (one, "")]]
    assert len(set(digests)) == 3
    assert freeze(model, one, lambda name: "bias" in name).origin.digest == digests[0]
