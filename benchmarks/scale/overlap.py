"""Wall time per client update of asynchronous methods, against synchronous rounds.

    python -m benchmarks.scale.overlap
    python -m benchmarks.scale.overlap --at_work 100 --updates 2000 --json overlap.json

All methods have the same clients, model and local work, `--at_work` clients at a time, and devices
whose speeds spread by a factor of ten and vary from task to task. Every method trains the same
number of clients. The time is that of the whole simulation without compilation and evaluation.
Methods run in turn, so that a disturbance affects all of them; ratios are taken within a turn.
"""

import argparse
import time
from typing import Any

import numpy as np

from benchmarks import harness
from fedjax_het import algorithms
from fedjax_het.data.federated import from_arrays
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet.device import Fleet
from fedjax_het.models import build as build_model
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

LIMIT = 1.3
_SAMPLES = 40


def make_problem(clients: int, model: str) -> Problem:
    """Clients of 40 random images each; the fastest device is ten times as fast as the slowest."""
    rng = np.random.default_rng(0)
    n = clients * _SAMPLES
    x = rng.standard_normal((n, 28, 28, 1), np.float32)
    y = rng.integers(0, 10, n)
    owner = np.repeat(np.arange(clients), _SAMPLES)
    data = from_arrays(x, y, x[:20], y[:20], clients=owner, num_classes=10)
    speed = 1e9 * 10 ** rng.uniform(0, 1, clients)
    return Problem(build_model(model, (28, 28, 1), 10), data, Fleet(speed, compute_jitter=0.2))


def contenders(at_work: int, interval_s: float) -> dict[str, tuple[str, dict[str, Any]]]:
    """Label -> algorithm and its options."""
    return {
        "FedAvg, synchronous": ("fedavg", {}),
        "FedBuff, K = 10": ("fedbuff", {"buffer_size": min(10, at_work)}),
        "FedFix, 10 windows a task": ("fedfix", {"interval_s": interval_s}),
        "FedAsync": ("fedasync", {}),
    }


def measure(
    at_work: int, updates: int, repeats: int, model: str = "adel_cnn2", steps: int = 4
) -> dict[str, Any]:
    """Runs the benchmark; see the module."""
    facts = harness.machine()
    problem = make_problem(2 * at_work, model)
    training = {
        "learning_rate": 0.01,
        "batch_size": 20,
        "local_steps": steps,
        "clients_per_round": at_work,
    }
    middling_s = (
        float(np.median(problem.cost.step_flops() / problem.fleet.flops_per_s)) * 20 * steps
    )
    rows = []
    runs: dict[str, Any] = {}
    for label, (name, options) in contenders(at_work, middling_s / 10).items():
        algorithm = algorithms.build(name, problem, **training, **options)
        engine, evaluator = make_engine(algorithm, problem), Evaluator(problem)
        # Steps until so many clients were merged: measured in a first run, which also compiles.
        run = _run(algorithm, problem, engine, evaluator, updates, None)
        runs[label] = (algorithm, engine, evaluator, run["steps"])
    costs: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(repeats):
        for label, (algorithm, engine, evaluator, rounds) in runs.items():
            result = _run(algorithm, problem, engine, evaluator, updates, rounds)
            costs[label].append(result["wall_s"] / result["trained"])
    base = next(iter(costs.values()))
    for label, cost in costs.items():
        ratio = harness.spread([a / b for a, b in zip(cost, base, strict=True)])
        engine = runs[label][1]
        rows.append(
            {
                "label": label,
                "update_s": harness.spread(cost)._asdict(),
                "ratio": ratio._asdict(),
                "steps": runs[label][3],
                "programs": engine.programs,
                "compile_s": engine.resources.compiler.seconds,
            }
        )
    return {"machine": facts, "model": model, "at_work": at_work, "updates": updates, "rows": rows}


def _run(
    algorithm: Any, problem: Problem, engine: Any, evaluator: Any, updates: int, rounds: int | None
) -> dict[str, Any]:
    """One simulation; without `rounds`, until at least so many updates were merged."""
    guess = rounds or max(1, updates // algorithm.cohort_size)
    while True:
        began, compiled_s = time.perf_counter(), engine.resources.compiler.seconds
        result = simulate(
            algorithm,
            problem,
            rounds=guess,
            engine=engine,
            evaluator=evaluator,
            eval_every=10**9,
        )
        wall_s = time.perf_counter() - began - (engine.resources.compiler.seconds - compiled_s)
        merged = len(result.record.clients)
        if rounds is not None or merged >= updates:
            # Clients at work at the end were trained as well, most of them.
            waiting = result.record.metrics[-1].get("in_flight", 0)
            return {"steps": guess, "trained": merged, "wall_s": wall_s, "waiting": waiting}
        guess = max(guess + 1, int(guess * 1.02 * updates / merged))


def report(results: dict[str, Any]) -> str:
    """The table."""
    header = ("method", "ms / update", "ratio", "server steps", "programs", "compile s")
    rows = [
        [
            row["label"],
            str(harness.Spread(**{k: 1e3 * v for k, v in row["update_s"].items()})),
            str(harness.Spread(**row["ratio"])),
            f"{row['steps']}",
            f"{row['programs']}",
            f"{row['compile_s']:.0f}",
        ]
        for row in results["rows"]
    ]
    return "\n".join(
        [
            harness.describe(results["machine"]),
            f"{results['model']}, {results['at_work']} clients at work, "
            f"at least {results['updates']} updates; limit of the ratio {LIMIT}",
            "",
            harness.table(header, rows),
        ]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at_work", type=int, default=100, help="clients at a time")
    parser.add_argument("--updates", type=int, default=1000, help="client updates per run")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--model", default="adel_cnn2", help="name of a model for 28x28 images")
    parser.add_argument("--steps", type=int, default=4, help="local steps of 20 samples")
    harness.command(parser, measure, report)


if __name__ == "__main__":
    main()
