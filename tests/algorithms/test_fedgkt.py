"""FedGKT: networks that teach each other. See methods/baselines.md 14, check 14."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from problems import differ, exits_problem, situation

from fedjax_het.algorithms import build
from fedjax_het.local.distillation import halves
from fedjax_het.simulation.simulate import simulate

SGD = {"learning_rate": 0.1, "batch_size": 4}


def gkt(problem, **options):
    return build(
        "fedgkt", problem, **{**SGD, "client_blocks": 1, "server_epochs": (3, 1), **options}
    )


def test_gkt_averages_no_weights():
    """Clients' networks part from each other, and the server's blocks from the start."""
    problem = exits_problem()
    algorithm = gkt(problem)
    result = simulate(algorithm, problem, rounds=2)
    assert result.faults == []
    start = simulate(algorithm, problem, rounds=1).variables
    parts = halves(problem.model.num_blocks, 0)
    chex.assert_trees_all_equal(
        parts.own(result.variables, parts.edge), parts.own(start, parts.edge)
    )
    assert differ(result.variables.params["blocks"][1:], start.params["blocks"][1:])
    edges = result.state.edge.params["blocks"][0]
    for leaf in jax.tree.leaves(edges):
        assert len({row.tobytes() for row in leaf}) == problem.num_clients
    assert result.state.taught.all()
    models = algorithm.evaluated(result.state, result.variables)
    assert len(models) == problem.num_clients
    assert differ(models[0].params["blocks"][0], models[1].params["blocks"][0])
    chex.assert_trees_all_equal(models[0].params["blocks"][1:], models[1].params["blocks"][1:])


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
    chex.assert_trees_all_equal(*first)
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


def test_gkt_client_and_server_follow_the_schedule():
    """Half the step size by a schedule is half the step size; with none, nobody moves."""
    problem = exits_problem()
    start = problem.model.init(jax.random.split(jax.random.key(0), 4)[0])
    runs = {
        factor: simulate(gkt(problem, schedule=lambda t, f=factor: f), problem, rounds=1)
        for factor in (0.0, 0.5)
    }
    assert not differ(runs[0.0].variables.params, start.params)
    assert not differ(runs[0.0].state.edge, gkt(problem).init(start, jax.random.key(0)).edge)
    half = simulate(gkt(problem, learning_rate=0.05), problem, rounds=1)
    chex.assert_trees_all_close(runs[0.5].variables, half.variables, rtol=1e-6)
    chex.assert_trees_all_close(runs[0.5].state.edge, half.state.edge, rtol=1e-6)


def test_gkt_server_learns_from_labels_alone_unless_it_distils():
    """As in the authors' command; whether the clients' logits count shows in the server's step."""
    problem = exits_problem()
    one = {"server_epochs": (1,), "temperature": 2.0}
    plain, hot = (gkt(problem, **{**one, "temperature": t}) for t in (2.0, 9.0))
    first = [simulate(a, problem, rounds=1).variables for a in (plain, hot)]
    chex.assert_trees_all_equal(*first)
    distilled = simulate(gkt(problem, distill_on_server=True, **one), problem, rounds=1).variables
    assert differ(distilled.params["blocks"][1:], first[0].params["blocks"][1:])


def test_gkt_epochs_follow_the_authors_schedule():
    problem = exits_problem()
    slow = {"server_flops_per_s": 1.0, "local_steps": 1}
    algorithm = build("fedgkt", problem, **SGD, client_blocks=1, **slow)
    variables = problem.model.init(jax.random.key(0))
    state = algorithm.init(variables, jax.random.key(1))

    def server_s(round):
        plan, _ = algorithm.plan(state, variables, situation(problem, round=round))
        return float(plan.timing.compute_s[0])

    epochs = [20 * server_s(t) / server_s(0) for t in (19, 20, 29, 30, 40, 50, 99)]
    np.testing.assert_allclose(epochs, [20, 15, 15, 10, 5, 5, 5], rtol=1e-3)
