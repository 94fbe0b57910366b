"""Peak memory with a hundred to ten thousand clients in a round, and compilations by XLA.

    python -m benchmarks.scale.cohort
    python -m benchmarks.scale.cohort --sizes 100,1000,10000,100000 --chunk 64 --json scale.json

Every cohort size runs in its own process: small clients (10 to 20 samples of 8x8 pixels), an MLP,
full participation, a fixed chunk. The pool of samples has the same size in all processes. The index
(4 bytes per held sample, 8 per client), the arrays of the fleet and the plan (about 150 bytes per
client) and the records of the round grow with the cohort. `peak` is the memory of a whole
`simulate` of one round in a new process, with Python, JAX, the compiler and the records (the
smaller of two processes, because the memory of the compiler's threads varies by a few per cent).
`round` is the memory that one more round of training and merging adds in that process.

The second part draws cohort size, clients, depths, local steps and batch sizes at random in every
round and counts compilations.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from fedjax_het.algorithms.fedavg import fedavg
from fedjax_het.algorithms.fedpmt import fedpmt
from fedjax_het.contract.plan import Situation
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.engine.engine import make_engine
from fedjax_het.engine.steps import Now
from fedjax_het.fleet.presets import build as build_fleet
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

_HIDDEN = (128, 64)
_SAMPLES = (10, 20)
_TRIES = 2
_LIMIT = 1.10


def make_data(clients: int, pool: int) -> FederatedData:
    """Clients with 10 to 20 samples each out of a pool whose size does not depend on them."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 17, (pool, 64), dtype=np.uint8)
    y = rng.integers(0, 10, pool)
    sizes = rng.integers(_SAMPLES[0], _SAMPLES[1] + 1, clients)
    ends = np.cumsum(sizes)
    held = np.split(np.arange(ends[-1]), ends[:-1])
    return from_arrays(x, y, x[:100], y[:100], clients=held, num_classes=10)


def make_problem(clients: int, pool: int) -> Problem:
    """An MLP of 17,000 parameters on three speeds."""
    model = mlp((64,), 10, hidden=_HIDDEN)
    return Problem(model, make_data(clients, pool), build_fleet("speed_groups", clients))


def smallest_peak(clients: int, pool: int, chunk: int) -> dict[str, Any]:
    """`one_size` in two processes of its own; the one of the smaller peak."""
    arguments = ["--child", str(clients), "--pool", str(pool), "--chunk", str(chunk)]
    runs = [harness.in_child("benchmarks.scale.cohort", arguments) for _ in range(_TRIES)]
    return min(runs, key=lambda run: run["peak_bytes"])


def one_size(clients: int, pool: int, chunk: int) -> dict[str, Any]:
    """Memory and time of rounds with `clients` clients, in this process."""
    problem = make_problem(clients, pool)
    algorithm = fedavg(problem, learning_rate=0.05, batch_size=10)
    engine = make_engine(algorithm, problem, chunk=chunk)
    with tempfile.TemporaryDirectory() as workdir:
        run = simulate(algorithm, problem, rounds=1, engine=engine, workdir=Path(workdir) / "run")
    whole, programs = harness.memory_bytes()["peak"], engine.programs
    compile_s = engine.resources.compiler.seconds

    def round() -> None:
        key, who = jax.random.key(0), np.arange(clients)
        situation = Situation(0, 0.0, who, key, np.random.default_rng(0))
        plan, _ = algorithm.plan((), run.variables, situation)
        acc, _ = engine.train((), run.variables, plan, key)
        jax.block_until_ready(
            engine.close(acc, (), run.variables, plan.shared, Now(np.int32(0), key))
        )

    round()  # compiles the round on its own: the simulation runs whole blocks
    harness.reset_peak()
    before = harness.memory_bytes()["now"]
    began = time.perf_counter()
    round()
    round_s = time.perf_counter() - began
    growth = harness.memory_bytes()["peak"] - before
    params = int(np.sum(problem.cost.param_bytes))
    data = problem.data
    return {
        "clients": clients,
        "peak_bytes": whole,
        "round_bytes": growth,
        "index_bytes": data.order.nbytes + data.start.nbytes + data.count.nbytes,
        "stacked_bytes": clients * params,
        "client_s": round_s / clients,
        "programs": programs,
        "compile_s": compile_s,
    }


