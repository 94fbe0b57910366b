"""The local update of one client: what moves, what stands still, what is reported."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, differ, digits_problem, exits_problem

from fedjax_het import models
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import Task
from fedjax_het.contract.masks import Route
from fedjax_het.data.batches import Batch
from fedjax_het.local import training as client
from fedjax_het.local.training import local_training
from fedjax_het.objectives import classification
from fedjax_het.runtime.chunking import choose_parts

CLIENT = 2  # eight samples
FULL = Route(0, 2)


def make_task(client=CLIENT, steps=2, loop_steps=None, batch=4, scale=1.0, mask=None, exit=2):
    return Task(
        client=jnp.int32(client),
        key=jax.random.key(3),
        steps=jnp.int32(steps),
        loop_steps=jnp.int32(steps if loop_steps is None else loop_steps),
        batch=jnp.int32(batch),
        learning_rate_scale=jnp.float32(scale),
        exit=jnp.int32(exit),
        mask=mask,
        row=None,
        shared=None,
    )


@pytest.fixture(scope="module")
def setting():
    problem = digits_problem()
    return problem, problem.model.init(jax.random.key(0)), problem.data.device()


@pytest.fixture(scope="module")
def train(setting):
    problem, start, data = setting
    compiled = {}

    def run(task, route=FULL, optimizer="sgd", max_batch=4, proximal=0.0):
        makers = {
            "sgd": lambda: optax.sgd(0.1),
            "momentum+decay": lambda: optax.chain(
                optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)
            ),
        }
        key = (route, optimizer, max_batch, proximal, task.mask is None)
        if key not in compiled:
            local = local_training(
                problem.model,
                problem.data.pipeline,
                makers[optimizer](),
                classification(),
                max_batch=max_batch,
                proximal=proximal,
            )
            compiled[key] = jax.jit(functools.partial(local, route))
        return compiled[key](start, data, task)

    return run


def mean_gradient(problem, start, ids):
    def loss(params, x, y):
        logits, _ = problem.model.apply(start._replace(params=params), x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return jax.jit(jax.value_and_grad(loss))(start.params, problem.data.x[ids], problem.data.y[ids])


def moves(tree):
    return any(bool(np.any(np.asarray(leaf) != 0)) for leaf in jax.tree.leaves(tree))


def test_cross_entropy_leaves_padding_out():
    logits = np.float32([[2.0, 0.0], [0.0, 1.0], [9.0, -9.0]])
    weight = np.float32([1.0, 1.0, 0.0])
    batch = Batch(x=logits, y=np.int32([0, 0, 1]), weight=weight, sample=np.arange(3))
    value_and_grad = jax.jit(jax.value_and_grad(classification().mean))
    wanted = np.mean([np.log1p(np.exp(-2.0)), np.log1p(np.exp(1.0))])
    np.testing.assert_allclose(value_and_grad(logits, batch)[0], wanted, rtol=1e-6)
    value, grad = value_and_grad(logits, batch._replace(weight=np.zeros(3, np.float32)))
    assert value == 0.0
    np.testing.assert_array_equal(grad, np.zeros((3, 2)))


def test_cross_entropy_of_a_sequence_is_the_mean_over_its_positions():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, 4)).astype(np.float32)
    y = rng.integers(0, 4, (2, 3)).astype(np.int32)
    got = jax.jit(classification().mean)(logits, Batch(y, y, np.float32([1.0, 0.0]), np.arange(2)))
    log_p = logits[0] - np.log(np.exp(logits[0]).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(got, -np.mean(log_p[range(3), y[0]]), rtol=1e-5)


def test_one_full_batch_step_is_gradient_descent(setting, train):
    problem, start, _ = setting
    loss, grad = mean_gradient(problem, start, problem.data.client_samples(CLIENT))
    result = train(make_task(steps=1, batch=8), max_batch=8)
    assert_close(result.delta, jax.tree.map(lambda g: -0.1 * np.asarray(g), grad))
    np.testing.assert_allclose(result.loss, loss, rtol=1e-5)
    assert result.samples == 8


def test_an_epoch_visits_every_sample_once(setting, train):
    """With a negligible step the mean loss over an epoch's batches is the loss over the data."""
    problem, start, _ = setting
    client = 1  # five samples: batches of four and one
    loss, _ = mean_gradient(problem, start, problem.data.client_samples(client))
    result = train(make_task(client=client, steps=2, scale=1e-9))
    assert result.samples == 5
    np.testing.assert_allclose(result.loss, loss, rtol=1e-5)


def test_the_squares_of_the_first_epoch_are_reported(train):
    """Of a client with five samples: batches of four and of one, and one of the second epoch."""
    one, two, three = (train(make_task(client=1, steps=steps)) for steps in (1, 2, 3))
    first, second = one.loss, 5 * two.loss - 4 * one.loss
    assert one.square_loss == first * first
    np.testing.assert_allclose(two.square_loss, (4 * first**2 + second**2) / 5, rtol=1e-5)
    assert three.square_loss == two.square_loss
    assert two.square_loss > two.loss**2
    assert train(make_task(steps=0, loop_steps=1)).square_loss == 0.0


def test_room_for_larger_batches_changes_nothing(train):
    small, large = train(make_task()), train(make_task(), max_batch=8)
    assert_close(small, large)


def test_surplus_loop_steps_stand_still(train):
    chex.assert_trees_all_equal(train(make_task(steps=1, loop_steps=3)), train(make_task(steps=1)))
    assert differ(train(make_task(steps=2)).delta, train(make_task(steps=1)).delta)


