"""Columns of the tasks that follow from the devices as they were at dispatch: speed and energy."""

from collections.abc import Callable

import numpy as np

from fedjax_het.contract.clock import Flight
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.energy import task_joules
from fedjax_het.problem import Problem


def speeds(problem: Problem, flight: Flight) -> np.ndarray:
    """FLOP/s of the device of each task when it was dispatched, float64[k]."""
    return _at_dispatch(
        problem, flight, lambda fleet, i: fleet.speed(flight.client[i], flight.dispatched_s[i])
    )


def joules(
    problem: Problem,
    flight: Flight,
    flops: np.ndarray,
    bytes_down: np.ndarray,
    bytes_up: np.ndarray,
    idle_s: np.ndarray,
) -> dict[str, np.ndarray]:
    """The column `joules`, float64[k], of a fleet that prices energy; else no column.

    Args:
      problem: problem, for the devices.
      flight: tasks as dispatched.
      flops: FLOPs that were computed, float64[k].
      bytes_down: bytes that were received, int64[k].
      bytes_up: bytes that were sent, int64[k].
      idle_s: seconds for which the device waited for the merge, float64[k].
    """
    if not problem.fleet.prices_energy:
        return {}

    def of(fleet: Fleet, i: np.ndarray) -> np.ndarray:
        amounts = (flops[i], bytes_down[i], bytes_up[i], idle_s[i])
        return task_joules(fleet, flight.client[i], *amounts)

    return {"joules": _at_dispatch(problem, flight, of)}


def _at_dispatch(
    problem: Problem, flight: Flight, value: Callable[[Fleet, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The value of each task on the fleet of the round of its dispatch, float64[k].

    Args:
      problem: problem, for the devices.
      flight: tasks as dispatched.
      value: function of a fleet and of the indices of its tasks.
    """
    values = np.empty(len(flight.client))
    for step in np.unique(flight.version):
        tasks = np.flatnonzero(flight.version == step)
        values[tasks] = value(problem.fleet.at(int(step)), tasks)
    return values
