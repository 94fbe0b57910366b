"""Optimisers by name, their options, and what is known of them without a table."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    assert_close,
    differ,
    digits_problem,
    exits_problem,
    one_round,
    situation,
    windows,
)

from fedjax_het.algorithms import build, fedavg
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common.jaxprs import digest
from fedjax_het.local import optimizers
from fedjax_het.local.optimizers import OPTIMIZERS, couples, make, relaxed, slots, trace

RATE, STEPS = 0.1, 3
GRADIENTS = np.random.default_rng(0).normal(size=(STEPS, 4)).astype(np.float32)
START = np.linspace(-1.0, 1.0, 4, dtype=np.float32)


def descend(optimizer, gradients=GRADIENTS):
    """Parameters after the steps, under the strict promotion of the tests."""
    params = {"w": jnp.asarray(START)}
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update({"w": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["w"])


def adam(gradients, b1=0.9, b2=0.999, eps=1e-8, coupled=0.0, decoupled=0.0, largest=False):
    """Kingma and Ba, Algorithm 1, with either decay, and with AMSGrad's maximum."""
    w, m, v, top = START.astype(np.float64), 0.0, 0.0, 0.0
    for t, g in enumerate(gradients.astype(np.float64), 1):
        g = g + coupled * w
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        top = np.maximum(top, v / (1 - b2**t))
        second = top if largest else v / (1 - b2**t)
        w = w - RATE * (m / (1 - b1**t) / (np.sqrt(second) + eps) + decoupled * w)
    return w


def sgd(gradients, momentum=0.0, nesterov=False, coupled=0.0):
    w, m = START.astype(np.float64), 0.0
    for g in gradients.astype(np.float64):
        g = g + coupled * w
        m = g + momentum * m
        w = w - RATE * (g + momentum * m if nesterov else m)
    return w


@pytest.mark.parametrize(
    ("choice", "decay", "wanted"),
    [
        ("sgd", 0.0, sgd(GRADIENTS)),
        ("sgd", 0.3, sgd(GRADIENTS, coupled=0.3)),
        ("momentum", 0.0, sgd(GRADIENTS, 0.9)),
        ({"name": "nesterov", "momentum": 0.5}, 0.0, sgd(GRADIENTS, 0.5, nesterov=True)),
        ({"name": "sgd", "momentum": 0.5, "nesterov": True}, 0.0, sgd(GRADIENTS, 0.5, True)),
        ("adam", 0.0, adam(GRADIENTS)),
        ("adam", 0.3, adam(GRADIENTS, coupled=0.3)),
        ({"name": "adam", "b1": 0.5, "eps": 0.1}, 0.0, adam(GRADIENTS, 0.5, eps=0.1)),
        ("adamw", 0.3, adam(GRADIENTS, decoupled=0.3)),
        ("adamw", 0.0, adam(GRADIENTS)),
        ("amsgrad", 0.0, adam(GRADIENTS, largest=True)),
    ],
)
def test_steps_are_those_of_the_published_rules(choice, decay, wanted):
    assert_close(descend(make(choice, RATE, weight_decay=decay)), wanted, rtol=2e-5)


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"sgd", "momentum", "nesterov"}))
def test_names_are_those_of_optax_and_coordinates_are_independent(name):
    keywords = {"weight_decay": 0.0} if name in ("adamw", "adan", "lion", "nadamw") else {}
    with jax.numpy_dtype_promotion("standard"):
        wanted = descend(getattr(optax, name)(RATE, **keywords))
    np.testing.assert_array_equal(descend(make(name, RATE)), wanted)
    alone = np.where(np.arange(4) == 1, GRADIENTS, 0.0).astype(np.float32)
    assert descend(make(name, RATE), alone)[1] == wanted[1]
    assert not couples(trace(make(name, RATE)))


@pytest.mark.parametrize(
    ("optimizer", "arrays", "coupled"),
    [
        (make("sgd", RATE), 0, False),
        (make("momentum", RATE, weight_decay=0.1), 1, False),
        (make("adam", RATE), 2, False),
        (make("amsgrad", RATE), 3, False),
        (relaxed(optax.adafactor(RATE, min_dim_size_to_factor=8)), 0, True),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(RATE, 0.9)), 1, True),
        (relaxed(optax.lamb(RATE)), 2, True),
    ],
)
def test_memory_and_coupling_are_read_off_the_first_step(optimizer, arrays, coupled):
    traced = trace(optimizer)
    assert (slots(traced), couples(traced)) == (arrays, coupled)


def test_digests_differ_with_the_step_and_with_nothing_else():
    one = digest(trace(make("adam", RATE)))
    assert one == digest(trace(relaxed(optax.adam(RATE))))
    others = [make("adam", 0.2), make({"name": "adam", "b1": 0.8}, RATE), make("sgd", RATE)]
    others.append(optax.chain(optax.add_decayed_weights(0.5), make("adam", RATE)))
    assert len({one, *(digest(trace(other)) for other in others)}) == len(others) + 1


def test_an_optax_transformation_trains_as_the_optimiser_by_name():
    problem = digits_problem(hidden=(8,))
    start = problem.model.init(jax.random.key(0))
    named = fedavg(problem, learning_rate=0.1, momentum=0.9, batch_size=4)
    ready = fedavg(problem, client_optimizer=optax.sgd(0.1, momentum=0.9), batch_size=4)
    wanted, got = (one_round(method, problem, start)[0] for method in (named, ready))
    assert not differ(got, wanted)


def test_the_gradient_of_the_sub_model_is_clipped():
    """All executions agree, and one step of SGD is as long as the limit allows."""
    problem = exits_problem()
    start = problem.model.init(jax.random.key(0))
    method = windows(problem, learning_rate=1.0, clip_norm=0.01, local_steps=1)
    plan, _ = method.plan((), start, situation(problem, clients=np.arange(2)))
    routed, masked, debug = (
        one_round(method, problem, start, plan, execution=execution, chunk=1)[0]
        for execution in ("routed", "masked", "debug")
    )
    assert_close(masked, routed)
    assert_close(debug, routed)
    lone = build("fedavg", problem, learning_rate=0.5, clip_norm=0.01, local_steps=1)
    merged, _ = one_round(lone, problem, start)
    moved = jax.tree.map(jnp.subtract, merged.params, start.params)
    assert 0 < float(optax.tree.norm(moved)) <= 0.5 * 0.01 * 1.001


def test_training_options_know_their_optimiser():
    options = TrainingOptions(learning_rate=0.1, client_optimizer={"name": "adam", "b2": 0.9})
    assert options.optimizer_slots == 2
    assert TrainingOptions(client_optimizer=optax.sgd(0.1, 0.9)).optimizer_slots == 1
    assert optimizers.named({"name": "adam", "b2": 0.9}, "x") == ("adam", {"b2": 0.9})
