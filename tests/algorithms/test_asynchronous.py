"""FedAsync, FedBuff and FedFix against values by hand and against FedAvg."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, digits_problem, fleet, scalar_problem, scalars, values_of

from fedjax_het.algorithms import build
from fedjax_het.contract.algorithm import Chunk
from fedjax_het.contract.plan import Situation
from fedjax_het.contract.staleness import discount, discounted_sum, mixing
from fedjax_het.fleet.device import Fleet
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4}


def chunk(deltas, staleness, start=0.0, weight=None):
    """Clients of a one-parameter model that all started from `start`."""
    c = len(deltas)
    stack = lambda values: jax.tree.map(
        lambda *a: jnp.stack(a), *(scalars([value]) for value in values)
    )
    stacked = stack(deltas)
    return Chunk(
        client=jnp.arange(c),
        weight=jnp.asarray(np.ones(c) if weight is None else weight, jnp.float32),
        delta=stacked.params,
        stats_delta=stacked.stats,
        mask=None,
        start=stack([start] * c),
        row=None,
        shared=None,
        staleness=jnp.asarray(staleness, jnp.int32),
    )


def merged(merge, value, part):
    model = scalars([value])
    acc = merge.add(merge.init((), model, None), part)
    return float(values_of(merge.finalize(acc, model, None)[0])[0])


# ---- discounts -----------------------------------------------------------------------------------


def test_hinge_golden():
    late = discount("hinge", a=10.0, b=4.0)(np.asarray([4, 5, 6, 16]))
    np.testing.assert_allclose(late, [1, 0.0909, 0.0476, 0.00826], atol=5e-5)


@pytest.mark.parametrize("kind", ["constant", "polynomial", "hinge"])
@pytest.mark.parametrize("a", [0.3, 0.5, 10.0])
def test_discounts_start_at_one_and_fall(kind, a):
    late = np.asarray(discount(kind, a=a, b=4.0)(np.arange(40)))
    assert late[0] == 1.0
    assert np.all(np.diff(late) <= 0)
    assert np.all(late > 0)


# ---- FedAsync ------------------------------------------------------------------------------------


def test_fedasync_golden():
    merge = mixing(discount("polynomial", a=0.5), 0.6)
    first = merged(merge, 0.0, chunk([1.0], [0]))
    assert first == pytest.approx(0.6)
    assert merged(merge, first, chunk([2.0], [3])) == pytest.approx(1.02)


def test_fedasync_mixes_models_not_updates():
    """A late client pulls towards its own model, wherever it started."""
    merge = mixing(discount("constant"), 0.5)
    assert merged(merge, 4.0, chunk([1.0], [7], start=1.0)) == pytest.approx(0.5 * 4 + 0.5 * 2)
    assert merged(merge, 4.0, chunk([1.0], [7], start=1.0, weight=[0.0])) == 4.0


def test_fedasync_with_alpha_one_is_the_client_that_came_last():
    problem = digits_problem()
    options = {**TRAINING, "clients_per_round": 1, "rho": 0.0}
    alone = build("fedasync", problem, alpha=1.0, staleness="constant", **options)
    fedavg = build("fedavg", problem, **TRAINING, clients_per_round=1)
    runs = [simulate(algorithm, problem, rounds=3) for algorithm in (alone, fedavg)]
    clients = [[row["client"] for row in run.record.clients] for run in runs]
    assert clients[0] == clients[1]  # the same draws, one client at a time
    assert_close(runs[0].variables, runs[1].variables, rtol=1e-4)


def test_fedasync_takes_arrivals_in_order_and_breaks_ties_by_client():
    problem = Problem(
        scalar_problem((4, 4, 4, 4)).model,
        scalar_problem((4, 4, 4, 4)).data,
        fleet(4, flops_per_s=np.full(4, 1e6)),
    )
    run = simulate(build("fedasync", problem, **TRAINING), problem, rounds=8)
    assert [row["client"] for row in run.record.clients] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [row["staleness"] for row in run.record.clients] == [0, 1, 2, 3, 3, 3, 3, 3]
    times = [row["virtual_s"] for row in run.record.metrics[1:]]
    assert times[0] == times[3] < times[4] == times[7]
    assert run.faults == []


# ---- FedBuff -------------------------------------------------------------------------------------


def test_fedbuff_golden():
    merge = discounted_sum(discount("polynomial", a=0.5), 1 / 3)
    assert merged(merge, 5.0, chunk([1.0, 2.0, 3.0], [0, 3, 8])) == pytest.approx(6.0)


def test_fedbuff_of_everyone_is_fedavg_of_equals():
    problem = digits_problem()
    buffered = build("fedbuff", problem, buffer_size=8, **TRAINING)
    fedavg = build("fedavg", problem, **TRAINING, weighting="uniform")
    runs = [simulate(algorithm, problem, rounds=2) for algorithm in (buffered, fedavg)]
    assert_close(runs[0].variables, runs[1].variables)
    assert runs[0].record.metrics[-1]["virtual_s"] == runs[1].record.metrics[-1]["virtual_s"]


def test_fedbuff_updates_once_per_k_arrivals_and_counts_staleness_in_updates():
    base = scalar_problem((4,) * 6)
    problem = Problem(base.model, base.data, fleet(6, compute_jitter=0.5))
    algorithm = build("fedbuff", problem, buffer_size=2, clients_per_round=3, **TRAINING)
    run = simulate(algorithm, problem, rounds=12)
    assert run.faults == []
    tasks = run.record.clients
    assert len(tasks) == 24
    ends = {row["step"]: row["virtual_s"] for row in run.record.metrics}
    for task in tasks:
        assert ends[task["version"]] <= task["dispatched_s"]
        # Replaced at once: who left between two merges left with the model of the first.
        assert task["dispatched_s"] < ends.get(task["version"] + 1, np.inf)
    assert any(task["dispatched_s"] > ends[task["version"]] for task in tasks)


# ---- FedFix --------------------------------------------------------------------------------------


def fixed_times():
    """Three clients that take 1, 2.5 and 4 seconds and hold 5, 3 and 2 samples."""
    base = scalar_problem((5, 3, 2))
    times = np.asarray([1.0, 2.5, 4.0])
    return Problem(base.model, base.data, Fleet(np.full(3, 1e30), latency_s=times / 2))


def test_fedfix_golden_weights():
    problem = fixed_times()
    algorithm = build("fedfix", problem, interval_s=1.0, **TRAINING)
    where = Situation(0, 0.0, np.arange(3), jax.random.key(0), np.random.default_rng(0))
    plan, _ = algorithm.plan((), scalars([0.0] * 4), where)
    np.testing.assert_allclose(plan.weight, np.asarray([0.5, 0.3, 0.2]) * [1, 3, 4], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({}, (0.5, 0.3, 0.2)),
        ({"unbiased": False}, (0.5, 0.1, 0.05)),
        ({"most_windows": 2}, (0.5, 0.2, 0.1)),
    ],
)
def test_fedfix_weighs_clients_alike_in_the_long_run(options, mean):
    problem, total = fixed_times(), np.zeros(3)
    algorithm = build("fedfix", problem, interval_s=1.0, **TRAINING, **options)

    def observe(state, variables, report):
        np.add.at(total, report.plan.clients, report.plan.weight)
        return state, variables, {}

    run = simulate(algorithm._replace(observe=observe), problem, rounds=24)
    assert run.record.metrics[-1]["virtual_s"] == pytest.approx(24.0)
    np.testing.assert_allclose(total / 24, mean, rtol=1e-5)
    assert run.faults == []


def test_fedfix_with_a_long_interval_is_fedavg():
    problem = digits_problem()
    fixed = build("fedfix", problem, interval_s=10.0, **TRAINING)
    runs = [simulate(a, problem, rounds=2) for a in (fixed, build("fedavg", problem, **TRAINING))]
    assert_close(runs[0].variables, runs[1].variables)
    assert [row["virtual_s"] for row in runs[0].record.metrics] == [0.0, 10.0, 20.0]
