"""What FedEL's tensors are worth: probes, movement of the global model, and their blend."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import exits_problem

from fedjax_het.algorithms.fedel import importance
from fedjax_het.algorithms.fedel.tensors import tensor_times
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.plan import Question


def test_local_importance_of_a_quadratic():
    # methods/fedel.md check 14: L = |w|^2 / 2 and plain SGD give raw_k = -eta (1 - eta) |w_k|^2.
    params = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([[3.0]])}
    before = jax.tree.map(np.asarray, params)

    def loss(p):
        return 0.5 * optax.tree.norm(p, squared=True)

    for momentum in (None, 0.9):
        raw = importance.step_products(loss, optax.sgd(0.1, momentum), params)
        assert float(raw["a"]) == pytest.approx(-0.1 * 0.9 * 5, rel=1e-6)
        assert float(raw["b"]) == pytest.approx(-0.1 * 0.9 * 9, rel=1e-6)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, params), before)
    normal = importance.normalise(-jnp.stack([raw["a"], raw["b"]]))
    np.testing.assert_allclose(normal, [5 / 9, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(importance.normalise(jnp.zeros(3)), np.zeros(3))


def test_a_step_that_overshoots_makes_a_tensor_look_harmful_and_a_small_one_does_not():
    """On a quadratic of curvature 30 a step of 0.1 triples the error of a, a hundredth does not."""
    params = {"a": jnp.asarray([1.0]), "b": jnp.asarray([1.0])}

    def loss(p):
        return 15.0 * jnp.sum(p["a"] ** 2) + 0.5 * jnp.sum(p["b"] ** 2)

    real = importance.step_products(loss, optax.sgd(0.1), params)
    small = importance.step_products(loss, optax.chain(optax.sgd(0.1), optax.scale(0.01)), params)
    assert float(real["a"]) > 0 > float(real["b"])
    # Nearly in proportion to the squared gradients, 900 and 1.
    assert float(small["a"]) / float(small["b"]) == pytest.approx(900, rel=0.05)
    assert float(small["a"]) < 0


def _two_models(delta):
    def of(value):
        return Variables({"blocks": ({"w": jnp.asarray(value, jnp.float32)},), "exits": ()}, {})

    return of([1.0, 2.0]), of([1.0 + delta[0], 2.0 + delta[1]])


def test_global_importance_is_the_squared_movement():
    # methods/fedel.md check 13: the step of the paper's formula cancels in the normalisation.
    index = ({"w": 0},)
    moved = importance.movement(index, *_two_models((0.1, -0.2)))
    assert float(moved[0]) / 0.1 == pytest.approx(0.5, rel=1e-5)
    three = jnp.asarray([0.5, 0.0, 2.0])
    np.testing.assert_allclose(importance.normalise(three), importance.normalise(three * 4))


def test_blend_of_local_and_global_importance():
    local = jnp.asarray([[1.0, 0.5, -1.0]])
    moved = jnp.asarray([1.0, 0.0, 4.0])
    np.testing.assert_allclose(
        importance.blend(local, moved, 0.6, False), [[0.7, 0.3, -0.2]], rtol=1e-6
    )
    # methods/fedel.md check 13: beta 1 is ElasticTrainer; with beta 0 a tensor that nobody trained
    # is never worth anything.
    np.testing.assert_array_equal(importance.blend(local, moved, 1.0, False), local)
    assert float(importance.blend(local, moved, 0.0, False)[0, 1]) == 0.0
    assert float(importance.blend(local, moved, 0.0, True)[0, 1]) == 0.5
    # Before the first merge there is no global signal.
    np.testing.assert_array_equal(importance.blend(local, jnp.zeros(3), 0.0, False), local)


def test_the_probe_steps_as_the_schedule_says():
    """Half of a step of 0.8 by the schedule is a step of 0.4 by the option."""
    problem = exits_problem()
    start = problem.model.init(jax.random.key(0))
    training = TrainingOptions(learning_rate=0.5, batch_size=4)
    index = tensor_times(problem.model, problem.cost).index
    who, batch, exit = np.arange(3), np.full(3, 4), np.array([2, 1, 2])
    told = [
        importance.cohort_probe(problem, training, index, importance.Probe(step=step))(
            start, Question(who, jax.random.key(1), {"batch": batch, "exit": exit}, scale)
        )
        for step, scale in ((0.8, 0.5), (0.4, 1.0), (0.8, 1.0))
    ]
    np.testing.assert_allclose(told[0], told[1], rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(np.asarray(told[0]) - told[2])) > 1e-3


def probed(probe, learning_rate):
    problem = exits_problem()
    training = TrainingOptions.parse({"learning_rate": learning_rate, "batch_size": 4})
    times = tensor_times(problem.model, problem.cost)
    everyone = np.arange(problem.num_clients)
    twos = np.full(len(everyone), 2)
    return np.asarray(
        importance.cohort_probe(problem, training, times.index, probe)(
            problem.model.init(jax.random.key(0)),
            Question(everyone, jax.random.key(1), {"batch": twos, "exit": twos}, 1.0),
        )
    )


def test_the_gradient_norm_is_what_small_steps_of_sgd_approach():
    """It is positive whatever the rate; the literal step is not, and that is counted."""
    norms = probed(importance.Probe(measure="gradient"), 50.0)
    assert norms.min() >= 0
    np.testing.assert_allclose(
        probed(importance.Probe(step=1e-3), 1e-3), norms, rtol=1e-2, atol=1e-3
    )
    literal = probed(importance.Probe(), 50.0)
    reached = np.ones(literal.shape, bool)
    share = importance.positive_share(literal, reached)
    assert share.mean() < 0.8
    np.testing.assert_array_equal(share, np.mean(literal > 0, axis=1))
    np.testing.assert_array_equal(importance.positive_share(norms, norms > 0), 1.0)


def test_the_default_is_elastic_trainer_s_whole_step():
    assert importance.Probe() == importance.Probe(head="full", measure="step", step=1.0)
