"""FedEL's claim of 49.59 % less energy than FedAvg, from plans alone, without training.

    python -m benchmarks.reproduce.fedel_energy --rounds=12

The fleets are those of the paper (methods/fedel.md 5.1): a test bed of five boards and five that
take twice as long, and four device types that take 1 to 4 times as long. The network is VGG16 for
32 x 32 images. A board draws the same power whenever it computes, and a share of it while it waits
for the merge; the paper publishes neither, so the table has a column per share. Transfers are left
out (3 % of the time in the paper). The model stays as drawn, and so do the importances that FedEL
chooses by; the windows slide. Prints a table in Markdown.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from fedjax_het import algorithms, models
from fedjax_het.contract.clock import dispatch
from fedjax_het.contract.plan import Situation
from fedjax_het.data.federated import from_arrays
from fedjax_het.fleet import presets, task_joules
from fedjax_het.problem import Problem

CLAIM = 0.4959
FLEETS: dict[str, tuple[int, tuple[float, ...]]] = {
    "test bed, 2 types": (10, (1.0, 2.0)),
    "simulation, 4 types": (12, (1.0, 2.0, 3.0, 4.0)),
}
IDLE_SHARES = (0.0, 0.25, 0.5, 1.0)
WATTS = 1.0


class Energy(NamedTuple):
    """Energy of all devices over some rounds, if they draw `WATTS` in both cases."""

    working_j: float
    waiting_j: float

    def joules(self, share: float) -> float:
        """Energy if a waiting device draws this share of the power of a working one."""
        return self.working_j + share * self.waiting_j


def setting(clients: int, slowdowns: Sequence[float], width: float = 1.0) -> Problem:
    """The problem: a few random images per client, and boards of `WATTS`.

    Args:
      clients: number of clients.
      slowdowns: time of each type of board over that of the fastest.
      width: factor on the channels of VGG16.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4 * clients, 32, 32, 3), np.float32)
    y = np.arange(4 * clients) % 10
    owner = np.repeat(np.arange(clients), 4)
    data = from_arrays(x, y, x[:4], y[:4], clients=owner, num_classes=10)
    model = models.build("vgg16", (32, 32, 3), 10, width=width, exits=True)
    plain = presets.fedel(clients, slowdowns=slowdowns, assignment="cyclic")
    fleet = replace(plain, joules_per_flop=WATTS / plain.flops_per_s, idle_watts=WATTS)
    return Problem(model, data, fleet)


def planned(name: str, problem: Problem, rounds: int) -> Energy:
    """Energy of the plans of a method, made in turn for all clients without training.

    Args:
      name: name of the method.
      problem: problem of `setting`.
      rounds: number of rounds.
    """
    options: dict[str, Any] = {
        "learning_rate": 0.1,
        "batch_size": 4,
        "local_steps": 1,
        "weighting": "uniform",
    }
    if name == "fedel":
        # The probe of the published figures; a whole step would make importances negative.
        options["probe"] = {"step": 0.01}
    algorithm = algorithms.build(name, problem, **options)
    variables = problem.model.init(jax.random.key(0))
    state = algorithm.init(variables, jax.random.key(1))
    everyone, now_s = np.arange(problem.num_clients), 0.0
    working_j = waiting_j = 0.0
    for round in range(rounds):
        key, rng = jax.random.fold_in(jax.random.key(2), round), np.random.default_rng(round)
        plan, state = algorithm.plan(state, variables, Situation(round, now_s, everyone, key, rng))
        flight = dispatch(plan, now_s, round)
        now_s = algorithm.pace.close(flight).at_s
        idle_s = np.maximum(now_s - flight.arrives_s, 0.0)
        working_j += task_joules(problem.fleet, everyone, plan.timing.flops, 0, 0, 0).sum()
        waiting_j += task_joules(problem.fleet, everyone, 0, 0, 0, idle_s).sum()
    return Energy(float(working_j), float(waiting_j))


def table(rounds: int, width: float) -> list[str]:
    """FedEL's savings as lines of Markdown: a row per fleet, a column per power of waiting."""
    head = " | ".join(f"waiting at {100 * share:.0f} %" for share in IDLE_SHARES)
    lines = [f"| fleet | {head} |", "|---" * (len(IDLE_SHARES) + 1) + "|"]
    for name, (clients, slowdowns) in FLEETS.items():
        problem = setting(clients, slowdowns, width)
        whole, part = (planned(method, problem, rounds) for method in ("fedavg", "fedel"))
        cells = [
            f"{100 * (1 - part.joules(share) / whole.joules(share)):.1f} %" for share in IDLE_SHARES
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(_: Sequence[str]) -> None:
    """Prints the table and the claim."""
    print("\n".join(table(flags.FLAGS.rounds, flags.FLAGS.width)))
    print(f"\nThe paper claims {100 * CLAIM:.2f} %.")


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 12, "Rounds to plan, a multiple of 1 to 4 (lengths of a pass).")
    flags.DEFINE_float("width", 1.0, "Factor on the channels of VGG16.")
    app.run(main)
