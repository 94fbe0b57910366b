"""What planning has to do in a setting of ADEL-FL: the bound of three plans, before training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness
from fedjax_het.algorithms.adel.bound import AUTHORS, bound_of
from fedjax_het.algorithms.adel.planning import make_plan, make_planner
from fedjax_het.algorithms.adel.workload import Layered, prepare
from fedjax_het.problem import Problem

# Smallest fall of the excess, planned deadlines over equal ones, at which a comparison can show it.
LEAST_GAIN = 0.05


class Planned(NamedTuple):
    """A plan and its bound.

    Attributes:
      scale: batch scale m, in the unit of `adel`.
      deadlines_s: deadlines, float64[R].
      excess: the bound without the part that no plan changes.
      missed: probability that nobody finishes the input layer, float64[R].
    """

    scale: float
    deadlines_s: np.ndarray
    excess: float
    missed: np.ndarray


def plans(
    problem: Problem,
    options: Mapping[str, Any],
    *,
    rounds: int,
    total_s: float,
    batch_scale: tuple[float, float] = (0.5, 1.2),
) -> dict[str, Planned]:
    """Equal deadlines with m = 1, equal deadlines with planned m, and the full plan, by name.

    Args:
      problem: model, data and fleet.
      options: fields of `Layered`.
      rounds: number of rounds, R.
      total_s: virtual seconds for all rounds together.
      batch_scale: smallest and largest m of the planner.
    """
    layers = prepare(problem, Layered.parse(options))
    planner = make_planner(
        layers,
        rounds=rounds,
        total_s=total_s,
        batch_scale=batch_scale,
        max_miss=0.45,
        shortest_s=None,
        constants=AUTHORS,
        solver="water_filling",
    )
    bound = bound_of(layers, rounds, layers.power, AUTHORS)
    equal, full = np.full(rounds, total_s / rounds), planner.plan(layers.power)
    scales = np.linspace(*batch_scale, 300) * layers.unit_s
    scale = min(scales, key=lambda m: bound.excess(equal, m))
    cases = {
        "equal deadlines, m = 1": (equal, layers.unit_s),
        "equal deadlines, planned m": (equal, scale),
        "planned deadlines and m": (full.deadlines_s, full.scale),
    }
    return {
        name: Planned(
            float(m / layers.unit_s),
            deadlines_s,
            bound.excess(deadlines_s, m),
            make_plan(bound, deadlines_s, m).missed[:, 0],
        )
        for name, (deadlines_s, m) in cases.items()
    }


def split(found: Mapping[str, Planned]) -> str:
    """The plans as a table, and whether a comparison can tell what planned deadlines are worth."""
    rows = [
        (
            name,
            f"{plan.scale:.2f}",
            f"{plan.deadlines_s[0]:.2f}-{plan.deadlines_s[-1]:.2f}",
            f"{plan.excess:.4f}",
            f"{plan.missed.min():.3f}-{plan.missed.max():.3f}",
        )
        for name, plan in found.items()
    ]
    table = harness.table(("plan", "m", "deadlines (s)", "excess", "p of the input layer"), rows)
    return f"{table}\n\n{verdict(found)}"


def verdict(found: Mapping[str, Planned]) -> str:
    """What the bound says of planned deadlines and of the correction of the merge."""
    _, batches, full = found.values()
    gain = 1 - full.excess / batches.excess
    can = "can show" if gain > LEAST_GAIN else "CANNOT show, train another setting"
    most = 1 / (1 - full.missed.max())
    return (
        f"planned deadlines lower the excess by {100 * gain:.1f} %: a comparison {can}; the "
        f"correction of the merge is at most {most:.3f}"
    )
