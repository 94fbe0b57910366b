"""The planner of a run: a problem and options in, deadlines for the rounds that are left out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.algorithms.adel.bound import Bound, Constants
from fedjax_het.algorithms.adel.layers import Granularity
from fedjax_het.algorithms.adel.planning import DeadlinePlan, Limits, Solver, plan_deadlines
from fedjax_het.algorithms.adel.setting import Rates, Setting, prepare
from fedjax_het.errors import require, require_known
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


def make_planner(
    problem: Problem,
    *,
    rounds: int,
    total_s: float,
    schedule: str = "inverse",
    decay_rounds: float = 1.0,
    granularity: Granularity = "module",
    virtual_layers: int = 0,
    batch_scale: Sequence[float] = (0.5, 1.2),
    max_miss: float = 0.45,
    shortest_s: float | None = None,
    constants: Mapping[str, Any] | None = None,
    solver: Solver = "water_filling",
    rates: Rates = "ideal",
    **training: Any,
) -> Planner:
    """The planner of `adel` with these options; options as there."""
    require(rounds >= 1, f"rounds = {rounds}", "must be at least 1", "plan some rounds")
    require(
        np.isfinite(total_s) and total_s > 0,
        f"total_s = {total_s}",
        "must be a positive number of virtual seconds",
        "give the time that all rounds together may take",
    )
    require_known(solver, ("water_filling", "trust_constr"), "solver")
    require(
        len(batch_scale) == 2 and 0 < batch_scale[0] <= batch_scale[1] < np.inf,
        f"batch_scale = {tuple(batch_scale)}",
        "must be the least and the largest scale, both positive",
        "use (0.5, 1.2)",
    )
    setting = prepare(
        problem,
        training,
        schedule=schedule,
        decay_rounds=decay_rounds,
        granularity=granularity,
        virtual_layers=virtual_layers,
        rates=rates,
    )
    if shortest_s is None:
        shortest_s = _REACHABLE * float(np.max(setting.communication_s))
    low, high = (float(scale) * setting.unit_s for scale in batch_scale)
    limits = Limits(float(total_s), float(shortest_s), (low, high), max_miss)
    return Planner(setting, rounds, limits, Constants.parse(constants or {}), solver)
