"""Time to the end of the first round in a new process, with and without cached programs.

    python -m benchmarks.micro.first_round --models mlp,leaf_cnn,resnet20

Every process imports the library, makes the problem, and simulates one round of 4 clients and one
local step with an evaluation; this work takes a fraction of a second. The first process has an
empty cache, the later ones have the programs that the first compiled.
"""

import argparse
import json
import os
import tempfile
import time
from typing import Any

from benchmarks import harness, isa

_CLIENTS = 4


def one(model: str) -> dict[str, float]:
    """Seconds of one simulated round in this process, and those spent compiling."""
    began = time.perf_counter()
    from benchmarks.micro.training import make_work
    from fedjax_het.algorithms.fedavg import fedavg
    from fedjax_het.simulation.simulate import simulate

    imported = time.perf_counter()
    work = make_work(model, _CLIENTS, 1, 8)
    algorithm = fedavg(work.problem, learning_rate=0.01, batch_size=8)
    result = simulate(algorithm, work.problem, rounds=1)
    return {
        "import_s": imported - began,
        "round_s": time.perf_counter() - imported,
        "compile_s": result.record.summary["compile_s"],
    }


def measure(models: list[str], warm: int) -> dict[str, Any]:
    """Runs the benchmark; see the module.

    Args:
      models: keys of `INPUT_SHAPES`.
      warm: processes after the first.
    """
    facts = harness.machine()
    rows = []
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FEDJAX_HET_COMPILATION_CACHE"] = folder
            runs = [
                harness.in_child("benchmarks.micro.first_round", ["--child", model])
                for _ in range(1 + warm)
            ]
        rows.append({"model": model, "cold": runs[0], "warm": runs[1:]})
    return {"machine": facts, "rows": rows}


def report(results: dict[str, Any]) -> str:
    """The table as text."""
    header = ("model", "cold s", "compiling s", "warm s", "compiling s", "import s")
    rows = []
    for row in results["rows"]:
        warm = {name: harness.spread([r[name] for r in row["warm"]]) for name in row["cold"]}
        rows.append(
            [
                row["model"],
                f"{row['cold']['round_s']:.1f}",
                f"{row['cold']['compile_s']:.1f}",
                str(warm["round_s"]),
                str(warm["compile_s"]),
                str(warm["import_s"]),
            ]
        )
    return "\n".join([harness.describe(results["machine"]), "", harness.table(header, rows)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mlp,leaf_cnn,resnet20", help="comma-separated")
    parser.add_argument("--warm", type=int, default=2, help="processes after the first")
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = isa.parse(parser)
    if arguments.child:
        print(json.dumps(one(arguments.child)))
        return
    results = measure(arguments.models.split(","), arguments.warm)
    print(report(results))
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