def test_no_steps_move_nothing(train):
    result = train(make_task(steps=0, loop_steps=2))
    assert not moves(result.delta)
    assert result.loss == 0.0
    assert result.samples == 0


def test_the_scale_multiplies_the_step(train):
    one, half = train(make_task(steps=1)), train(make_task(steps=1, scale=0.5))
    assert_close(half.delta, jax.tree.map(lambda d: 0.5 * np.asarray(d), one.delta))


def test_frozen_coordinates_do_not_move(setting, train):
    """Neither momentum nor weight decay moves what a mask freezes."""
    mask = masks.suffix(setting[1].params, jnp.int32(2))
    delta = train(make_task(mask=mask), optimizer="momentum+decay").delta
    for b, block in enumerate(delta["blocks"]):
        for leaf in jax.tree.leaves(block):
            assert moves(leaf) == (b == 2)


def test_a_route_leaves_out_what_the_mask_freezes(setting, train):
    mask = masks.suffix(setting[1].params, jnp.int32(1))
    whole = train(make_task(mask=mask), optimizer="momentum+decay")
    routed = train(make_task(mask=mask), route=Route(1, 2), optimizer="momentum+decay")
    assert not jax.tree.leaves(routed.delta["blocks"][0])
    assert_close(routed.delta["blocks"][1:], whole.delta["blocks"][1:])
    np.testing.assert_allclose(routed.loss, whole.loss, rtol=1e-6)


def test_masks_may_freeze_single_channels(setting, train):
    keep = masks.everything(setting[1].params)
    channels = jnp.arange(8) < 3
    keep["blocks"][1]["Dense_0"] = {"kernel": channels, "bias": channels}
    result = train(make_task(mask=keep), optimizer="momentum+decay")
    delta = result.delta["blocks"][1]["Dense_0"]
    for leaf in jax.tree.leaves(delta):
        assert not moves(np.asarray(leaf)[..., 3:])
        assert moves(np.asarray(leaf)[..., :3])


def test_the_proximal_term_pulls_back_but_not_at_the_start(train):
    """methods/baselines.md 3: the gradient at w_t does not depend on mu."""
    first = [train(make_task(steps=1), proximal=mu).delta for mu in (0.0, 5.0)]
    chex.assert_trees_all_equal(*first)
    free, pulled = (train(make_task(steps=2), proximal=mu).delta for mu in (0.0, 5.0))

    def norm(delta):
        return sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(delta))

    assert norm(pulled) < norm(free)


def test_work_of_another_client_or_key_differs(train):
    one = train(make_task())
    assert differ(one.delta, train(make_task(client=6)).delta)
    assert differ(one.delta, train(make_task()._replace(key=jax.random.key(4))).delta)


def test_every_exit_alone_equals_that_exit_among_all():
    problem = exits_problem()
    start, data = problem.model.init(jax.random.key(0)), problem.data.device()
    local = local_training(
        problem.model, problem.data.pipeline, optax.sgd(0.1), problem.objective, max_batch=4
    )

    @functools.partial(jax.jit, static_argnums=0)
    def run(route, exit):
        mask = masks.suffix(start.params, jnp.int32(0), exit)
        return local(route, start, data, make_task(mask=mask, exit=exit))

    for exit in range(3):
        alone = run(Route(0, exit), jnp.int32(exit))
        among = run(Route(0, None), jnp.int32(exit))
        np.testing.assert_allclose(alone.loss, among.loss, rtol=1e-6)
        for part in ("blocks", "exits"):
            for a, b in zip(alone.delta[part], among.delta[part], strict=True):
                if jax.tree.leaves(a):
                    assert_close(a, b)
                else:
                    assert not moves(b)


@pytest.mark.parametrize("route", [FULL, Route(1, 2)])
@pytest.mark.parametrize("batch", [4, 3])
def test_batch_in_parts_is_the_same_batch(setting, monkeypatch, route, batch):
    problem, start, data = setting
    results = []
    for parts in (1, 2, 4):
        monkeypatch.setattr(client, "_parts", lambda model, batch, parts=parts: parts)
        local = local_training(
            problem.model,
            problem.data.pipeline,
            optax.sgd(0.1),
            problem.objective,
            max_batch=4,
            proximal=0.3,
        )
        run = jax.jit(functools.partial(local, route))
        # Five steps: with batches of three the last one of an epoch is padded.
        results.append(run(start, data, make_task(steps=5, batch=batch)))
    whole, *others = results
    for other in others:
        assert_close(other, whole)


def test_only_deep_networks_of_few_parameters_are_run_in_parts():
    chosen = {
        name: client._parts(models.build(name, input_shape=shape, num_classes=10), batch)
        for name, shape, batch in (
            ("resnet20", (32, 32, 3), 20),
            ("leaf_cnn", (28, 28, 1), 20),
            ("pfl_cnn", (32, 32, 3), 10),
            ("vgg11", (32, 32, 3), 20),
        )
    }
    assert chosen == {"resnet20": 2, "leaf_cnn": 1, "pfl_cnn": 1, "vgg11": 1}
    batch_norm = models.build("resnet20", input_shape=(32, 32, 3), num_classes=10, norm="batch")
    assert client._parts(batch_norm, 20) == 1
    assert choose_parts("gpu", 10**6, 10**3, 64) == 1
    assert choose_parts("cpu", 10**6, 10**3, 7) == 7
