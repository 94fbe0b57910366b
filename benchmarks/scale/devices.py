"""One cohort on 1 to 8 devices and on two processes: equal results, and the cost of sharding.

    python -m benchmarks.scale.devices --models mlp,leaf_cnn --counts 1,2,4,8

Every number of devices runs in its own process. The last row runs in two processes with half as
many devices each, which exchange their sums over the loopback address. On a CPU the devices are
virtual and share the same cores; efficiency is the time of one device over the measured time, and
values above 1 come from cores that one device leaves idle. On a machine with that many accelerators
the efficiency is also divided by their number.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from typing import Any

from benchmarks import harness

_FLAG = "--xla_force_host_platform_device_count"


def one(model: str, clients: int, devices: int, repeats: int) -> dict[str, Any]:
    """A round on `devices` devices of this process: seconds, and the merged model's norms."""
    import jax
    import numpy as np

    from benchmarks.micro.training import Trainer, make_work
    from fedjax_het.algorithms.fedavg import fedavg

    work = make_work(model, clients, 2, 20)
    algorithm = fedavg(work.problem, learning_rate=0.01, batch_size=20, local_steps=2)
    engine = Trainer(algorithm, work, devices=devices)
    times = harness.interleave({"": lambda: engine(clients, 2)}, repeats)[""]
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(engine(clients, 2))]
    virtual = jax.default_backend() == "cpu"
    return {
        "devices": devices * jax.process_count(),
        "processes": jax.process_count(),
        "virtual": virtual,
        "seconds": times.samples_s,
        "compile_s": times.compile_s,
        "sums": [float(np.sum(leaf)) for leaf in leaves],
        "norms": [float(np.linalg.norm(leaf)) for leaf in leaves],
    }


def in_two(arguments: list[str]) -> Any:
    """`harness.in_child` in two processes at once; what the first one found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "benchmarks.scale.devices", *arguments]
    pair = [
        subprocess.Popen(
            [*command, "--coordinator", address, "--process", str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    said = [process.communicate() for process in pair]
    for process, (_, errors) in zip(pair, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors[-2000:]}")
    return next(json.loads(line) for line in said[0][0].splitlines() if line.startswith("{"))


def measure(model: str, clients: int, counts: list[int], repeats: int) -> dict[str, Any]:
    """Runs the benchmark; see the module.

    Args:
      model: a key of `INPUT_SHAPES`.
      clients: in the cohort.
      counts: numbers of devices; the first is the reference.
      repeats: rounds.
    """
    facts = harness.machine()
    earlier = os.environ.get("XLA_FLAGS", "")
    rows = []
    size = ["--models", model, "--clients", str(clients), "--repeats", str(repeats)]
    for devices, processes in [*((count, 1) for count in counts), (max(counts), 2)]:
        own = max(devices // processes, 1)
        os.environ["XLA_FLAGS"] = f"{earlier} {_FLAG}={own}".strip()
        arguments = ["--child", str(own), *size]
        rows.append(
            harness.in_child("benchmarks.scale.devices", arguments)
            if processes == 1
            else in_two(arguments)
        )
    os.environ["XLA_FLAGS"] = earlier
    reference = rows[0]
    for row in rows:
        share = 1 if row["virtual"] else row["devices"] / reference["devices"]
        row["efficiency"] = min(reference["seconds"]) / min(row["seconds"]) / share
        row["apart"] = max(
            abs(a - b) / max(abs(b), 1e-12)
            for a, b in zip(row["norms"], reference["norms"], strict=True)
        )
    return {"machine": facts, "model": model, "clients": clients, "rows": rows}


def report(results: dict[str, Any]) -> str:
    """The table as text."""
    header = ("devices", "processes", "s a round", "efficiency", "norms apart", "compile s")
    rows = [
        [
            f"{row['devices']}",
            f"{row['processes']}",
            str(harness.spread(row["seconds"])),
            f"{row['efficiency']:.2f}",
            f"{row['apart']:.0e}",
            f"{row['compile_s']:.1f}",
        ]
        for row in results["rows"]
    ]
    title = "{model}, {clients} clients".format(**results)
    return "\n".join([harness.describe(results["machine"]), title, "", harness.table(header, rows)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mlp,leaf_cnn", help="as in benchmarks.micro.training")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--counts", default="1,2,4,8", help="numbers of devices")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    clients, repeats = arguments.clients, arguments.repeats
    if arguments.child:
        if arguments.coordinator:
            from fedjax_het.runtime import processes

            processes.join(arguments.coordinator, 2, arguments.process)
        print(json.dumps(one(arguments.models, clients, arguments.child, repeats)))
        return
    counts = [int(count) for count in arguments.counts.split(",")]
    results = [measure(m, clients, counts, repeats) for m in arguments.models.split(",")]
    print("\n\n".join(map(report, results)))
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
