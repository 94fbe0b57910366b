"""Time to plan ADEL-FL's deadlines with water-filling and with the paper's trust-constr.

    python -m benchmarks.micro.planner [--all]

The interior-point solver takes about a minute for hundreds of rounds, so it runs on such plans only
with --all.
"""

import time

import numpy as np
from absl import app, flags

from benchmarks import harness
from fedjax_het.algorithms.adel.bound import Bound, Constants
from fedjax_het.algorithms.adel.planning import Limits, least_ratio, plan_deadlines

# Rounds, layers, users.
SIZES = ((50, 8, 20), (300, 13, 100), (1000, 20, 1000))
_SMALL = 100


def problem(rounds: int, layers: int, users: int) -> tuple[Bound, Limits]:
    """Users of unequal power and noise, and 5 % more time than the least scale needs at m = 1."""
    rng = np.random.default_rng(0)
    power = 8192.0 * rng.uniform(0.05, 1.0, users)
    constants = Constants(gradient_noise=(5.0 * rng.uniform(size=users)).tolist())
    steps = 0.5 / (np.arange(rounds) + 2.0)
    bound = Bound(layers, users, steps, constants.noise(power, users), constants)
    return bound, Limits(1.05 * rounds * least_ratio(layers, users, 0.45))


def main(argv: list[str]) -> None:
    """Prints one line per problem and solver."""
    del argv
    print(harness.describe(harness.machine()))
    rows = []
    for size in SIZES:
        bound, limits = problem(*size)
        name = "R = {}, L = {}, U = {}".format(*size)
        seconds = []
        for _ in range(flags.FLAGS.repeats):
            began = time.perf_counter()
            filled = plan_deadlines(bound, limits)
            seconds.append(time.perf_counter() - began)
        excess = filled.bound - bound.floor
        rows.append([name, "water_filling", str(harness.spread(seconds)), f"{excess:.8f}"])
        if size[0] > _SMALL and not flags.FLAGS.all:
            continue
        began = time.perf_counter()
        searched = plan_deadlines(bound, limits, "trust_constr")
        took_s = time.perf_counter() - began
        rows.append([name, "trust_constr", f"{took_s:.3g}", f"{searched.bound - bound.floor:.8f}"])
    print(harness.table(["problem", "solver", "seconds", "bound above its floor"], rows))


if __name__ == "__main__":
    flags.DEFINE_bool("all", False, "Also run trust-constr on the larger problems.")
    flags.DEFINE_integer("repeats", 5, "Water-filling repeats.", lower_bound=1)
    app.run(main)
