"""Deadlines and batch scale that minimise the bound: a feasibility check, then one of two solvers.

References:
  methods/adel_fl.md 3.2, 3.3, 3.4, A2.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy
from threadpoolctl import threadpool_limits

from fedjax_het.algorithms.adel.bound import Bound, Constants, bound_of, require_budget
from fedjax_het.algorithms.adel.depths import miss_probability
from fedjax_het.algorithms.adel.workload import Setting
from fedjax_het.common.errors import require, require_known
from fedjax_het.contract.preview import Column, Preview

Solver = Literal["water_filling", "trust_constr"]

# Nodes of the table of the missing-layer term's slope, and number of scales tried first.
_NODES, _SCALES = 1200, 24
# Scales the objective to the size for which the tolerances of trust-constr are made.
_UNIT = 1e3
# Shortest deadline over the longest communication: below 1 a client could never take part.
_REACHABLE = 1.05


class Limits(NamedTuple):
    """Limits of a plan.

    Attributes:
      total_s: sum of all deadlines in seconds, T_max.
      shortest_s: shortest deadline in seconds.
      scale: smallest and largest m, seconds per layer.
      max_miss: largest probability p_max < 1/2 that no client updates some layer in some round.
    """

    total_s: float
    shortest_s: float = 0.0
    scale: tuple[float, float] = (0.5, 1.2)
    max_miss: float = 0.45


class DeadlinePlan(NamedTuple):
    """Deadlines of all rounds, and the batch scale.

    Attributes:
      deadlines_s: float64[R], deadlines T.
      scale: batch scale m; a client's batch is `scale * power * (T - B)^+ / T`.
      missed: float64[R, L], probability that no client updates a layer, input side first.
      bound: value of the bound.
    """

    deadlines_s: np.ndarray
    scale: float
    missed: np.ndarray
    bound: float


class Planner(NamedTuple):
    """Planner of the deadlines of the remaining rounds.

    Attributes:
      setting: layers, step sizes and cohort.
      rounds: number of rounds, R.
      limits: limits of a plan for all rounds.
      constants: constants of the bound.
      solver: name of the solver.
    """

    setting: Setting
    rounds: int
    limits: Limits
    constants: Constants
    solver: Solver

    def noise(self, power: np.ndarray) -> float:
        """The noise term for devices of power `power`, float64[n]."""
        return self.constants.noise(power, self.setting.cohort)

    def plan(self, power: np.ndarray, start: int = 0, total_s: float | None = None) -> DeadlinePlan:
        """Deadlines from round `start` on, for devices of power `power` and the remaining time."""
        limits = self.limits if total_s is None else self.limits._replace(total_s=total_s)
        bound = bound_of(self.setting, self.rounds, power, self.constants, start)
        return plan_deadlines(bound, limits, self.solver)


def make_planner(
    setting: Setting,
    *,
    rounds: int,
    total_s: float,
    batch_scale: Sequence[float],
    max_miss: float,
    shortest_s: float | None,
    constants: Constants,
    solver: Solver,
) -> Planner:
    """The planner of `adel` with these options; see `adel`."""
    require_budget(rounds, total_s, shortest_s)
    require_known(solver, ("water_filling", "trust_constr"), "solver")
    require(
        len(batch_scale) == 2 and 0 < batch_scale[0] <= batch_scale[1] < np.inf,
        f"batch_scale = {tuple(batch_scale)}",
        "must be the least and the largest scale, both positive",
        "use (0.5, 1.2)",
    )
    if shortest_s is None:
        shortest_s = _REACHABLE * float(np.max(setting.communication_s))
    low, high = (float(scale) * setting.unit_s for scale in batch_scale)
    limits = Limits(float(total_s), float(shortest_s), (low, high), max_miss)
    return Planner(setting, rounds, limits, constants, solver)


def preview(name: str, setting: Setting, plan: DeadlinePlan, max_batch: int) -> Preview:
    """Preview of a run with this plan; probabilities of clients are those of the first round.

    Args:
      name: name of the method.
      setting: layers, step sizes and devices.
      plan: deadlines of all rounds.
      max_batch: largest number of samples in a batch.
    """
    rounds, number = plan.missed.shape
    everyone = np.arange(setting.problem.num_clients)
    works = [setting.workload(everyone, float(t), plan.scale, max_batch) for t in plan.deadlines_s]
    batch = np.stack([work.batch for work in works])
    layers = [str(layer) for layer in range(1, number + 1)]
    layers[0], layers[-1] = f"{layers[0]} (input side)", f"{layers[-1]} (output side)"
    return Preview(
        method=name,
        summary={
            "rounds": rounds,
            "layers": number,
            "clients": everyone.size,
            "total_s": float(np.sum(plan.deadlines_s)),
            "batch_scale_s": plan.scale,
            "bound": plan.bound,
        },
        by_round={
            "deadline_s": Column("deadline (s)", plan.deadlines_s),
            "step_size": Column("step size", setting.steps(rounds)),
            "batch": Column("batch (samples)", batch),
            "missed_by_all": Column("chance that all miss layer", plan.missed, layers),
        },
        by_client={
            "power": Column("power (samples x layers / s)", setting.power),
            "communication_s": Column("communication (s)", setting.communication_s),
            "batch": Column("batch (samples)", batch[[0, -1]].T, ("first round", "last round")),
            "missed": Column("chance to miss layer", setting.missed(works[0]), layers),
        },
    )


def least_ratio(layers: int, users: int, max_miss: float) -> float:
    """The T/m at which all clients miss the input layer with probability `max_miss`."""
    return float(scipy.special.gammainccinv(layers, max_miss ** (1.0 / users)))


def require_feasible(bound: Bound, limits: Limits) -> float:
    """Checks that a plan exists before a solver starts.

    Args:
      bound: objective, for its numbers of rounds, layers and users.
      limits: limits of the plan.

    Returns:
      The `least_ratio` of the problem.

    Raises:
      InputError: if no plan exists; the message names a remedy: time, rounds, layers, users or
        batches.
    """
    low, high = limits.scale
    require(
        0 < low <= high < np.inf,
        f"scale = {limits.scale}",
        "must be two positive numbers, the smaller first",
        "use (0.5, 1.2) times the seconds that a layer takes",
    )
    require(
        0 < limits.max_miss < 0.5,
        f"max_miss = {limits.max_miss}",
        "must lie between 0 and 1/2, where the bound has its pole",
        "use 0.45",
    )
    ratio = least_ratio(bound.layers, bound.users, limits.max_miss)
    rounds = bound.steps.size
    least_s = max(ratio * low, limits.shortest_s)
    require(
        # A tolerance for rounding: the rest of a plan may need exactly the remaining time.
        rounds * least_s <= limits.total_s * (1 + 1e-9),
        f"total_s = {limits.total_s:.6g} for rounds = {rounds} with {bound.layers} layers and "
        f"{bound.users} users",
        f"allows {limits.total_s / rounds:.4g} s a round; {least_s:.4g} s are needed "
        + (
            f"to keep the input layer from being missed with probability > {limits.max_miss:g}"
            if least_s > limits.shortest_s
            else "as the shortest deadline (shortest_s, or the slowest client's communication)"
        ),
        f"give total_s >= {rounds * least_s:.6g}, or rounds <= {int(limits.total_s / least_s)}, "
        "or fewer layers (granularity='module'), or more users, or a smaller batch_scale",
    )
    return ratio


def plan_deadlines(bound: Bound, limits: Limits, solver: Solver = "water_filling") -> DeadlinePlan:
    """The plan that minimises the bound within the limits.

    Args:
      bound: objective.
      limits: limits of the plan.
      solver: name of the solver: "water_filling", exact and fast, or "trust_constr", as in the
        paper.

    Raises:
      InputError: if no plan satisfies the limits.
    """
    ratio = require_feasible(bound, limits)
    solve = water_filling if solver == "water_filling" else trust_constr
    deadlines_s, scale = solve(bound, limits, ratio)
    return make_plan(bound, deadlines_s, scale)


def make_plan(bound: Bound, deadlines_s: np.ndarray, scale: float) -> DeadlinePlan:
    """The plan of given deadlines and scale, with its probabilities and its bound."""
    missed = miss_probability(bound.layers, deadlines_s / scale) ** bound.users
    return DeadlinePlan(deadlines_s, scale, missed, bound.value(deadlines_s, scale))


def water_filling(bound: Bound, limits: Limits, ratio: float) -> tuple[np.ndarray, float]:
    r"""Exact deadlines for a given scale, and a search over the scale.

    The missing-layer term $\varphi$ is convex and decreasing for p < 1/2, so for fixed m the best
    deadlines have equal marginal value: $a_t \varphi'(T_t / m) = -\nu m$ for all deadlines above
    the lower limit. Deadlines are therefore ordered like $a_t$: they decrease if the step size
    does.

    Args:
      bound: objective.
      limits: limits of the plan.
      ratio: smallest T/m, from `require_feasible`.

    Returns:
      Deadlines float64[R], which sum to the total, and the scale.
    """
    rounds, log_a = bound.steps.size, np.log(bound.weights)
    low, high = limits.scale
    high = max(low, min(high, limits.total_s / (rounds * ratio)))
    longest = max(limits.total_s / low, ratio * 1.001)
    nodes = np.geomspace(ratio, longest, _NODES)
    slope = bound.log_missing_slope(nodes)
    # The slope decreases strictly, so a spline through the swapped nodes is its inverse.
    inverse = scipy.interpolate.CubicSpline(slope[::-1], nodes[::-1])

    def ratios(scale: float) -> np.ndarray:
        """Ratios T / m at this scale, float64[R]."""
        least = max(ratio, limits.shortest_s / scale)
        total = limits.total_s / scale
        if rounds * least >= total:
            return np.full(rounds, total / rounds)

        def fill(level: float) -> np.ndarray:
            inside = np.clip(level - log_a, slope[-1], slope[0])
            return np.maximum(inverse(inside), least)

        def surplus(level: float) -> float:
            return float(np.sum(fill(level)) - total)

        ends = slope[-1] + np.min(log_a), slope[0] + np.max(log_a)
        filled = fill(scipy.optimize.brentq(surplus, *ends, xtol=1e-13, rtol=1e-14))
        free = filled > least
        # The rest of the total after rounding goes to the rounds that are not at their limit.
        if np.any(free):
            filled[free] *= (total - np.sum(filled[~free])) / np.sum(filled[free])
        return filled

    def cost(scale: float) -> float:
        return bound.excess(ratios(scale) * scale, scale)

    if high > low:
        tried = np.linspace(low, high, _SCALES)
        best = int(np.argmin([cost(scale) for scale in tried]))
        around = tried[max(best - 1, 0)], tried[min(best + 1, _SCALES - 1)]
        found = scipy.optimize.minimize_scalar(
            cost, bounds=around, method="bounded", options={"xatol": 1e-10}
        )
        # The search does not evaluate the ends of its interval.
        scale = min((low, high, float(found.x)), key=cost)
    else:
        scale = low
    return ratios(scale) * scale, scale


def trust_constr(bound: Bound, limits: Limits, ratio: float) -> tuple[np.ndarray, float]:
    """SciPy's interior-point solver for all deadlines and the scale together, as in the paper.

    The authors' settings leave the feasible side of the pole. These do not: the start is strictly
    feasible, every step satisfies all constraints, and the gradient is exact.

    Args:
      bound: objective.
      limits: limits of the plan.
      ratio: smallest T/m, from `require_feasible`.

    Returns:
      Deadlines float64[R] and the scale.
    """
    rounds = bound.steps.size
    low, high = limits.scale
    mean_s = limits.total_s / rounds
    # Strictly inside: between the shortest time of a round and the mean time per round.
    start_s = max(0.98 * mean_s, 0.5 * (mean_s + max(limits.shortest_s, ratio * low)))
    widest = min(high, start_s / ratio)
    scale = low + 0.9 * (widest - low) if widest < high else 0.5 * (low + high)
    start = np.append(np.full(rounds, start_s), scale)
    linear = np.vstack(
        [
            np.append(np.ones(rounds), 0.0),
            np.hstack([np.eye(rounds), np.full((rounds, 1), -ratio)]),
        ]
    )
    lower, upper = np.zeros(rounds + 1), np.full(rounds + 1, np.inf)
    upper[0] = limits.total_s

    def gradient(x: np.ndarray) -> np.ndarray:
        return _UNIT * np.append(*bound.gradient(x[:-1], x[-1]))

    # Threads do not help with matrices of a few hundred rows.
    with warnings.catch_warnings(), threadpool_limits(1):
        # If deadlines are so long that no layer is missed, the gradient does not change.
        warnings.filterwarnings("ignore", "delta_grad == 0.0", UserWarning)
        found = scipy.optimize.minimize(
            lambda x: _UNIT * bound.excess(x[:-1], x[-1]),
            start,
            jac=gradient,
            hess=scipy.optimize.SR1(),
            method="trust-constr",
            bounds=scipy.optimize.Bounds(
                np.append(np.full(rounds, limits.shortest_s), low),
                np.append(np.full(rounds, np.inf), high),
                keep_feasible=True,
            ),
            constraints=[scipy.optimize.LinearConstraint(linear, lower, upper, keep_feasible=True)],
            options={"gtol": 1e-8, "xtol": 1e-10, "maxiter": 3000},
        )
    return found.x[:-1], float(found.x[-1])
