"""What FedEL charges: full steps, statistics of batch norm, and unequal batches."""

import numpy as np
import problems
import pytest

from fedjax_het.algorithms.fedel.budget import Accounts, Budget
from fedjax_het.algorithms.fedel.tensors import tensor_times


def _accounts(problem, counts="backward"):
    times = tensor_times(problem.model, problem.cost)
    return Accounts(problem, times, budget=Budget(counts=counts))


def _bill(problem, chosen, exit, counts="backward"):
    accounts = _accounts(problem, counts)
    n = len(chosen)
    return accounts.bill(
        np.arange(n), np.full(n, 8), chosen, np.full(n, exit), problems.situation(problem)
    )


@pytest.mark.parametrize("counts", ["backward", "total"])
def test_a_full_step_costs_what_it_costs_everyone_else(counts):
    problem = problems.exits_problem()
    everything = np.ones((problem.num_clients, 6), bool)
    bill = _bill(problem, everything, 2, counts)
    cost = problem.cost
    # Biases have a price of their own here; on the scale of a full step it cancels.
    extra = 8 * (tensor_times(problem.model, cost).total - cost.weight_grad_flops.sum())
    extra += -8 * cost.input_grad_flops[1:].sum()
    np.testing.assert_allclose(bill.timing.flops, 8 * cost.step_flops() + extra)
    charged = bill.timing.compute_s * problem.fleet.flops_per_s
    rest = 0.0 if counts == "backward" else extra
    np.testing.assert_allclose(charged, 8 * cost.step_flops() + rest)
    np.testing.assert_array_equal(bill.timing.bytes_up, np.sum(cost.param_bytes))
    slowdown = problem.fleet.flops_per_s.max() / problem.fleet.flops_per_s
    np.testing.assert_allclose(bill.ratio, slowdown, rtol=0.02)


def test_an_exit_sends_its_head_and_pays_for_it_first():
    problem = problems.exits_problem()
    chosen = np.zeros((problem.num_clients, 6), bool)
    chosen[:, 2] = True  # the second kernel
    bill = _bill(problem, chosen, 1)
    head = problem.cost.exit_param_bytes[1]
    assert np.all(bill.timing.bytes_up == head + 12 * 8 * 4)
    accounts = _accounts(problem)
    n = problem.num_clients
    clients, samples = np.arange(n), np.full(n, 8)
    _, chain, near = accounts.prices(clients, samples, np.full(n, 1))
    _, _, far = accounts.prices(clients, samples, np.full(n, 2))
    price = problem.cost.exit_weight_grad_flops[1] + problem.cost.exit_input_grad_flops[1]
    np.testing.assert_allclose(far - near, price)
    assert np.all(np.isinf(chain[:, 4:]))


def test_the_total_budget_pays_for_the_forward_pass():
    problem = problems.exits_problem()
    backward = _accounts(problem)
    total = _accounts(problem, "total")
    n = problem.num_clients
    clients, samples, last = np.arange(n), np.full(n, 8), np.full(n, 2)
    slowdown = problem.fleet.flops_per_s.max() / problem.fleet.flops_per_s
    room = total.prices(clients, samples, last).room
    cost = problem.cost
    np.testing.assert_allclose(room, cost.step_flops() / slowdown - cost.forward_flops.sum())
    assert np.all(backward.prices(clients, samples, last).room > 0)


def test_running_statistics_travel_with_the_blocks_that_trained():
    problem = problems.batch_norm_problem(exits=True)
    times = tensor_times(problem.model, problem.cost)
    chosen = np.zeros((problem.num_clients, times.num_tensors), bool)
    chosen[:, times.block == 0] = True
    bill = _bill(problem, chosen, 0)
    cost = problem.cost
    sent = cost.param_bytes[0] + cost.stats_bytes[0] + cost.exit_param_bytes[0]
    np.testing.assert_array_equal(bill.timing.bytes_up, sent)