def compile_counts(rounds: int, most: int, chunk: int | None) -> dict[str, Any]:
    """Compilations over rounds in which everything that may vary does.

    Args:
      rounds: rounds.
      most: clients there are; every round samples 1 to that many.
      chunk: clients side by side; None chooses.
    """
    problem = make_problem(most, most * _SAMPLES[1])
    blocks = problem.model.num_blocks
    rng = np.random.default_rng(1)
    capacity = [np.minimum(rng.uniform(0.2, 1.4, most), 1.0) for _ in range(rounds)]
    algorithm = fedpmt(
        problem, learning_rate=0.05, batch_size=_SAMPLES[1], capacity=lambda r: capacity[r]
    )
    engine = make_engine(algorithm, problem, chunk=chunk)
    variables = problem.model.init(jax.random.key(0))
    after: list[int] = []
    seen: dict[str, set[int]] = {
        "clients": set(),
        "depths": set(),
        "steps": set(),
        "batches": set(),
    }
    for r in range(rounds):
        k = int(rng.integers(1, most + 1))
        who = np.sort(rng.choice(most, k, replace=False))
        key = jax.random.key(r)
        plan, _ = algorithm.plan(
            (), variables, Situation(r, 0.0, who, key, np.random.default_rng(r))
        )
        steps = rng.integers(1, 6, k)
        batch = np.minimum(rng.integers(1, _SAMPLES[1] + 1, k), problem.data.sizes[who])
        engine.train((), variables, plan._replace(steps=steps, batch=batch), key)
        after.append(engine.programs)
        seen["clients"].add(k)
        seen["depths"].update(blocks - route.first for route in plan.routes)
        seen["steps"].update(steps.tolist())
        seen["batches"].update(batch.tolist())
    # A group is padded to a power of two of chunks. A chunk that is chosen is a power of two itself
    # and may vary with the batch size: then there are pairs of powers, chunk <= length.
    powers = math.ceil(math.log2(most if chunk is None else -(-most // chunk)))
    pairs = (powers + 1) * (powers + 2) // 2 if chunk is None else powers + 1
    return {
        "rounds": rounds,
        "chunk": chunk,
        "distinct": {name: len(values) for name, values in seen.items()},
        "programs": engine.programs,
        "programs_after_round": after,
        "bound": blocks * pairs,
        "compile_s": engine.resources.compiler.seconds,
    }


def measure(sizes: list[int], chunk: int, rounds: int = 20, most: int = 200) -> dict[str, Any]:
    """Runs the benchmark; see the module."""
    facts = harness.machine()
    pool = max(sizes) * _SAMPLES[1]
    rows = [smallest_peak(size, pool, chunk) for size in sizes]
    return {
        "machine": facts,
        "chunk": chunk,
        "pool": pool,
        "sizes": rows,
        "peak_ratio": rows[-1]["peak_bytes"] / rows[0]["peak_bytes"],
        "compiles": [compile_counts(rounds, most, c) for c in (chunk, None)],
    }


def report(results: dict[str, Any]) -> str:
    """Both parts as text."""

    def mega(value: float) -> str:
        return f"{value / 1e6:.1f}"

    header = (
        "clients",
        "peak MB",
        "round MB",
        "index MB",
        "(stacked MB)",
        "us/client",
        "programs",
        "compile s",
    )
    rows = [
        [
            f"{row['clients']}",
            mega(row["peak_bytes"]),
            mega(row["round_bytes"]),
            mega(row["index_bytes"]),
            mega(row["stacked_bytes"]),
            f"{1e6 * row['client_s']:.0f}",
            f"{row['programs']}",
            f"{row['compile_s']:.1f}",
        ]
        for row in results["sizes"]
    ]
    first, last = results["sizes"][0], results["sizes"][-1]
    verdict = "flat within 10 %" if results["peak_ratio"] <= _LIMIT else "NOT FLAT"
    lines = [
        harness.describe(results["machine"]),
        f"chunk of {results['chunk']} clients, pool of {results['pool']} samples",
        "",
        harness.table(header, rows),
        "(stacked: what the updates of all clients side by side would take)",
        f"peak memory from {first['clients']} to {last['clients']} clients: "
        f"x {results['peak_ratio']:.3f}, {verdict}",
        "",
    ]
    for part in results["compiles"]:
        distinct = ", ".join(f"{count} {name}" for name, count in part["distinct"].items())
        chunk = "chosen" if part["chunk"] is None else part["chunk"]
        lines.append(
            f"{part['rounds']} rounds, chunk {chunk}, different {distinct}: {part['programs']} "
            f"programs compiled in {part['compile_s']:.0f} s, bound {part['bound']}; "
            f"after each round {part['programs_after_round']}"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="100,1000,10000", help="clients per round, ascending")
    parser.add_argument("--chunk", type=int, default=32, help="clients trained side by side")
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pool", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(one_size(arguments.child, arguments.pool, arguments.chunk)))
        return
    results = measure([int(size) for size in arguments.sizes.split(",")], arguments.chunk)
    print(report(results))
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
