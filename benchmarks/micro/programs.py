"""Programs of FedEL, whose windows are as many routes: seconds compiling beside seconds of rounds.

    python -m benchmarks.micro.programs --models mlp,cifar_cnn,vgg11,resnet20 --rounds 30

Twenty clients of four speeds, all of them in every round, five steps of 16 on images of CIFAR's
size, for "mlp" of 8 x 8. Every run is a process with an empty cache: once with a program for every
window at once ("own"), once with windows that are rented first, the default (`engine/routes.py`).
"""

import argparse
import json
import os
import tempfile
from typing import Any
from unittest import mock

from benchmarks import harness, isa

_CLIENTS, _STEPS, _BATCH = 20, 5, 16
# Options of the models; "mlp" is a user's network of five blocks.
_MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (64, 64, 64, 64)},
    "cifar_cnn": {},
    "vgg11": {"width": 0.125},
    "resnet20": {},
}


def one(model: str, rents: bool, rounds: int) -> dict[str, float]:
    """Compiles and seconds of one run in this process."""
    import numpy as np

    from fedjax_het import models
    from fedjax_het.algorithms import build
    from fedjax_het.data.federated import from_arrays
    from fedjax_het.engine import routes
    from fedjax_het.fleet import build as build_fleet
    from fedjax_het.problem import Problem
    from fedjax_het.simulation.simulate import simulate

    free = {k: p._replace(program_s=0.0, program_block_s=0.0) for k, p in routes.PRICES.items()}
    shape, each = (8, 8, 1) if model == "mlp" else (32, 32, 3), _STEPS * _BATCH
    rng = np.random.default_rng(0)
    # Classes that can be learnt, so that importances and windows are those of a training.
    y = rng.integers(0, 10, _CLIENTS * each + 1)
    x = np.clip(rng.normal(20.0 * y[:, None, None, None], 40.0, (len(y), *shape)), 0, 255)
    x = x.astype(np.uint8)
    owner = np.repeat(np.arange(_CLIENTS), each)
    data = from_arrays(x[:-1], y[:-1], x[-1:], y[-1:], clients=owner, num_classes=10)
    network = models.build(model, shape, 10, exits=True, **_MODELS[model])
    problem = Problem(network, data, build_fleet("fedel", _CLIENTS))
    training = {"learning_rate": 0.02, "batch_size": _BATCH, "local_steps": _STEPS}
    algorithm = build("fedel", problem, **training, probe={"step": 0.01})
    with mock.patch.dict(routes.PRICES, {} if rents else free):
        result = simulate(algorithm, problem, rounds=rounds, eval_every=rounds)
    summary, rows = result.record.summary, result.record.clients
    return {
        "windows": len({(row["first_block"], row["exit_block"]) for row in rows}),
        "programs": result.record.metrics[-1]["compiled_programs"],
        "compile_s": summary["compile_s"],
        "rounds_s": summary["wall_s"],
    }


def measure(names: list[str], rounds: int, repeats: int) -> dict[str, Any]:
    """Runs the benchmark, own and rented in turn."""
    facts, rows = harness.machine(), []
    for model in names:
        runs: dict[str, list[dict[str, float]]] = {"own": [], "rented": []}
        for _ in range(repeats):
            for how, found in runs.items():
                with tempfile.TemporaryDirectory() as folder:
                    os.environ["FEDJAX_HET_COMPILATION_CACHE"] = folder
                    child = ["--child", model, "--how", how, "--rounds", str(rounds)]
                    found.append(harness.in_child("benchmarks.micro.programs", child))
        rows += [{"model": model, "how": how, "runs": found} for how, found in runs.items()]
    return {"machine": facts, "rounds": rounds, "rows": rows}


def report(results: dict[str, Any]) -> str:
    """The table as text."""
    header = ("model", "", "windows", "programs", "compiling s", f"{results['rounds']} rounds s")
    rows = []
    for row in results["rows"]:
        first = row["runs"][0]
        times = (harness.spread([run[name] for run in row["runs"]]) for name in list(first)[2:])
        counts = (str(int(first[name])) for name in list(first)[:2])
        rows.append([row["model"], row["how"], *counts, *map(str, times)])
    return "\n".join([harness.describe(results["machine"]), "", harness.table(header, rows)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(_MODELS), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of a run")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, in turn")
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--how", help=argparse.SUPPRESS)
    arguments = isa.parse(parser)
    if arguments.child:
        print(json.dumps(one(arguments.child, arguments.how == "rented", arguments.rounds)))
        return
    results = measure(arguments.models.split(","), arguments.rounds, arguments.repeats)
    print(report(results))
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
