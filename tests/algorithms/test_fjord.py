"""FjORD (methods/widths.md 4, check 4): ordered dropout, check by check."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import digits_problem, one_round, situation

from fedjax_het.algorithms import build
from fedjax_het.algorithms.fjord import drawn, expected_shares
from fedjax_het.algorithms.networks import networks
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common.errors import InputError
from fedjax_het.contract import masks, widths
from fedjax_het.contract.algorithm import ClientResult, Task
from fedjax_het.contract.masks import Route
from fedjax_het.engine.engine import make_engine
from fedjax_het.models.mlp import mlp
from fedjax_het.objectives import build as objective_of
from fedjax_het.problem import Problem

RATES = (1.0, 0.8, 0.6, 0.4, 0.2)
TRAINING = {"learning_rate": 0.1, "batch_size": 4}


def started(problem, seed=0):
    return problem.model.init(jax.random.key(seed))


def bias(variables):
    return np.asarray(variables.params["blocks"][0]["Dense_0"]["bias"])


def test_coordinates_are_the_mean_by_samples_over_the_clients_that_hold_them():
    """Widths 2 and 4, samples 10 and 30, values 1 and 3."""
    problem = digits_problem((10, 30), (4,))
    algorithm = build("fjord", problem, rates=(1.0, 0.5), levels=(1, 0), **TRAINING)

    def local(route, start, data, task):
        del data
        value = jnp.asarray((1.0, 3.0), jnp.float32)[task.client]
        trained = masks.split(start.params, route)[0]
        delta = jax.tree.map(lambda w: jnp.broadcast_to(value, w.shape) - w, trained)
        delta = masks.apply(task.mask, delta)
        return ClientResult(delta, start.stats, jnp.float32(0), jnp.int32(1))

    found, _ = one_round(algorithm._replace(local=local), problem, started(problem))
    np.testing.assert_allclose(bias(found), (2.5, 2.5, 3, 3), rtol=1e-6)


def test_networks_are_nested():
    """Weights outside of the first units change nothing in the network of these units."""
    problem = digits_problem((10, 30), (10, 10))
    own = networks(problem, RATES)
    level = own.rates.index(0.4)
    variables = started(problem)
    inside = widths.members(own.layout, own.counts[level], None)
    other = jax.tree.map(
        lambda w, keep: jnp.where(jnp.broadcast_to(keep, w.shape), w, w + 7.0), variables, inside
    )
    assigned = own.assignment(_options(), levels=(level, level), shares=None, dynamic=False)
    models = own.submodels(assigned).models
    x = jnp.asarray(problem.data.x[:5])
    for name, changes in (("width_0.4", False), ("width_0.2", False), ("width_0.6", True)):
        one, two = (models((), v)[name] for v in (variables, other))
        a, b = (np.asarray(model.apply(v, x)[0]) for model, v in (one, two))
        assert np.array_equal(a, b) != changes


def _options(**more):
    return TrainingOptions(**TRAINING, **more)


def test_the_mean_of_the_widths_of_tier_six_tenths_is_four_tenths():
    own = networks(digits_problem((10, 30), (10,)), RATES)
    keys = jax.random.split(jax.random.key(3), 6000)
    for tier, mean in ((0, 0.6), (2, 0.4), (4, 0.2)):
        positions = jax.vmap(lambda key, tier=tier: drawn(own, key, tier))(keys)
        found = np.asarray(own.rates)[np.asarray(own.allowed)[positions]]
        counts = np.unique(found, return_counts=True)[1]
        assert len(counts) == 5 - tier
        assert np.mean(found) == pytest.approx(mean, abs=0.01)
        assert np.all(np.abs(counts / 6000 - 1 / len(counts)) < 0.03)
        traced = jax.vmap(lambda key, t: drawn(own, key, t), (0, None))(keys, jnp.int32(tier))
        np.testing.assert_array_equal(positions, traced)


def test_rates_without_the_complete_network_are_drawn_among_themselves():
    own = networks(digits_problem((10, 30), (10,)), (0.6, 0.2))
    assert own.allowed == (1, 2)
    keys = jax.random.split(jax.random.key(3), 100)
    for tier, places in ((1, {0, 1}), (2, {1})):
        positions = jax.vmap(lambda key, tier=tier: drawn(own, key, tier))(keys)
        assert set(np.asarray(positions).tolist()) == places


# ---- a step --------------------------------------------------------------------------------------


@functools.cache
def one_client():
    return digits_problem((4,), (5, 5))


def step_by_hand(own, variables, level, teacher=None):
    """Parameters after a step of SGD on the first units, in the shapes of the model."""
    problem = own.problem
    x, y = jnp.asarray(problem.data.x), jnp.asarray(problem.data.y)

    def logits(params, level):
        own_part = widths.take(
            own.layout, own.counts[level], variables._replace(params=params), None
        )
        return own.models[level].apply(own_part, x)[0]

    def loss(params):
        student = logits(params, level)
        labels = optax.losses.softmax_cross_entropy_with_integer_labels
        if teacher is None:
            return jnp.mean(labels(student, y))
        wanted = jax.nn.softmax(logits(variables.params, teacher))  # a constant
        told = -jnp.sum(wanted * jax.nn.log_softmax(student), axis=-1)
        return jnp.mean(labels(logits(params, teacher), y)) + jnp.mean(told)

    value, grads = jax.value_and_grad(loss)(variables.params)
    return value, jax.tree.map(lambda w, g: w - 0.1 * g, variables.params, grads)


def drawn_levels(algorithm, own, execution, seeds, teacher=None):
    """The levels whose step by hand is that of the client of level 1, with one seed each."""
    problem, start = own.problem, started(own.problem)
    engine = make_engine(algorithm, problem, execution=execution)
    wanted = {level: step_by_hand(own, start, level, teacher) for level in range(1, 5)}
    found = []
    for seed in range(seeds):
        merged, outputs = one_round(algorithm, problem, start, engine=engine, seed=seed)

        def far(level, params=merged.params):
            gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), params, wanted[level][1])
            return max(map(float, jax.tree.leaves(gaps)))

        level = min(wanted, key=far)
        assert far(level) < 1e-6
        assert float(outputs.loss[0]) == pytest.approx(float(wanted[level][0]), rel=1e-5)
        found.append(level)
    return found


def _kernel(variables):
    return np.asarray(variables.params["blocks"][0]["Dense_0"]["kernel"])


@pytest.mark.parametrize("distill", [False, True])
def test_a_step_trains_the_drawn_width_and_a_teacher_gets_no_gradient_from_it(distill):
    problem = one_client()
    algorithm = build("fjord", problem, rates=RATES, levels=(1,), distill=distill, **TRAINING)
    own = networks(problem, RATES)
    teacher = 1 if distill else None
    native = drawn_levels(algorithm, own, "routed", 6, teacher)
    assert len(set(native)) > 1
    # On the route of the complete network, the same widths are drawn.
    assert drawn_levels(algorithm, own, "masked", 3, teacher) == native[:3]


def test_weight_decay_acts_on_all_units_of_the_tier():
    problem = one_client()
    algorithm = build("fjord", problem, rates=RATES, levels=(1,), weight_decay=0.5, **TRAINING)
    start = started(problem)
    for execution in ("routed", "masked"):
        engine = make_engine(algorithm, problem, execution=execution)
        found, _ = one_round(algorithm, problem, start, engine=engine)
        moved = np.any(_kernel(found) != _kernel(start), axis=0)
        assert moved.tolist() == [True] * 4 + [False]


def test_the_program_of_a_tier_has_one_branch_for_each_width():
    """Products of a branch have the sizes of its width."""
    problem = one_client()
    algorithm = build("fjord", problem, rates=(1.0, 0.6, 0.2), levels=(0,), **TRAINING)
    own = networks(problem, (1.0, 0.6, 0.2))
    for tier in range(3):
        route = Route(0, 2, width=tier)
        start = widths.take(own.layout, own.counts[tier], started(problem), None)
        data = problem.data.device()
        task = _task(tier)
        program = jax.make_jaxpr(lambda s, d, t, r=route: algorithm.local(r, s, d, t))(
            start, data, task
        )
        text = str(program)
        units = [own.counts[level]["fc1/Dense_0/bias"] for level in range(tier, 3)]
        assert units == [5, 3, 1][tier:]
        assert all(f"f32[4,{each}] = dot_general" in text for each in units)
        assert all(f"f32[4,{each}] = dot_general" not in text for each in {5, 3, 1} - set(units))


def _task(tier):
    whole = jnp.int32(1)
    return Task(
        client=jnp.int32(0),
        key=jax.random.key(0),
        steps=whole,
        loop_steps=whole,
        batch=jnp.int32(4),
        learning_rate_scale=jnp.float32(1),
        exit=jnp.int32(2),
        mask=None,
        row=None,
        shared=None,
        width=jnp.int32(tier),
    )


# ---- prices and refusals -------------------------------------------------------------------------


def test_the_clock_charges_the_expected_work_and_the_widest_network():
    problem = digits_problem((4, 12), (10, 10))
    algorithm = build("fjord", problem, rates=RATES, levels=(0, 2), **TRAINING)
    own = networks(problem, RATES)
    variables = started(problem)
    plan, _ = algorithm.plan((), variables, situation(problem))
    work = plan.timing.compute_s * problem.fleet.at(0).flops_per_s
    steps = np.asarray([float(cost.step_flops()) for cost in own.costs])
    np.testing.assert_allclose(work, [4 * steps.mean(), 12 * steps[2:].mean()])
    assert plan.timing.bytes_up.tolist() == [
        int(own.costs[level].upload_bytes(0, None)) for level in (0, 2)
    ]
    taught = expected_shares(own, True) - expected_shares(own, False)
    np.testing.assert_allclose(taught, own.shares)


def test_distillation_needs_logits_of_classes():
    plain = digits_problem()
    numbers = dataclasses.replace(
        plain.data,
        y=plain.data.y.astype(np.float32),
        test_y=plain.data.test_y.astype(np.float32),
        num_classes=0,
    )
    problem = Problem(
        mlp((64,), 1, hidden=(4,)), numbers, plain.fleet, objective=objective_of("regression")
    )
    with pytest.raises(InputError, match=r"distill = True .* its outputs are none"):
        build("fjord", problem, rates=RATES, distill=True, **TRAINING)
    assert build("fjord", problem, rates=RATES, **TRAINING).name == "fjord"
