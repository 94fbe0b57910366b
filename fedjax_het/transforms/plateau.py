"""A step size that is reduced when the target metric no longer improves."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.contract.algorithm import Algorithm, Report, Variables
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.transforms.nesting import Nested, nested

# Relative distance from the best score so far, above which a score counts as better.
_MARGIN = 1e-4


class Plateau(NamedTuple):
    """State of the schedule.

    Attributes:
      best: float64[], best score so far (`Situation.score`).
      waited: int64[], number of evaluations since then.
      scale: float64[], factor on the step size.
    """

    best: np.ndarray
    waited: np.ndarray
    scale: np.ndarray


def begin() -> Plateau:
    """State before the first evaluation."""
    return Plateau(np.asarray(-np.inf), np.asarray(0), np.asarray(1.0))


def step(state: Plateau, score: float, patience: int, factor: float = 0.9) -> Plateau:
    """The state after an evaluation; reduces the step size on a plateau.

    Args:
      state: state so far.
      score: score of the evaluation.
      patience: number of consecutive evaluations without a better score before a reduction.
      factor: factor on the step size at a reduction.
    """
    best = float(state.best)
    if not np.isfinite(best) or score > best + _MARGIN * abs(best):
        return Plateau(np.asarray(score), np.asarray(0), state.scale)
    waited = int(state.waited) + 1
    if waited > patience:
        return Plateau(state.best, np.asarray(0), state.scale * factor)
    return state._replace(waited=np.asarray(waited))


def on_plateau(algorithm: Algorithm, patience: int | None, factor: float = 0.9) -> Algorithm:
    """The algorithm with a step size that is reduced on a plateau of the target metric.

    Warning: the test set then affects training, as in the code of DTFL.

    Args:
      algorithm: method to transform.
      patience: number of rounds without a better score; None returns the algorithm unchanged.
      factor: factor on the step size after more than `patience` such rounds.
    """
    if patience is None:
        return algorithm
    require(patience >= 1, f"plateau = {patience}", "must be at least 1 round", "use 10")

    def init(variables: Variables, key: Any) -> Nested:
        return Nested(algorithm.init(variables, key), begin())

    def plan(state: Nested, variables: Variables, situation: Situation) -> tuple[Plan, Nested]:
        plateau = state.own
        if situation.score is not None:
            plateau = step(plateau, situation.score, patience, factor)
        tasks, inner = algorithm.plan(state.inner, variables, situation)
        scale = tasks.learning_rate_scale * float(plateau.scale)
        return tasks._replace(learning_rate_scale=scale), Nested(inner, plateau)

    outer = nested(algorithm)

    def observe(
        state: Nested, variables: Variables, report: Report
    ) -> tuple[Nested, Variables, dict[str, Any]]:
        info: dict[str, Any] = {}
        if outer.observe is not None:
            state, variables, info = outer.observe(state, variables, report)
        return state, variables, {**info, "learning_rate_scale": float(state.own.scale)}

    options = algorithm.options and {**algorithm.options, "on_plateau": [patience, factor]}
    return outer._replace(init=init, plan=plan, observe=observe, options=options)
