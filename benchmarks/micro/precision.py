"""Effect of bfloat16 compute on the learned model: the same runs in both precisions.

    python -m benchmarks.micro.precision
    python -m benchmarks.micro.precision --source cifar10 --clients 20 --rounds 60 --local_steps 10

FedAvg trains a network of two convolutions on a Dirichlet split, with all clients in every round.
Parameters, gradients and the merge are float32 in both (`models.with_compute_dtype`). The times do
not apply to accelerators, because a CPU does not benefit from bfloat16.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import harness
from fedjax_het import experiment

PRECISIONS = ("float32", "bfloat16")


def config(
    source: str, clients: int, rounds: int, local_steps: int | None, precision: str, seed: int
) -> dict[str, Any]:
    """One run; evaluated at its end."""
    return {
        "data": {
            "source": source,
            "num_clients": clients,
            "partition": {"name": "dirichlet", "alpha": 0.5, "min_size": 10},
            "seed": seed,
        },
        "model": {"name": "cifar_cnn", "compute_dtype": precision},
        "fleet": {"name": "uniform"},
        "algorithm": {
            "name": "fedavg",
            "learning_rate": 0.05,
            "batch_size": 20,
            "local_steps": local_steps,
        },
        "run": {"rounds": rounds, "eval_every": rounds, "seed": seed},
    }


def measure(
    source: str, clients: int, rounds: int, local_steps: int | None, seeds: Sequence[int]
) -> dict[str, Any]:
    """Runs the benchmark; see the module."""
    rows = []
    for seed in seeds:
        for precision in PRECISIONS:
            began = time.perf_counter()
            made = config(source, clients, rounds, local_steps, precision, seed)
            last = experiment.train(made).record.metrics[-1]
            rows.append(
                {
                    "seed": seed,
                    "precision": precision,
                    "accuracy": last["accuracy"],
                    "loss": last["loss"],
                    "wall_s": time.perf_counter() - began,
                }
            )
    return {
        "machine": harness.machine(),
        "source": source,
        "clients": clients,
        "rounds": rounds,
        "rows": rows,
    }


def report(results: dict[str, Any]) -> str:
    """A row a precision, and how far apart they are seed by seed."""
    by = {
        precision: [row for row in results["rows"] if row["precision"] == precision]
        for precision in PRECISIONS
    }

    def spread(values: Sequence[float], scale: float = 1.0) -> str:
        return f"{scale * np.mean(values):.3g} ± {scale * np.std(values):.2g}"

    cells = [
        [
            precision,
            spread([row["accuracy"] for row in rows], 100.0),
            spread([row["loss"] for row in rows]),
        ]
        for precision, rows in by.items()
    ]
    apart = [
        100.0 * (other["accuracy"] - one["accuracy"])
        for one, other in zip(*by.values(), strict=True)
    ]
    return "\n".join(
        [
            harness.describe(results["machine"]),
            "{source}, {clients} clients, {rounds} rounds, accuracy in %".format(**results),
            "",
            harness.table(("precision", "accuracy", "loss"), cells),
            "",
            f"bfloat16 - float32 by seed, points: {', '.join(f'{d:+.2f}' for d in apart)}",
        ]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="digits")
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--local_steps", type=int, help="left out: one epoch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    harness.command(parser, measure, report)


if __name__ == "__main__":
    main()
