"""What differential privacy of the clients costs on FEMNIST; see docs/results/privacy.md.

    python -m benchmarks.reproduce.privacy --out=runs/privacy

The 207 writers are the clients, their images averaged to 14 x 14, the network has 32 hidden units
(8,350 parameters), and clients take 5 local steps of 20. Half of the devices have 0.6 of the speed
of the others, for which FedPMT trains their last layer only. The noise of `privacy.gaussian` is set
such that epsilon is 1, 3 or 10 after the last round, with delta = n^-1.1. Clipping norm and step
size are searched on one seed, in as many runs for every arm, and reported on others. An arm is
written when it is measured, so that an interrupted study continues.
"""

import functools
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

import fedjax_het as fh
from benchmarks.cells import run_cells
from fedjax_het.data import from_arrays
from fedjax_het.data.sources import load
from fedjax_het.fleet import presets
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem

METHODS = ("fedavg", "fedpmt")
TARGETS: tuple[float | None, ...] = (1.0, 3.0, 10.0, None)  # None for the plain method
CLIPS, STEPS = (0.1, 0.3, 1.0), (0.3, 0.8)
# As many runs without privacy, where only the step size matters.
PLAIN_STEPS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
SEARCH_SEED = 100

Setting = tuple[float, float]  # clipping norm, step size


@functools.cache
def setting() -> Problem:
    """FEMNIST by writer, on devices of two speeds."""
    raw = load("femnist")

    def small(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float32).reshape(len(x), 14, 2, 14, 2).mean(axis=(2, 4))
        return x.reshape(len(x), -1) / 100  # paper is 0

    data = from_arrays(
        small(raw.x),
        raw.y,
        small(raw.test_x),
        raw.test_y,
        clients=np.unique(np.asarray(raw.clients), return_inverse=True)[1],
        num_classes=62,
    )
    fleet = presets.speed_groups(data.num_clients, relative_speeds=(0.6, 1.0))
    return Problem(mlp((196,), 62, hidden=(32,)), data, fleet)


@functools.cache
def multiplier(target: float, rounds: int, size: int, clients: int) -> float:
    """The least noise, to a thousandth, with this epsilon after these rounds."""
    low, high = 0.1, 1000.0
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        found = fh.privacy.epsilon(middle, rounds, clients**-1.1, size=size, clients=clients)
        low, high = (middle, high) if found > target else (low, middle)
    return high


def candidates(target: float | None) -> list[Setting]:
    """The settings that are searched for an arm."""
    if target is None:
        return [(float("inf"), step) for step in PLAIN_STEPS]
    return list(itertools.product(CLIPS, STEPS))


def accuracies(
    method: str, noise: float, chosen: Setting, seeds: Sequence[int], rounds: int, size: int | None
) -> tuple[list[float], float | None]:
    """Accuracy of each seed after the last round, and the epsilon that its row tells.

    Args:
      method: name of the method.
      noise: noise over the clipping norm; 0 for the method without privacy.
      chosen: clipping norm and step size.
      seeds: seeds of the runs.
      rounds: number of rounds.
      size: clients of a cohort; None for all of them in every round.
    """
    problem, (clip, step) = setting(), chosen
    algorithm = fh.algorithms.build(
        method,
        problem,
        learning_rate=step,
        batch_size=20,
        local_steps=5,
        weighting="uniform",
        clients_per_round=size,
        compose=[fh.privacy.gaussian(clip=clip, noise=noise)],
    )
    results = fh.simulate(algorithm, problem, seeds=seeds, rounds=rounds, eval_every=10**9)
    # A run that diverged has no accuracy.
    found = [result.record.final or 0.0 for result in results]
    return found, results[0].record.metrics[-1]["info"].get("epsilon")


def measured(
    method: str, target: float | None, seeds: Sequence[int], rounds: int, size: int | None
) -> dict[str, Any]:
    """An arm of the study: the search, and the best setting on other seeds.

    Args:
      method: name of the method.
      target: epsilon after the last round, or None for the method without privacy.
      seeds: seeds of the reported runs.
      rounds: number of rounds.
      size: clients of a cohort; None for all of them in every round.
    """
    began, n = time.perf_counter(), setting().num_clients
    noise = 0.0 if target is None else multiplier(target, rounds, size or n, n)
    searched = {
        chosen: accuracies(method, noise, chosen, [SEARCH_SEED], rounds, size)[0][0]
        for chosen in candidates(target)
    }
    best = max(searched, key=searched.__getitem__)
    accuracy, epsilon = accuracies(method, noise, best, seeds, rounds, size)
    return {
        "method": method,
        "target": target,
        "noise": noise,
        "clip": best[0],
        "step": best[1],
        "searched": [[*chosen, value] for chosen, value in searched.items()],
        "epsilon": epsilon,
        "accuracy": accuracy,
        "wall_s": time.perf_counter() - began,
    }


def table(arms: Sequence[dict[str, Any]]) -> str:
    """The arms in Markdown."""
    lines = [
        "| method | epsilon | noise / clip | clip | step size | accuracy (%) | per seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        values = 100 * np.asarray(arm["accuracy"], np.float64)
        private = arm["target"] is not None
        columns = [
            arm["method"],
            f"{arm['epsilon']:.2f}" if private else "-",
            f"{arm['noise']:.2f}" if private else "-",
            f"{arm['clip']:g}" if private else "-",
            f"{arm['step']:g}",
            f"{values.mean():.1f} ± {values.std(ddof=1) if len(values) > 1 else 0:.1f}",
            ", ".join(f"{value:.1f}" for value in values),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def main(_: Sequence[str]) -> None:
    """Measures the arms and prints the table."""
    rounds, size = flags.FLAGS.rounds, flags.FLAGS.cohort or None
    seeds = [int(seed) for seed in flags.FLAGS.seeds]
    cells = {
        f"{method}-{target or 'plain'}-{size or 'all'}-{rounds}": functools.partial(
            measured, method, target, seeds, rounds, size
        )
        for target, method in itertools.product(TARGETS, METHODS)
    }

    def announce(name: str, arm: dict[str, Any]) -> None:
        print(f"{name}: {arm['accuracy']}, {arm['wall_s']:.0f} s", flush=True)

    print(table(list(run_cells(cells, flags.FLAGS.out, announce).values())))


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/privacy", "Directory of the cells.")
    flags.DEFINE_integer("rounds", 30, "Rounds of every run.")
    flags.DEFINE_integer("cohort", 0, "Clients of a cohort; 0 for all of them in every round.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds that are reported.")
    app.run(main)
