"""The planner of a run: a problem and options in, deadlines for the rounds that are left out."""

from typing import NamedTuple

import numpy as np

from fedjax_het.algorithms.adel.bound import Bound, Constants
from fedjax_het.algorithms.adel.options import Planned, Solver
from fedjax_het.algorithms.adel.planning import DeadlinePlan, Limits, plan_deadlines
from fedjax_het.algorithms.adel.workload import Setting, prepare
from fedjax_het.problem import Problem

# Shortest deadline over the longest communication: below 1 a client could never take part.
_REACHABLE = 1.05


class Planner(NamedTuple):
    """Plans deadlines for the rounds that are left.

    Attributes:
      setting: layers, step sizes and cohort.
      rounds: R.
      limits: of a plan for all rounds.
      constants: of the bound.
      solver: which solver.
    """

    setting: Setting
    rounds: int
    limits: Limits
    constants: Constants
    solver: Solver

    def noise(self, power: np.ndarray) -> float:
        """The noise term for devices of this power."""
        return self.constants.noise(power, self.setting.cohort)

    def bound(self, power: np.ndarray, start: int = 0) -> Bound:
        """The bound over the rounds from `start` on."""
        return Bound(
            layers=self.setting.layers.number,
            users=self.setting.cohort,
            steps=self.setting.steps(self.rounds)[start:],
            noise=self.noise(power),
            constants=self.constants,
        )

    def plan(self, power: np.ndarray, start: int = 0, total_s: float | None = None) -> DeadlinePlan:
        """Deadlines from round `start` on, for devices of this power and the time that is left."""
        limits = self.limits if total_s is None else self.limits._replace(total_s=total_s)
        return plan_deadlines(self.bound(power, start), limits, self.solver)


def make_planner(problem: Problem, options: Planned) -> Planner:
    """The planner of `adel` with these options."""
    setting = prepare(problem, options)
    shortest_s = options.shortest_s
    if shortest_s is None:
        shortest_s = _REACHABLE * float(np.max(setting.communication_s))
    low, high = (float(scale) * setting.unit_s for scale in options.batch_scale)
    limits = Limits(float(options.total_s), float(shortest_s), (low, high), options.max_miss)
    constants = Constants.parse(options.constants or {})
    return Planner(setting, options.rounds, limits, constants, options.solver)
