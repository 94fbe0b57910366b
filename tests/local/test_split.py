"""Split training with local losses: each half learns from its own, and nothing leaks."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    assert_close,
    batch_norm_problem,
    differ,
    exits_problem,
)

from fedjax_het import models
from fedjax_het.algorithms import build
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.data.batches import DeviceData, Pipeline, gather
from fedjax_het.local.optimizers import make
from fedjax_het.local.privacy import Privacy
from fedjax_het.local.split import split_training
from fedjax_het.objectives import classification

SGD = {"learning_rate": 0.1, "batch_size": 4}


def task(problem, *, cut, steps=2, alpha=None, mask=None):
    row = {"cut": jnp.int32(cut)} | ({} if alpha is None else {"alpha": jnp.float32(alpha)})
    return Task(
        client=jnp.int32(2),
        key=jax.random.key(5),
        steps=jnp.int32(steps),
        loop_steps=jnp.int32(steps),
        batch=jnp.int32(4),
        learning_rate_scale=jnp.float32(1.0),
        exit=jnp.int32(problem.model.num_blocks - 1),
        mask=mask,
        row=row,
        shared=None,
    )


def train(problem, variables, *, cut, traced=False, steps=2, alpha=None, optimizer=None, **options):
    local = split_training(
        problem.model,
        problem.data.pipeline,
        optimizer or optax.sgd(0.1),
        classification(),
        max_batch=4,
        **options,
    )
    last = problem.model.num_blocks - 1
    route = Route(0, None) if traced else Route(0, last, cut)
    mask = build("dtfl", problem, **SGD).mask({"cut": jnp.int32(cut)}, None) if traced else None
    work = task(problem, cut=cut, steps=steps, alpha=alpha, mask=mask)
    return jax.jit(local, static_argnums=0)(route, variables, problem.data.device(), work)


@pytest.mark.parametrize("cut", [0, 1])
def test_one_step_is_two_gradient_steps(cut):
    """Written out with `forward_to`, `apply_exit` and `forward_from`: each half on its own loss."""
    problem = exits_problem()
    model, start = problem.model, problem.model.init(jax.random.key(1))
    got = train(problem, start, cut=cut, steps=1)
    batch_key, _ = jax.random.split(jax.random.key(5))
    batch = gather(
        problem.data.device(), problem.data.pipeline, jnp.int32(2), jnp.int32(0), jnp.int32(4), 4,
        batch_key,
    )  # fmt: skip

    def client(params):
        variables = Variables(params, start.stats)
        z, _ = model.forward_to(variables, batch.x, cut)
        return classification().mean(model.apply_exit(variables, z, cut), batch)

    z, _ = model.forward_to(start, batch.x, cut)

    def server(params):
        logits, _ = model.forward_from(Variables(params, start.stats), z, cut)
        return classification().mean(logits, batch)

    wanted = jax.tree.map(
        lambda c, s: -0.1 * (c + s), jax.grad(client)(start.params), jax.grad(server)(start.params)
    )
    assert_close(got.delta["blocks"], wanted["blocks"])
    assert_close(got.delta["exits"][cut], wanted["exits"][cut])
    assert jax.tree.leaves(got.delta["exits"][1 - cut]) == []
    assert got.info["client_loss"] == pytest.approx(float(client(start.params)), rel=1e-5)
    assert got.info["server_loss"] == pytest.approx(float(server(start.params)), rel=1e-5)
    assert got.loss == pytest.approx(float(got.info["client_loss"] + got.info["server_loss"]))


def test_nothing_leaks_through_the_cut():
    """Another server half changes no bit of the client's, and another head none of the server's.

    See methods/dtfl.md check 3.
    """
    problem = exits_problem()
    start = problem.model.init(jax.random.key(1))
    base = train(problem, start, cut=0).delta
    blocks, exits = start.params["blocks"], start.params["exits"]
    other = jax.tree.map(lambda w: w + 0.3, blocks[1:])
    moved = Variables({"blocks": (blocks[0], *other), "exits": exits}, start.stats)
    got = train(problem, moved, cut=0).delta
    chex.assert_trees_all_equal(got["blocks"][0], base["blocks"][0])
    chex.assert_trees_all_equal(got["exits"], base["exits"])
    assert differ(got["blocks"][1:], base["blocks"][1:])
    head = jax.tree.map(lambda w: w * 2 + 0.1, exits[0])
    moved = Variables({"blocks": blocks, "exits": (head, *exits[1:])}, start.stats)
    got = train(problem, moved, cut=0, steps=1).delta
    chex.assert_trees_all_equal(
        got["blocks"][1:], train(problem, start, cut=0, steps=1).delta["blocks"][1:]
    )


@pytest.mark.parametrize(
    ("make", "privacy"),
    [
        (exits_problem, Privacy(dcor=0.5, shuffle="channel")),
        (lambda: batch_norm_problem(exits=True), Privacy()),
    ],
    ids=["privacy", "running statistics"],
)
def test_a_traced_cut_gives_the_same_numbers(make, privacy):
    problem = make()
    start = problem.model.init(jax.random.key(1))
    alpha = privacy.dcor or None
    for cut in range(problem.model.num_blocks - 1):
        arguments = {"cut": cut, "privacy": privacy, "alpha": alpha}
        one, every = (train(problem, start, traced=t, **arguments) for t in (False, True))
        assert_close(one.delta["blocks"], every.delta["blocks"])
        assert_close(one.delta["exits"][cut], every.delta["exits"][cut])
        assert_close(one.stats, every.stats)
        assert_close(one.info, every.info)
        others = [head for b, head in enumerate(every.delta["exits"]) if b != cut]
        assert all(float(jnp.max(jnp.abs(leaf))) == 0 for leaf in jax.tree.leaves(others))


def test_one_optimiser_state_is_both():
    """AMSGrad over the whole network equals a state of its own for either half."""
    problem = exits_problem()
    start = problem.model.init(jax.random.key(1))
    adam = optax.chain(optax.add_decayed_weights(5e-4), make("amsgrad", 1e-2))
    label = lambda part, side: jax.tree.map(lambda _: side, part)
    labels = {
        "blocks": tuple(
            label(block, "client" if b == 0 else "server")
            for b, block in enumerate(start.params["blocks"])
        ),
        "exits": tuple(label(head, "client") for head in start.params["exits"]),
    }
    split = optax.partition(
        {"client": adam, "server": adam},
        lambda params: jax.tree.map(
            lambda _, side: side, params, labels, is_leaf=lambda x: x is None
        ),
    )
    together = train(problem, start, cut=0, optimizer=adam, traced=True)
    apart = train(problem, start, cut=0, optimizer=split, traced=True)
    assert_close(together.delta, apart.delta)


def test_a_server_without_memory_steps_by_signs():
    problem = exits_problem()
    start = problem.model.init(jax.random.key(1))
    rate = 1e-3
    amsgrad = make("amsgrad", rate)
    got = train(problem, start, cut=0, steps=2, optimizer=amsgrad, server_reset="batch").delta
    kept = train(problem, start, cut=0, steps=2, optimizer=amsgrad).delta
    assert_close(got["blocks"][0], kept["blocks"][0])
    assert_close(got["exits"], kept["exits"])
    moved = np.abs(np.concatenate([np.ravel(w) for w in jax.tree.leaves(got["blocks"][1:])]))
    whole_steps = np.min(np.abs(moved[:, None] / rate - np.arange(3)), axis=1)
    assert np.mean(whole_steps < 0.02) > 0.9
    assert differ(got["blocks"][1:], kept["blocks"][1:])


def test_without_weight_the_correlation_changes_nothing():
    """See methods/dtfl.md check 16."""
    problem = exits_problem()
    start = problem.model.init(jax.random.key(1))
    plain = train(problem, start, cut=1)
    told = train(problem, start, cut=1, privacy=Privacy(dcor=0.9), alpha=0.0)
    assert_close(plain.delta, told.delta)
    assert 0 < float(told.info["correlation"]) <= 1
    strong = train(problem, start, cut=1, privacy=Privacy(dcor=0.9), alpha=0.9)
    assert differ(strong.delta["blocks"][0], plain.delta["blocks"][0])
    chex.assert_trees_all_equal(
        train(problem, start, cut=1, steps=1).delta["blocks"][2],
        train(problem, start, cut=1, steps=1, privacy=Privacy(dcor=0.9), alpha=0.9).delta["blocks"][
            2
        ],
    )


def test_shuffling_changes_what_the_server_sees_alone():
    """See methods/dtfl.md check 17."""
    problem = exits_problem()
    start = problem.model.init(jax.random.key(1))
    plain = train(problem, start, cut=0)
    shuffled = train(problem, start, cut=0, privacy=Privacy(shuffle="channel"))
    chex.assert_trees_all_equal(shuffled.delta["blocks"][0], plain.delta["blocks"][0])
    chex.assert_trees_all_equal(shuffled.info["client_loss"], plain.info["client_loss"])
    assert differ(shuffled.delta["blocks"][1:], plain.delta["blocks"][1:])


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("vgg11", (32, 32, 3), {"width": 0.125}),
        ("cifar_cnn", (32, 32, 3), {}),
        ("resnet20", (16, 16, 3), {"norm": "batch", "granularity": "module"}),
        ("transformer", (12,), {}),
    ],
)
def test_every_block_model_can_be_cut_at_every_boundary(name, shape, options):
    """Traced, not run: the equality of the halves is tested with the models."""
    model = models.build(name, shape, 10, exits=True, **options)
    variables = model.shapes
    kind = jnp.int32 if name == "transformer" else jnp.float32
    labels = (6, *shape) if name == "transformer" else (6,)
    data = DeviceData(
        jax.ShapeDtypeStruct((6, *shape), kind),
        jax.ShapeDtypeStruct(labels, jnp.int32),
        *(jax.ShapeDtypeStruct((count,), jnp.int32) for count in (6, 1, 1)),
    )
    local = split_training(model, Pipeline(), make("amsgrad", 0.1), classification(), max_batch=4)
    last = model.num_blocks - 1
    for cut in range(last):
        zero = jnp.int32(0)
        work = Task(
            client=zero,
            key=jax.random.key(0),
            steps=zero,
            loop_steps=zero,
            batch=zero,
            learning_rate_scale=jnp.float32(1),
            exit=jnp.int32(last),
            mask=None,
            row={"cut": jnp.int32(cut)},
            shared=None,
        )
        route = Route(0, last, cut)
        result = jax.eval_shape(functools.partial(local, route), variables, data, work)
        assert jax.tree.structure(result.delta) == jax.tree.structure(
            masks.split(variables.params, route)[0]
        )
