"""FedAvg with an optimiser on the server (Reddi et al. 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, differ, digits_problem, scalar_problem, scalars, values_of

from fedjax_het.algorithms import build, fedopt
from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Merged
from fedjax_het.simulation.simulate import simulate
from fedjax_het.transforms.server import scale_by_fedopt

TRAINING = {"learning_rate": 0.1, "batch_size": 4}


def one_step(moment, gradient=-1.0, **moments):
    transform = scale_by_fedopt(moment, **moments)
    params = {"w": jnp.float32(0.0)}
    updates, state = transform.update({"w": jnp.float32(gradient)}, transform.init(params))
    return float(updates["w"]), float(state[0]["w"]), float(state[1]["w"])


def test_yogi_golden():
    """w = 0, Delta = 1: m = .1, v = 1e-6 + .01 = .010001, w = eta .1 / (sqrt(v) + .001)."""
    step, m, v = one_step("yogi")
    assert m == pytest.approx(-0.1)
    assert v == pytest.approx(0.010001)
    assert -step == pytest.approx(0.99005, abs=5e-6)


def test_adam_and_yogi_differ_in_the_second_moment():
    step, _, v = one_step("adam")
    assert v == pytest.approx(0.99e-6 + 0.01)
    assert -step == pytest.approx(0.1 / (np.sqrt(v) + 1e-3), rel=1e-5)
    # Small gradients after large ones: Yogi's v falls by a fixed amount, Adam's by a factor.
    for moment, wanted in (("yogi", 1.0 - 0.01 * 0.25), ("adam", 0.99 + 0.01 * 0.25)):
        transform = scale_by_fedopt(moment)
        params = {"w": jnp.float32(0.0)}
        state = (params, {"w": jnp.float32(1.0)})
        _, state = transform.update({"w": jnp.float32(0.5)}, state)
        assert float(state[1]["w"]) == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["fedyogi", "fedadam"])
def test_the_server_moves_along_the_mean_update(name):
    """The golden again, through the algorithm: clients want to go from 0 to 1."""
    problem = scalar_problem()
    algorithm = build(name, problem, server_learning_rate=0.5, **TRAINING)
    start = scalars([0.0] * 4)
    state = algorithm.init(start, jax.random.key(0))
    state, variables = algorithm.update(state, start, Merged(scalars([1.0] * 4)))
    v = 0.010001 if name == "fedyogi" else 0.99e-6 + 0.01
    np.testing.assert_allclose(values_of(variables), 0.5 * 0.1 / (np.sqrt(v) + 1e-3), rtol=1e-5)
    # The momentum goes on where the clients agree with the server.
    _, again = algorithm.update(state, variables, Merged(variables))
    assert np.all(values_of(again) > values_of(variables))


def test_plain_descent_on_the_server_is_fedavg():
    problem = digits_problem(hidden=(8,))
    fedavg = build("fedavg", problem, **TRAINING)
    plain = fedopt(problem, server_optimizer=optax.sgd(1.0), **TRAINING)
    momentum = fedopt(problem, server_optimizer=optax.sgd(1.0, momentum=0.9), **TRAINING)
    wanted, same, other = (
        simulate(a, problem, rounds=2, chunk=1).variables for a in (fedavg, plain, momentum)
    )
    assert_close(same, wanted, atol=1e-6)
    assert differ(other.params, wanted.params)


def test_layers_that_nobody_moves_stay(monkeypatch):
    """A pseudo-gradient of zero gives a step of zero, until momentum has built up."""
    problem = scalar_problem()
    algorithm = build("fedadam", problem, **TRAINING)
    start = scalars([1.0, 2.0, 3.0, 4.0])
    state = algorithm.init(start, jax.random.key(0))
    _, variables = algorithm.update(state, start, Merged(scalars([1.0, 2.0, 3.0, 5.0])))
    moved = values_of(variables) - values_of(start)
    np.testing.assert_array_equal(moved[:3], np.zeros(3))
    assert moved[3] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"server_learning_rate": 0.0},
        {"tau": 0.0},
        {"b1": 1.0},
        {"b2": -0.1},
        {"server_optimizer": "lion"},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(InputError, match=next(iter(options))):
        build("fedyogi", scalar_problem(), **TRAINING, **options)
