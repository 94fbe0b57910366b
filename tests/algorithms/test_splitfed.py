"""SplitFed: FedAvg's model at another price."""

import numpy as np
from problems import assert_close, exits_problem, situation

from fedjax_het.algorithms import build
from fedjax_het.simulation.simulate import simulate

SGD = {"learning_rate": 0.1, "batch_size": 4}


def test_splitfed_is_fedavg_but_for_time_and_traffic():
    """See methods/dtfl.md check 14, methods/baselines.md check 12."""
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
