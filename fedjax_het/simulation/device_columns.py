"""Columns of the tasks that follow from the devices as they were at dispatch: speed and energy."""

import numpy as np

from fedjax_het.contract.clock import Flight
from fedjax_het.engine.efforts import Effort, at_dispatch, joules_of
from fedjax_het.problem import Problem


def speeds(problem: Problem, flight: Flight) -> np.ndarray:
    """FLOP/s of the device of each task when it was dispatched, float64[k]."""
    return at_dispatch(
        problem.fleet,
        flight,
        lambda fleet, i: fleet.speed(flight.client[i], flight.dispatched_s[i]),
    )


def joules(problem: Problem, flight: Flight, effort: Effort) -> dict[str, np.ndarray]:
    """The column `joules`, float64[k], of a fleet that prices energy; else no column.

    Args:
      problem: problem, for the devices.
      flight: tasks as dispatched.
      effort: what the devices did for them.
    """
    if not problem.fleet.prices_energy:
        return {}
    return {"joules": joules_of(problem.fleet, flight, effort)}
