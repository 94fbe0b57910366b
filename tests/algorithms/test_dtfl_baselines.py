"""SplitFed and FedGKT, DTFL's baselines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, assert_same, differ, exits_problem, situation

from fedjax_het.algorithms import build
from fedjax_het.algorithms.dtfl.distillation import distillation, halves
from fedjax_het.simulation.simulate import simulate

pytestmark = pytest.mark.usefixtures("quick_compile")

SGD = {"learning_rate": 0.1, "batch_size": 4, "client_optimizer": "sgd", "weight_decay": 0.0}


def test_splitfed_is_fedavg_but_for_time_and_traffic():
    problem = exits_problem()
    results = [
        simulate(build(name, problem, **SGD), problem, rounds=2) for name in ("splitfed", "fedavg")
    ]
    assert_close(results[0].variables, results[1].variables)
    assert results[0].faults == []
    split, whole = (r.record.clients[0] for r in results)
    assert split["flops"] < whole["flops"]
    assert split["bytes_up"] > split["samples"] * problem.cost.activation_bytes[1]


def test_splitfed_waits_for_both_sides_and_gets_gradients_back():
    problem = exits_problem()
    slow, fast = (
        build("splitfed", problem, server_flops_per_s=s, **SGD) for s in (1e3, float("inf"))
    )
    timings = [a.plan((), None, situation(problem))[0].timing for a in (slow, fast)]
    cost, sizes = problem.cost, problem.data.sizes
    inner = cost.input_grad_flops.copy()
    inner[0] = 0
    each = cost.forward_flops + cost.weight_grad_flops + inner
    np.testing.assert_allclose(
        timings[0].compute_s - timings[1].compute_s, each[2:].sum() * sizes / 1e3
    )
    np.testing.assert_allclose(
        timings[1].compute_s, each[:2].sum() * sizes / problem.fleet.flops_per_s
    )
    model = int((cost.param_bytes + cost.stats_bytes)[:2].sum())
    np.testing.assert_array_equal(timings[0].bytes_down, sizes * cost.activation_bytes[1] + model)
    np.testing.assert_array_equal(
        timings[0].bytes_up, sizes * (cost.activation_bytes[1] + 8) + model
    )


def test_distillation_is_zero_for_a_good_pupil_and_ignores_padding():
    logits = jax.random.normal(jax.random.key(0), (5, 4))
    weight = jnp.asarray([1.0, 1.0, 1.0, 0.0, 0.0])
    assert float(distillation(logits, logits + 3.0, weight, 3.0)) == pytest.approx(0, abs=1e-6)
    other = logits.at[:3].set(0.0)
    told = distillation(logits, other, weight, 2.0)
    p = jax.nn.softmax(other[:3] / 2)
    wanted = 4 * jnp.mean(jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(logits[:3] / 2)), axis=1))
    assert float(told) == pytest.approx(float(wanted), rel=1e-5)
    assert float(told) == pytest.approx(float(distillation(logits[:3], other[:3], weight[:3], 2.0)))


def gkt(problem, **options):
    return build("fedgkt", problem, **{**SGD, "client_blocks": 1, "server_epochs": 3, **options})


def test_gkt_averages_no_weights():
    """Clients' networks part from each other, and the server's blocks from the start."""
    problem = exits_problem()
    algorithm = gkt(problem)
    result = simulate(algorithm, problem, rounds=2)
    assert result.faults == []
    start = simulate(algorithm, problem, rounds=1).variables
    parts = halves(problem.model.num_blocks, 0)
    assert_same(parts.own(result.variables, parts.edge), parts.own(start, parts.edge))
    assert differ(result.variables.params["blocks"][1:], start.params["blocks"][1:])
    edges = result.state.edge.params["blocks"][0]
    for leaf in jax.tree.leaves(edges):
        assert len({row.tobytes() for row in leaf}) == problem.num_clients
    assert result.state.taught.all()
    models = algorithm.evaluated(result.state, result.variables)
    assert len(models) == problem.num_clients
    assert differ(models[0].params["blocks"][0], models[1].params["blocks"][0])
    assert_same(models[0].params["blocks"][1:], models[1].params["blocks"][1:])


def test_gkt_logits_are_the_server_s_answers():
    problem = exits_problem()
    algorithm = gkt(problem)
    result = simulate(algorithm, problem, rounds=1)
    models = algorithm.evaluated(result.state, result.variables)
    data = problem.data
    for client in (0, 5):
        ids = data.order[data.start[client] : data.start[client] + data.sizes[client]]
        wanted, _ = problem.model.apply(models[client], jnp.asarray(data.x[ids]))
        np.testing.assert_allclose(result.state.logits[ids], wanted, rtol=1e-4, atol=1e-5)


def test_gkt_teaching_begins_in_the_second_round():
    """With all weight on the server's logits, the first round does not depend on it."""
    problem = exits_problem()
    light, heavy = (gkt(problem, alpha=a) for a in (1e-6, 5.0))
    first = [simulate(a, problem, rounds=1).state.edge for a in (light, heavy)]
    assert_same(*first)
    second = [simulate(a, problem, rounds=2).state.edge for a in (light, heavy)]
    assert differ(*second)


def test_gkt_sends_features_up_and_logits_down():
    problem = exits_problem()
    algorithm = gkt(problem)
    variables = problem.model.init(jax.random.key(0))
    state = algorithm.init(variables, jax.random.key(1))
    plan, _ = algorithm.plan(state, variables, situation(problem))
    cost, sizes = problem.cost, problem.data.sizes
    np.testing.assert_array_equal(
        plan.timing.bytes_up, sizes * (cost.activation_bytes[0] + 8 + 4 * 10)
    )
    edge = cost.param_bytes[0] + cost.exit_param_bytes[0]
    np.testing.assert_array_equal(plan.timing.bytes_down, edge)
    taught = state._replace(taught=np.ones(problem.num_clients, bool))
    later, _ = algorithm.plan(taught, variables, situation(problem, round=30))
    np.testing.assert_array_equal(later.timing.bytes_down, sizes * 40)
    # Three passes of the server at first, one when annealed.
    assert (later.timing.compute_s < plan.timing.compute_s).all()
