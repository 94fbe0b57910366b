"""Memory of PR-FL's buffers with a thousand clients, packed and with capacity for whole models.

    python -m benchmarks.scale.buffers
    python -m benchmarks.scale.buffers --clients 3000 --hidden 256 --json buffers.json

Every row runs in its own process: an MLP on small clients, all at work, trained one by one (so that
no results wait), for a few merges. `buffers` is the memory of the arrays, `formula` that of the
documentation's formula, `peak` that of the whole process, and `added` the increase by the merges.
"""

import argparse
import json
import time
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from benchmarks.scale.cohort import make_data
from fedjax_het import algorithms
from fedjax_het.algorithms.prfl.buffers import RANKINGS, page_size
from fedjax_het.algorithms.prfl.density import DENSITIES
from fedjax_het.algorithms.prfl.ranking import flat, never_pruned
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet.presets import build as build_fleet
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

# Label -> densities of the clients in turn, and the room that the buffers are given.
CASES: dict[str, tuple[tuple[float, ...], float]] = {
    "room for whole models": (DENSITIES, 1.0),
    "the author's densities": (DENSITIES, 0.43),
    "all at 0.1": ((0.1,), 0.11),
}


def one_case(label: str, clients: int, hidden: int, merges: int) -> dict[str, Any]:
    """A run in this process."""
    densities, room = CASES[label]
    problem = Problem(
        mlp((64,), 10, hidden=(hidden, hidden)),
        make_data(clients, 20 * clients),
        build_fleet("speed_groups", clients),
    )
    middling_s = float(np.median(problem.cost.step_flops() / problem.fleet.flops_per_s)) * 10
    algorithm = algorithms.build(
        "prfl",
        problem,
        density={"start": densities, "interval": 2},
        recovery=None,
        interval_s=middling_s / 2,
        links={"slack_s": 0.0},
        memory={"buffer_density": room},
        learning_rate=0.05,
        batch_size=10,
        local_steps=1,
    )
    engine, evaluator = make_engine(algorithm, problem, chunk=1), Evaluator(problem)
    harness.reset_peak()
    before, began = harness.memory_bytes()["now"], time.perf_counter()
    run = simulate(algorithm, problem, rounds=merges, engine=engine, evaluator=evaluator)
    wall_s = time.perf_counter() - began - engine.resources.compiler.seconds
    peak = harness.memory_bytes()["peak"]
    slots = run.state.slots
    weights = flat(run.variables.params).size
    dense = sum(leaf.size for leaf in never_pruned(run.variables.params))
    page = page_size(weights)
    pages = np.ceil(room * clients * np.ceil(weights / page))
    return {
        "label": label,
        "kept": int(np.sum(np.asarray(slots.size) > 0)),
        "buffers_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(slots)),
        "formula_bytes": 4 * (pages * page + clients * dense + RANKINGS * weights),
        "dense_bytes": 4 * clients * (weights + dense),
        "peak_bytes": peak,
        "added_bytes": peak - before,
        "merge_s": wall_s / merges,
        "update_s": wall_s / len(run.record.clients),
    }


def measure(clients: int, hidden: int, merges: int) -> dict[str, Any]:
    """Runs the benchmark; see the module."""
    facts = harness.machine()
    shared = ["--clients", str(clients), "--hidden", str(hidden), "--merges", str(merges)]
    rows = [
        harness.in_child("benchmarks.scale.buffers", ["--child", label, *shared]) for label in CASES
    ]
    return {"machine": facts, "clients": clients, "hidden": hidden, "rows": rows}


def report(results: dict[str, Any]) -> str:
    """The table."""
    header = ("densities", "kept", "buffers MB", "formula MB", "added MB", "peak MB", "ms / update")
    names = ("buffers_bytes", "formula_bytes", "added_bytes", "peak_bytes")
    rows = [
        [
            row["label"],
            f"{row['kept']}",
            *(f"{row[name] / 1e6:.0f}" for name in names),
            f"{1e3 * row['update_s']:.2f}",
        ]
        for row in results["rows"]
    ]
    whole = results["rows"][0]["dense_bytes"]
    return "\n".join(
        [
            harness.describe(results["machine"]),
            f"{results['clients']} clients; one whole model each takes {whole / 1e6:.0f} MB",
            "",
            harness.table(header, rows),
        ]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000, help="clients, all at work")
    parser.add_argument("--hidden", type=int, default=256, help="width of the two hidden layers")
    parser.add_argument("--merges", type=int, default=5, help="server steps")
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = (arguments.clients, arguments.hidden, arguments.merges)
    if arguments.child is not None:
        print(json.dumps(one_case(arguments.child, *shape)))
        return
    results = measure(*shape)
    print(report(results))
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
