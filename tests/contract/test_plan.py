"""Plans: what programs count of a task must fit their 32 bits."""

import numpy as np
import pytest
from problems import digits_problem

import fedjax_het as fh
from fedjax_het.common.errors import InputError
from fedjax_het.contract.plan import Plan, Schedule, require_countable


def plan_of(steps, batch, dtype=np.int64):
    """Two tasks; a check of the sizes needs nothing else."""
    nothing = np.zeros(2)
    columns = {"clients": np.array([3, 8]), "routes": [], "weight": nothing, "timing": nothing}
    return Plan(steps=np.asarray(steps, dtype), batch=np.asarray(batch, dtype), **columns)


@pytest.mark.parametrize(
    ("steps", "batch"), [([1, 2], [1, 1]), ([2**31 - 1, 5], [1, 2**28]), ([2**15, 0], [2**15, 1])]
)
def test_tasks_whose_samples_fit_32_bits_are_countable(steps, batch):
    require_countable(plan_of(steps, batch))


@pytest.mark.parametrize(
    ("steps", "batch", "dtype", "message"),
    [
        ([1, 2**31], [1, 1], np.int64, r"client \[8\] with steps = \[2147483648\] of int64"),
        ([2**32 + 1, 1], [1, 1], np.int64, r"client \[3\] with steps = \[4294967297\] of int64"),
        ([1, 2**16], [1, 2**15], np.int64, "must be whole numbers, and at most 2147483647 samples"),
        ([2**62, 1], [4, 1], np.int64, r"client \[3\]"),
        ([1, 1], [1, 2**33], np.int64, r"batch = \[8589934592\]"),
        ([1, np.nan], [1, 1], np.float64, r"steps = \[nan\] of float64"),
        ([1.5, 1], [1, 1], np.float64, "must be whole numbers"),
    ],
)
def test_tasks_beyond_32_bits_are_refused_and_named(steps, batch, dtype, message):
    with pytest.raises(InputError, match=message):
        require_countable(plan_of(steps, batch, dtype))


def test_steps_of_a_users_plan_never_wrap():
    """As int32, 2^32 + 1 steps were one step, at the price of all of them."""
    problem = digits_problem()
    made = fh.algorithms.fedavg(problem, learning_rate=0.1)

    def tasks(situation):
        plan = made.plan.tasks(situation)
        return plan._replace(steps=np.full(len(plan.clients), 2**32 + 1))

    own = made._replace(plan=Schedule(tasks))
    with pytest.raises(InputError, match=r"4294967297.*at most 2147483647 samples"):
        fh.simulate(own, problem, rounds=1)
