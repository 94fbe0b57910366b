"""HeteroFL (methods/widths.md 2, check 2): sub-networks by width, check by check."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    assert_close,
    batch_norm_problem,
    digits,
    digits_problem,
    fleet,
    one_round,
    situation,
)

import fedjax_het as fh
from fedjax_het import models
from fedjax_het.algorithms import build
from fedjax_het.algorithms.heterofl import last_rows
from fedjax_het.algorithms.networks import networks
from fedjax_het.algorithms.training import UniformTraining
from fedjax_het.common.errors import InputError
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import ClientResult, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.data.federated import from_arrays
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet.cost import cost_table
from fedjax_het.models.mlp import mlp
from fedjax_het.objectives import build as objective_of
from fedjax_het.problem import Problem

TRAINING = {"learning_rate": 0.1, "batch_size": 4}
HALVES = {"rates": (1.0, 0.5), **TRAINING}


def started(problem, seed=0):
    return problem.model.init(jax.random.key(seed))


def setting(algorithm, values):
    """The method with clients that set all their parameters to `values[client]`."""

    def local(route, start, data, task):
        del data
        value = jnp.asarray(values, jnp.float32)[task.client]
        trained = masks.split(start.params, route)[0]
        delta = jax.tree.map(lambda w: jnp.broadcast_to(value, w.shape) - w, trained)
        delta = masks.apply(task.mask, delta)
        return ClientResult(delta, start.stats, jnp.float32(0), jnp.int32(1))

    return algorithm._replace(local=local)


def hidden(variables):
    return np.asarray(variables.params["blocks"][0]["Dense_0"]["bias"])


# ---- goldens -------------------------------------------------------------------------------------


def test_the_levels_of_the_authors_network_have_their_numbers_of_parameters():
    images = digits((4, 4), shape=(8, 8, 1))
    shape = (28, 28, 1)
    pad = lambda x: np.resize(x, (len(x), *shape))
    data = from_arrays(
        pad(images.x), images.y, pad(images.test_x), images.test_y, clients=[[0, 1], [2, 3]]
    )
    problem = Problem(models.build("heterofl_cnn", shape, 10), data, fleet(2))
    own = networks(problem, (1.0, 0.5, 0.25, 0.125, 0.0625))
    found = [sum(a.size for a in jax.tree.leaves(m.shapes.params)) for m in own.models]
    assert found == [1556874, 391370, 98922, 25274, 6594]


@pytest.mark.parametrize("execution", ["routed", "masked"])
def test_coordinates_become_the_mean_over_the_clients_that_hold_them(execution):
    problem = digits_problem((4, 12), (4,))
    algorithm = build("heterofl", problem, levels=(1, 0), masked_loss=False, **HALVES)
    algorithm = setting(algorithm, (1.0, 3.0))
    engine = make_engine(algorithm, problem, execution=execution)
    found, _ = one_round(algorithm, problem, started(problem), engine=engine)
    np.testing.assert_allclose(hidden(found), (2, 2, 3, 3), rtol=1e-6)


def test_coordinates_that_nobody_holds_keep_their_values():
    problem = digits_problem((4, 12), (4,))
    algorithm = build("heterofl", problem, levels=(1, 1), masked_loss=False, **HALVES)
    start = started(problem)
    found, _ = one_round(setting(algorithm, (1.0, 3.0)), problem, start)
    kernel = [np.asarray(v.params["blocks"][1]["Dense_0"]["kernel"]) for v in (found, start)]
    np.testing.assert_allclose(kernel[0][:2], 2, rtol=1e-6)
    np.testing.assert_array_equal(kernel[0][2:], kernel[1][2:])


def test_taking_sub_networks_and_merging_them_without_training_changes_nothing():
    problem = digits_problem()
    algorithm = build("heterofl", problem, levels=(0, 1, 1, 0, 1, 1, 1, 0), **HALVES)
    start = started(problem)
    idle = lambda route, start, data, task: ClientResult(
        jax.tree.map(jnp.zeros_like, masks.split(start.params, route)[0]),
        start.stats,
        jnp.float32(0),
        jnp.int32(1),
    )
    found, _ = one_round(algorithm._replace(local=idle), problem, start)
    chex.assert_trees_all_equal(found, start)


def logits_problem(labels=(0, 1)):
    """One client with samples of these classes of three, and a network with a hidden layer."""
    x = np.ones((len(labels), 2), np.float32)
    y = np.asarray(labels, np.int32)
    data = from_arrays(x, y, x, y, clients=[list(range(len(y)))], num_classes=3)
    return Problem(mlp((2,), 3, hidden=(2,)), data, fleet(1))


def with_logits(problem, logits):
    start = started(problem)
    last = {"bias": jnp.asarray(logits, jnp.float32), "kernel": jnp.zeros((2, 3), jnp.float32)}
    blocks = (start.params["blocks"][0], {"Dense_0": last})
    return Variables({**start.params, "blocks": blocks}, start.stats)


@pytest.mark.parametrize(
    ("options", "loss"),
    [({}, 0.40761), ({"masked_loss": False}, 0.34901), ({"levels": (0,)}, 0.40761)],
)
def test_logits_of_absent_classes_are_zero_in_the_loss(options, loss):
    """Minus infinity would give 0.31326, the value without the third class."""
    problem = logits_problem(labels=(0, 0, 0, 1))
    algorithm = build("heterofl", problem, rates=(1.0, 0.5), **TRAINING, **options)
    # Only the three samples of class 0, in one step, from which the last one is removed.
    algorithm = algorithm._replace(local=of_class_zero(algorithm))
    _, outputs = one_round(algorithm, problem, with_logits(problem, (2.0, 1.0, -1.0)))
    assert float(outputs.loss[0]) == pytest.approx(loss, abs=1e-5)


def of_class_zero(algorithm):
    """Training on samples whose labels are all 0, while the client has the classes 0 and 1."""

    def local(route, start, data, task):
        return algorithm.local(
            route, start, dataclasses.replace(data, y=jnp.zeros_like(data.y)), task
        )

    return local


def test_the_scaler_doubles_hidden_outputs_in_training_and_not_in_evaluations():
    problem = digits_problem((4, 12), (4,))
    own = networks(problem, (1.0, 0.5))
    route = Route(0, 1, width=1)
    variables = started(problem)
    part = own.submodels(own.assignment(options(), levels=(1, 1), shares=None, dynamic=False))
    _, narrow = part.models((), variables)["width_0.5"]
    x = jnp.asarray(problem.data.x[:3])
    plain, scaled = (own.network(route, jnp.int32(1), scaled=s) for s in (False, True))

    def layer(model, train):
        key = jax.random.key(0)
        return np.asarray(model.forward_to(narrow, x, 0, train=train, key=key)[0])

    assert np.any(layer(plain, True) > 0)
    np.testing.assert_allclose(layer(scaled, True), 2 * layer(plain, True), rtol=1e-6)
    np.testing.assert_array_equal(layer(scaled, False), layer(plain, True))


def options(**more):
    return UniformTraining(**TRAINING, **more)


# ---- rows of absent classes ----------------------------------------------------------------------


def classes_problem(exits=False):
    """Client 0 has the classes 0 and 1, client 1 the classes 1 and 2; nobody has the class 3."""
    x = np.linspace(0, 1, 24, dtype=np.float32).reshape(8, 3)
    y = np.asarray([0, 1, 0, 1, 1, 2, 1, 2], np.int32)
    data = from_arrays(x, y, x, y, clients=[[0, 1, 2, 3], [4, 5, 6, 7]], num_classes=4)
    model = mlp((3,), 4, hidden=(4, 4))
    return Problem(models.with_exits(model) if exits else model, data, fleet(2))


def test_rows_of_absent_classes_are_the_mean_over_those_who_have_samples_of_them():
    problem = classes_problem()
    algorithm = build("heterofl", problem, levels=(0, 1), **HALVES)
    start = started(problem)
    found, _ = one_round(setting(algorithm, (1.0, 3.0)), problem, start)
    last = [np.asarray(v.params["blocks"][2]["Dense_0"]["bias"]) for v in (found, start)]
    np.testing.assert_allclose(last[0][:3], (1, 2, 3), rtol=1e-6)
    assert last[0][3] == last[1][3]
    kernel = np.asarray(found.params["blocks"][2]["Dense_0"]["kernel"])
    # The third and fourth unit belong to the client of level 0 alone.
    np.testing.assert_allclose(kernel[:2, :3], [(1, 2, 3)] * 2, rtol=1e-6)
    np.testing.assert_allclose(kernel[2:, :2], 1, rtol=1e-6)
    np.testing.assert_allclose(
        found.params["blocks"][0]["Dense_0"]["bias"], (2, 2, 1, 1), rtol=1e-6
    )


def test_rows_of_absent_classes_are_masked_in_the_heads_of_exits_too():
    problem = classes_problem(exits=True)
    own = networks(problem, (1.0, 0.5))
    mask = last_rows(problem.model, own, jnp.asarray([True, True, False, False]))
    rows = lambda part: [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(part)]
    assert rows(mask["blocks"][:2]) == [True] * 4
    assert rows(mask["blocks"][2]) == [[True, True, False, False]] * 2
    assert len(mask["exits"]) == 2
    for head in mask["exits"]:
        assert [True, True, False, False] in rows(head)


def test_levels_and_exits_agree_in_masked_and_routed_execution():
    problem = classes_problem(exits=True)
    algorithm = build("heterofl", problem, levels=(0, 1), **HALVES)
    start = started(problem)
    found = [
        one_round(algorithm, problem, start, engine=make_engine(algorithm, problem, execution=how))[
            0
        ]
        for how in ("routed", "masked")
    ]
    assert_close(found[0], found[1], rtol=2e-5, atol=2e-6)
    chex.assert_trees_all_equal(found[0].params["exits"], start.params["exits"])


# ---- levels --------------------------------------------------------------------------------------


def planned(algorithm, problem, **now):
    variables = started(problem)
    state = algorithm.init(variables, jax.random.key(0))
    return algorithm.plan(state, variables, situation(problem, **now))[0]


def level_of(plan):
    return [route.width for route in plan.routes]


def test_devices_train_the_widest_level_that_they_afford():
    problem = digits_problem()
    algorithm = build("heterofl", problem, **HALVES)
    shares = networks(problem, (1.0, 0.5)).shares
    speed = problem.fleet.flops_per_s / np.max(problem.fleet.flops_per_s)
    assert level_of(planned(algorithm, problem)) == [int(s < 1) for s in speed]
    assert 0.25 < shares[1] < 0.5  # the narrow one is affordable at half the speed
    kinds = algorithm.submodels.of_client
    assert kinds == tuple("width_1" if s == 1 else "width_0.5" for s in speed)


def test_shares_give_the_fastest_devices_the_widest_levels_for_the_whole_run():
    problem = digits_problem()
    algorithm = build(
        "heterofl", problem, rates=(1.0, 0.5, 0.25), shares=(0.25, 0.5, 0.25), **TRAINING
    )
    levels = level_of(planned(algorithm, problem))
    assert levels == level_of(planned(algorithm, problem, round=5, seed=3))
    assert np.bincount(levels).tolist() == [2, 4, 2]
    speed = problem.fleet.flops_per_s
    assert min(speed[np.asarray(levels) == 0]) >= max(speed[np.asarray(levels) == 1])


def test_dynamic_levels_are_drawn_anew_with_the_shares():
    problem = digits_problem()
    chances = (0.2, 0.5, 0.3)
    algorithm = build(
        "heterofl", problem, rates=(1.0, 0.5, 0.25), shares=chances, dynamic=True, **TRAINING
    )
    drawn = [level_of(planned(algorithm, problem, seed=seed)) for seed in range(60)]
    assert len({tuple(levels) for levels in drawn}) > 50
    np.testing.assert_allclose(np.bincount(np.ravel(drawn)) / 480, chances, atol=0.08)
    assert algorithm.submodels.of_client is None
    assert algorithm.plans_ahead


def test_a_rate_of_the_server_need_not_be_one_of_the_clients():
    problem = digits_problem((4, 12), (4,))
    algorithm = build("heterofl", problem, rates=(0.5,), **TRAINING)
    assert level_of(planned(algorithm, problem)) == [1, 1]
    models_of = algorithm.submodels.models((), started(problem))
    assert list(models_of) == ["width_0.5"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rates": ()}, "rates = .* the largest first"),
        ({"rates": (0.5, 1.0)}, "the largest first"),
        ({"rates": (1.0, 0.0)}, r"in \(0, 1\]"),
        ({"levels": (0,)}, "levels of shape .* each of the 8 clients"),
        ({"levels": (2,) * 8}, "index into the 2 rates"),
        ({"levels": (0,) * 8, "shares": (0.5, 0.5)}, "each says which rates"),
        ({"levels": (0,) * 8, "dynamic": True}, "each says which rates"),
        ({"shares": (0.5, 0.4)}, "with the sum 1"),
        ({"shares": (1.0,)}, "one for each rate"),
        ({"shares": (1.5, -0.5)}, "numbers >= 0"),
        ({"static_norm": True}, "no running statistics"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        build("heterofl", digits_problem(), **{**HALVES, **given})


def test_a_masked_loss_needs_logits_of_classes():
    problem = digits_problem()
    data = dataclasses.replace(
        problem.data,
        y=problem.data.y.astype(np.float32),
        test_y=problem.data.test_y.astype(np.float32),
        num_classes=0,
    )
    numbers = Problem(
        mlp((64,), 1, hidden=(4,)), data, problem.fleet, objective=objective_of("regression")
    )
    with pytest.raises(InputError, match=r"masked_loss = True .* and its outputs are none"):
        build("heterofl", numbers, masked_loss=True, **HALVES)
    assert build("heterofl", numbers, **HALVES).mask is None


# ---- prices --------------------------------------------------------------------------------------


def test_clients_pay_for_the_slice_that_they_train():
    problem = digits_problem((4, 12), (8, 8))
    algorithm = build("heterofl", problem, levels=(1, 0), **HALVES)
    timing = planned(algorithm, problem).timing
    narrow = 4 * (64 * 4 + 4 + 4 * 4 + 4 + 4 * 10 + 10)
    whole = 4 * (64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10)
    assert timing.bytes_up.tolist() == [narrow, whole]
    assert timing.bytes_down.tolist() == [narrow, whole]
    own = networks(problem, (1.0, 0.5))
    # Hidden layers cost the product of the rates of their inputs and outputs.
    forward, back = (
        [getattr(cost, name) for cost in own.costs]
        for name in ("forward_flops", "weight_grad_flops")
    )
    for flops in (forward, back):
        np.testing.assert_allclose(flops[1] / flops[0], (1 / 2, 1 / 4, 1 / 2), atol=0.04)
    step = float(cost_table(problem.model).step_flops())
    work = timing.compute_s * problem.fleet.at(0).flops_per_s
    np.testing.assert_allclose(work, [own.shares[1] * step * 4, step * 12], rtol=1e-9)


# ---- as FedAvg -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [digits_problem, batch_norm_problem])
def test_of_complete_networks_only_it_is_fedavg_with_equal_weights(make):
    problem = make()
    start = started(problem)
    options = {**TRAINING, "momentum": 0.9, "epochs": 2}
    own = build("heterofl", problem, rates=(1.0,), masked_loss=False, **options)
    other = build("fedavg", problem, weighting="uniform", **options)
    ours, theirs = (one_round(a, problem, start)[0] for a in (own, other))
    assert_close(ours.params, theirs.params)


@functools.cache
def short_run():
    problem = digits_problem()
    algorithm = build("heterofl", problem, levels=(0, 1) * 4, **HALVES)
    return fh.simulate(algorithm, problem, rounds=2)


def test_records_have_the_metrics_of_every_level():
    row = short_run().record.metrics[-1]
    assert row["accuracy"] == row["accuracy[width_1]"]
    assert {"loss[width_0.5]", "accuracy[width_0.5]", "local_accuracy"} <= set(row)


def test_the_task_of_a_client_tells_its_level():
    problem = digits_problem((4, 12), (4,))
    algorithm = build("heterofl", problem, levels=(1, 0), masked_loss=False, **HALVES)
    told = algorithm._replace(
        local=lambda route, start, data, task: ClientResult(
            jax.tree.map(jnp.zeros_like, masks.split(start.params, route)[0]),
            start.stats,
            task.width.astype(jnp.float32),
            jnp.int32(1),
        )
    )
    for execution in ("routed", "masked"):
        engine = make_engine(told, problem, execution=execution)
        _, outputs = one_round(told, problem, started(problem), engine=engine)
        assert outputs.loss.tolist() == [1.0, 0.0]
    assert Task._fields[-1] == "width"
