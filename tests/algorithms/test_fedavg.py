"""FedAvg, FedProx and the arm that drops stragglers (methods/baselines.md 1, 2, 3, 10)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from methods import SETTINGS
from problems import (
    NOW,
    assert_close,
    differ,
    digits,
    digits_problem,
    fleet,
    make_plan,
    one_round,
    scalar_problem,
    scalars,
    situation,
    values_of,
)

from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.data.federated import from_arrays
from fedjax_het.engine.engine import make_engine
from fedjax_het.objectives import Objective
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4}
RATE = 0.1


@pytest.fixture(scope="module")
def problem():
    return digits_problem(hidden=(8,))


@pytest.fixture(scope="module")
def start(problem):
    return problem.model.init(jax.random.key(0))


def gradients(problem, start):
    """Gradient of every client's mean loss at `start`, one tree a client."""

    @jax.jit
    def grad(x, y):
        def loss(params):
            logits, _ = problem.model.apply(start._replace(params=params), x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return jax.grad(loss)(start.params)

    data = problem.data
    ids = [data.client_samples(k) for k in range(problem.num_clients)]
    return [jax.device_get(grad(data.x[i], data.y[i])) for i in ids]


# ---- FedAvg ----------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_one_full_batch_step_is_the_weighted_gradient_step(weighting):
    """w - lr sum_k (n_k / n) grad_k; a tiny client has as little weight as it has samples."""
    problem = digits_problem((2, 8), hidden=(8,))
    start = problem.model.init(jax.random.key(0))
    algorithm = build("fedavg", problem, learning_rate=RATE, batch_size=8, weighting=weighting)
    merged, outputs = one_round(algorithm, problem, start, chunk=1)
    share = [0.2, 0.8] if weighting == "samples" else [0.5, 0.5]
    wanted = jax.tree.map(
        lambda w, a, b: np.asarray(w) - RATE * (share[0] * a + share[1] * b),
        start.params,
        *gradients(problem, start),
    )
    assert_close(merged.params, wanted)
    np.testing.assert_array_equal(outputs.samples, [2, 8])


def test_identical_clients_are_one_centralised_client(problem):
    x, y = problem.data.x[:8], problem.data.y[:8]
    results = []
    for copies in (1, 3):
        data = from_arrays(
            np.tile(x, (copies, 1)),
            np.tile(y, copies),
            x,
            y,
            clients=np.repeat(np.arange(copies), 8),
            num_classes=10,
        )
        setting = Problem(problem.model, data, fleet(copies))
        algorithm = build("fedavg", setting, learning_rate=RATE, batch_size=8, local_steps=2)
        results.append(simulate(algorithm, setting, rounds=3, chunk=1).variables)
    assert_close(*results, atol=1e-6)


def test_sampling_takes_distinct_clients_and_everybody_gets_a_turn(problem):
    algorithm = build("fedavg", problem, clients_per_round=3, **TRAINING)
    result = simulate(algorithm, problem, rounds=12)
    cohorts = [
        [row["client"] for row in result.record.clients if row["step"] == step]
        for step in range(1, 13)
    ]
    assert all(len(set(cohort)) == 3 for cohort in cohorts)
    assert {client for cohort in cohorts for client in cohort} == set(range(8))


def test_the_plan_counts_steps_samples_and_weights(problem, start):
    sizes = problem.data.sizes
    algorithm = build("fedavg", problem, epochs=3, **TRAINING)
    plan, _ = algorithm.plan((), start, situation(problem))
    assert plan.steps.tolist() == [3 * -(-n // 4) for n in sizes]
    assert plan.batch.tolist() == np.minimum(4, sizes).tolist()
    np.testing.assert_array_equal(plan.weight, sizes)
    flops = problem.cost.step_flops() * 3 * sizes
    np.testing.assert_array_equal(plan.timing.flops, flops)
    np.testing.assert_allclose(plan.timing.compute_s, flops / problem.fleet.flops_per_s)
    # Of three batches of a client with five samples (4 + 1, 4) nine samples are used.
    algorithm = build("fedavg", problem, local_steps=3, **TRAINING)
    plan, _ = algorithm.plan((), start, situation(problem))
    assert plan.steps.tolist() == [3] * 8
    assert plan.timing.flops[1] == problem.cost.step_flops() * 9
    _, outputs = one_round(algorithm, problem, start, plan, chunk=1)
    np.testing.assert_array_equal(outputs.samples * problem.cost.step_flops(), plan.timing.flops)


def test_a_device_twice_as_slow_takes_twice_as_long(problem):
    speed = np.full(8, 1e6)
    seconds = []
    for slowdown in (1.0, 2.0):
        speeds = speed.copy()
        speeds[2] /= slowdown
        setting = Problem(problem.model, problem.data, fleet(8, flops_per_s=speeds))
        algorithm = build("fedavg", setting, **TRAINING)
        plan, _ = algorithm.plan((), None, situation(setting))
        seconds.append(plan.timing)
    assert seconds[1].compute_s[2] == 2 * seconds[0].compute_s[2]
    np.testing.assert_array_equal(
        np.delete(seconds[1].total_s, 2), np.delete(seconds[0].total_s, 2)
    )


def test_devices_that_cannot_hold_the_model_are_refused(problem):
    need = int(problem.cost.memory_bytes(0, 1, 4))
    training = {"learning_rate": 0.1, "batch_size": 4}

    def setting(memory_bytes):
        memory = np.full(8, np.inf)
        memory[5] = memory_bytes
        return Problem(problem.model, problem.data, fleet(8, memory_bytes=memory))

    build("fedavg", setting(need), **training)
    with pytest.raises(InputError, match=r"clients \[5\] .* memory"):
        build("fedavg", setting(need - 1), **training)
    # Momentum is one more array per parameter.
    with pytest.raises(InputError, match=r"clients \[5\]"):
        build("fedavg", setting(need), momentum=0.9, **training)
    # Client 7 has two samples: its batches are no larger.
    memory = np.full(8, np.inf)
    memory[7] = int(problem.cost.memory_bytes(0, 1, 2))
    build("fedavg", Problem(problem.model, problem.data, fleet(8, memory_bytes=memory)), **training)


# ---- FedProx ---------------------------------------------------------------------------------


def test_fedprox_without_mu_is_fedavg_bit_for_bit(problem):
    fedavg = simulate(build("fedavg", problem, **TRAINING), problem, rounds=2)
    fedprox = simulate(build("fedprox", problem, mu=0.0, **TRAINING), problem, rounds=2)
    chex.assert_trees_all_equal(fedprox.variables, fedavg.variables)


@pytest.mark.parametrize(("mu", "wanted"), [(1.0, 1.5), (0.1, 30 / 11), (0.0, 3.0)])
def test_fedprox_golden_on_a_quadratic(mu, wanted):
    """f(w) = (w - 3)^2 / 2 from w_t = 0, solved to the end by our own local training."""

    def quadratic(outputs, batch):
        del batch
        return 0.5 * jnp.square(outputs[:, 0] - 3.0)

    setting, objective = scalar_problem((2,), blocks=1), Objective("quadratic", quadratic)
    # The output is w for an input of one.
    ones = Problem(setting.model, _ones(), setting.fleet, objective=objective)
    algorithm = build("fedprox", ones, mu=mu, learning_rate=0.5, batch_size=2, local_steps=60)
    merged, _ = one_round(algorithm, ones, scalars([0.0]), chunk=1)
    np.testing.assert_allclose(values_of(merged), [wanted], rtol=1e-5)


def _ones():
    x, y = np.ones((2, 1), np.float32), np.zeros(2, np.int32)
    return from_arrays(x, y, x, y, clients=np.zeros(2, int), num_classes=1)


def test_fedprox_stays_closer_to_the_round_s_model(problem, start):
    moved = []
    for mu in (0.0, 5.0):
        algorithm = build("fedprox", problem, mu=mu, local_steps=8, **TRAINING)
        merged, _ = one_round(algorithm, problem, start, chunk=1)
        step = jax.tree.map(np.subtract, *jax.device_get((merged.params, start.params)))
        moved.append(sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(step)))
    assert moved[1] < 0.7 * moved[0]


# ---- deadlines -------------------------------------------------------------------------------


def late_setting(problem):
    """Full steps for most; a deadline at which the slowest has done half of its four steps."""
    speed = np.full(8, 1e6)
    speed[2] = 2e5
    setting = Problem(problem.model, problem.data, fleet(8, flops_per_s=speed))
    options = {**TRAINING, "local_steps": 4}
    plan, _ = build("fedavg", setting, **options).plan((), None, situation(setting))
    timing = plan.timing
    deadline_s = float(timing.total_s[2] - 0.5 * timing.compute_s[2]) * (1 + 1e-9)
    assert np.all(np.delete(timing.total_s, 2) < deadline_s)
    return setting, options, deadline_s


def test_fedprox_keeps_partial_work_and_the_drop_arm_drops_it(problem):
    setting, options, deadline_s = late_setting(problem)
    prox = build("fedprox", setting, mu=0.0, deadline_s=deadline_s, **options)
    drop = build("drop_stragglers", setting, deadline_s=deadline_s, **options)
    before = []

    def plan(state, variables, situation):
        before.append(variables)
        return prox.plan(state, variables, situation)

    kept = simulate(prox._replace(plan=plan), setting, rounds=1, chunk=1)
    dropped = simulate(drop, setting, rounds=1, chunk=1)
    engine = make_engine(prox, setting, chunk=1)
    statuses = {r["client"]: (r["status"], r["steps"]) for r in kept.record.clients}
    assert statuses == {k: ("partial", 2) if k == 2 else ("merged", 4) for k in range(8)}
    statuses = {r["client"]: (r["status"], r["steps"]) for r in dropped.record.clients}
    assert statuses == {k: ("dropped", 0) if k == 2 else ("merged", 4) for k in range(8)}
    for result in (kept, dropped):
        assert result.faults == []
        assert result.record.metrics[-1]["virtual_s"] == pytest.approx(deadline_s)
    # The partial work is the first two steps; the dropped client is as if it had not been there.
    key = jax.random.fold_in(jax.random.split(jax.random.key(0), 4)[2], 0)
    steps = np.where(np.arange(8) == 2, 2, 4)

    def by_hand(**plan):
        acc, _ = engine.train((), before[0], make_plan(setting, **plan), key)
        return engine.close(acc, (), before[0], None, NOW)[1]

    assert_close(kept.variables, by_hand(steps=steps))
    assert_close(dropped.variables, by_hand(steps=4, clients=[0, 1, 3, 4, 5, 6, 7]))
    assert differ(kept.variables.params, dropped.variables.params)


def test_a_round_that_nobody_finishes_leaves_the_model_as_it_is(problem):
    """The fastest device can meet the deadline, but round 1 samples others."""
    speed = np.full(8, 1e4)
    speed[0] = 1e9
    setting = Problem(problem.model, problem.data, fleet(8, flops_per_s=speed))
    algorithm = build("drop_stragglers", setting, deadline_s=0.05, clients_per_round=1, **TRAINING)
    result = simulate(algorithm, setting, rounds=3)
    missed = [row for row in result.record.metrics[1:] if row["merged"] == 0]
    assert missed
    assert result.faults == []
    assert all(row["bytes_up"] == 0 and row["train_loss"] is None for row in missed)
    accuracy = [row["accuracy"] for row in result.record.metrics]
    for row in missed:
        assert accuracy[row["step"]] == accuracy[row["step"] - 1]


@pytest.mark.parametrize("name", ["fedprox", "drop_stragglers"])
@pytest.mark.parametrize("deadline_s", [0.0, -1.0, 1e-9, np.nan])
def test_deadlines_that_nobody_can_meet_are_refused(problem, name, deadline_s):
    with pytest.raises(InputError, match="deadline_s"):
        build(name, problem, deadline_s=deadline_s, **TRAINING)


@pytest.mark.parametrize("mu", [-0.1, np.nan, np.inf])
def test_mu_must_be_finite_and_not_negative(problem, mu):
    with pytest.raises(InputError, match="mu ="):
        build("fedprox", problem, mu=mu, **TRAINING)


def test_more_clients_than_there_are_cannot_be_sampled():
    setting = Problem(digits_problem(hidden=(8,)).model, digits(), fleet(8))
    with pytest.raises(InputError, match="clients_per_round = 9"):
        build("fedavg", setting, clients_per_round=9, **TRAINING)


# ---- the proximal term of every method ---------------------------------------------------------


def test_the_proximal_option_is_fedprox_and_adds_to_a_methods_own(problem):
    options = {**TRAINING, "epochs": 2}
    known = simulate(build("fedprox", problem, mu=0.5, **options), problem, rounds=1)
    for name, more in (("fedavg", {"proximal": 0.5}), ("fedprox", {"mu": 0.2, "proximal": 0.3})):
        same = simulate(build(name, problem, **options, **more), problem, rounds=1)
        assert_close(same.variables, known.variables)


@pytest.mark.parametrize("name", ["dtfl", "fedgkt"])
def test_split_networks_are_pulled_after_their_first_step(name):
    make, options = SETTINGS[name]
    problem = make()

    def models(**more):
        method = build(name, problem, **{**options, "clients_per_round": 2, **more})
        run = simulate(method, problem, rounds=1, execution="masked", eval_every=1)
        return run.variables if name == "dtfl" else run.state.edge

    one, pulled = models(local_steps=1), models(local_steps=1, proximal=5.0)
    chex.assert_trees_all_equal(one, pulled)
    two, near = models(local_steps=2), models(local_steps=2, proximal=5.0)
    assert differ(two, near)
