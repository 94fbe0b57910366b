"""One cohort over 1 to 8 devices: equal results, and what the sharding itself costs.

    python -m benchmarks.scale.devices --counts 1,2,4,8

Every number of devices runs in its own process. On a CPU the devices are virtual and share the same
cores, so that the best to be had is the time of one device: efficiency is that time over the
measured one. On a machine with that many accelerators it is over their number as well.
"""

import argparse
import json
import os
from typing import Any

from benchmarks import harness

_FLAG = "--xla_force_host_platform_device_count"


def one(model: str, clients: int, devices: int, repeats: int) -> dict[str, Any]:
    """A round on `devices` devices, in this process: seconds, and the merged model's norms."""
    import jax
    import numpy as np

    from benchmarks.micro.training import Engine, make_work
    from fedjax_het.algorithms.fedavg import fedavg

    work = make_work(model, clients, 2, 20)
    algorithm = fedavg(work.problem, learning_rate=0.01, batch_size=20, local_steps=2)
    engine = Engine(algorithm, work, devices=devices)
    times = harness.interleave({"": lambda: engine(clients, 2)}, repeats)[""]
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(engine(clients, 2))]
    virtual = jax.default_backend() == "cpu"
    return {
        "devices": devices,
        "virtual": virtual,
        "seconds": times.samples_s,
        "compile_s": times.compile_s,
        "sums": [float(np.sum(leaf)) for leaf in leaves],
        "norms": [float(np.linalg.norm(leaf)) for leaf in leaves],
    }


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
    for devices in counts:
        os.environ["XLA_FLAGS"] = f"{earlier} {_FLAG}={devices}".strip()
        own = ["--child", str(devices), "--model", model, "--clients", str(clients)]
        rows.append(harness.in_child("benchmarks.scale.devices", [*own, "--repeats", str(repeats)]))
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
    header = ("devices", "s a round", "efficiency", "norms apart", "compile s")
    rows = [
        [
            f"{row['devices']}",
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
    parser.add_argument("--model", default="leaf_cnn", help="as in benchmarks.micro.training")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--counts", default="1,2,4,8", help="numbers of devices")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = (arguments.model, arguments.clients)
    if arguments.child:
        print(json.dumps(one(*size, arguments.child, arguments.repeats)))
        return
    counts = [int(count) for count in arguments.counts.split(",")]
    results = measure(*size, counts, arguments.repeats)
    print(report(results))
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
