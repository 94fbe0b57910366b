"""A set of images in memory, on the device, and streamed from a memory-mapped file.

    python -m benchmarks.scale.streaming --megabytes 100 --clients 1000

Every way is a process of its own that trains the same rounds of the same model; the digests of the
models must agree. Memory is that of the process above the memory after the imports: anonymous
memory, as sampled, and all resident memory, which counts pages of the file that the kernel keeps
while nobody needs them.
"""

import argparse
import dataclasses
import hashlib
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, isa

_SHAPE, _CLASSES, _TEST = (32, 32, 3), 10, 500
_WAYS = ("in memory", "in memory, streamed", "mapped, streamed")


def write(folder: Path, megabytes: int, clients: int) -> None:
    """Writes images and labels in a folder, the clients' samples mixed."""
    rng = np.random.default_rng(0)
    samples = megabytes * 10**6 // int(np.prod(_SHAPE))
    x = np.lib.format.open_memmap(
        folder / "x.npy", mode="w+", dtype=np.uint8, shape=(samples, *_SHAPE)
    )
    for start in range(0, samples, 10_000):
        part = x[start : start + 10_000]
        part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
    x.flush()
    np.save(folder / "y.npy", rng.integers(0, _CLASSES, samples))
    np.save(folder / "client.npy", rng.permutation(np.arange(samples) % clients))
    np.save(folder / "test_x.npy", rng.integers(0, 256, (_TEST, *_SHAPE), dtype=np.uint8))
    np.save(folder / "test_y.npy", rng.integers(0, _CLASSES, _TEST))


class Peak:
    """The largest anonymous memory of this process, in bytes, sampled every 5 ms (Linux)."""

    def __init__(self) -> None:
        self.bytes, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.bytes = max(self.bytes, anonymous())

    def end(self) -> int:
        """Ends the watch; the largest value."""
        self._over.set()
        self._thread.join()
        return self.bytes


def anonymous() -> int:
    """Anonymous memory of this process now, in bytes (Linux)."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def one(folder: str, way: str, rounds: int, cohort: int) -> dict[str, Any]:
    """Trains in one way in this process."""
    import jax

    from fedjax_het import models
    from fedjax_het.algorithms import build
    from fedjax_het.data import load_federated, read_npy
    from fedjax_het.fleet import build as build_fleet
    from fedjax_het.problem import Problem
    from fedjax_het.simulation.simulate import simulate

    jax.block_until_ready(jax.numpy.zeros(1))
    before, resident = anonymous(), harness.memory_bytes()["now"]
    harness.reset_peak()
    peak, began = Peak(), time.perf_counter()
    raw = read_npy(folder)
    if not way.startswith("mapped"):
        raw = dataclasses.replace(raw, x=np.array(raw.x))
    data = load_federated(raw)
    network = models.build("mlp", _SHAPE, _CLASSES, hidden=(64,))
    problem = Problem(network, data, build_fleet("uniform", data.num_clients))
    algorithm = build(
        "fedavg", problem, learning_rate=0.01, batch_size=16, clients_per_round=cohort
    )
    stream = way.endswith("streamed")
    result = simulate(algorithm, problem, rounds=rounds, eval_every=rounds, stream=stream)
    total_s = time.perf_counter() - began
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(result.variables):
        digest.update(np.asarray(leaf).tobytes())
    wall_s = result.record.column("wall_s")
    return {
        "anonymous_bytes": peak.end() - before,
        "resident_bytes": harness.memory_bytes()["peak"] - resident,
        "round_s": float(wall_s[-1] - wall_s[0]) / rounds,
        "total_s": total_s,
        "model": digest.hexdigest()[:12],
    }


def measure(megabytes: int, clients: int, rounds: int, cohort: int) -> dict[str, Any]:
    """Runs the benchmark; see the module."""
    facts, rows = harness.machine(), []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), megabytes, clients)
        for way in _WAYS:
            child = ["--child", way, "--folder", folder, f"--rounds={rounds}", f"--cohort={cohort}"]
            rows.append({"way": way, **harness.in_child("benchmarks.scale.streaming", child)})
    told = {"megabytes": megabytes, "clients": clients, "rounds": rounds, "cohort": cohort}
    return {"machine": facts, **told, "rows": rows}


def report(results: dict[str, Any]) -> str:
    """The table as text."""
    header = ("samples", "anonymous MB", "resident MB", "ms a round", "all s", "model")
    rows = [
        [
            row["way"],
            f"{row['anonymous_bytes'] / 1e6:.0f}",
            f"{row['resident_bytes'] / 1e6:.0f}",
            f"{1e3 * row['round_s']:.1f}",
            f"{row['total_s']:.1f}",
            row["model"],
        ]
        for row in results["rows"]
    ]
    title = "{megabytes} MB of {clients} clients, {cohort} in each of {rounds} rounds"
    lines = [harness.describe(results["machine"]), title.format(**results), ""]
    return "\n".join([*lines, harness.table(header, rows)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--cohort", type=int, default=10)
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = isa.parse(parser)
    if arguments.child:
        told = (arguments.folder, arguments.child, arguments.rounds, arguments.cohort)
        print(json.dumps(one(*told)))
        return
    results = measure(arguments.megabytes, arguments.clients, arguments.rounds, arguments.cohort)
    print(report(results))
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
