"""The time of rounds of sub-networks by width, over the FLOPs that they leave.

    python -m benchmarks.micro.widths
    python -m benchmarks.micro.widths --model resnet20 --clients 4 --json widths.json

A cohort trains one epoch at width 1, 1/2 or 1/4: the first units (HeteroFL) or a window that rolls
(FedRolex), with and without the scaler, and once as a masked complete network. FedAvg of the same
cohort runs in the same turn. "time" is

    (seconds of the round / those of FedAvg) / (FLOPs of a step / those of the complete network)

which is 1 if all work shrinks like the FLOPs; "CPU" is the same with the time of the processors. On
a machine that others use, CPU means more, and pinned to one core, where no thread waits for
another, most. "small" is FedAvg of a model that is itself of this width: the difference is what
cutting and merging cost. "products" is the same ratio for the products of a step, each alone at the
rate that its shape reaches (`benchmarks/roofline.py`): what is left if nothing else takes time.
"FLOP/B" are FLOPs of the products per byte of their factors and results. Peak memory is that of a
new process that runs two rounds.
"""

import argparse
import functools
import json
from typing import Any

import numpy as np

from benchmarks import harness, isa, roofline
from benchmarks.micro.training import INPUT_SHAPES, Trainer, Work
from fedjax_het import models
from fedjax_het.algorithms.fedavg import fedavg
from fedjax_het.algorithms.fedrolex import fedrolex
from fedjax_het.algorithms.heterofl import heterofl
from fedjax_het.algorithms.networks import networks
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.data.federated import from_arrays
from fedjax_het.engine.resources import Execution
from fedjax_het.fleet.presets import build as build_fleet
from fedjax_het.problem import Problem

RATES = (1.0, 0.5, 0.25)
_BATCH = 20
_TRAINING: dict[str, Any] = {"learning_rate": 0.01, "batch_size": _BATCH}
_CLASSES = 62
# Methods, and how they run: method, scaler, execution.
WAYS: dict[str, tuple[str, bool, Execution]] = {
    "first units": ("heterofl", False, "routed"),
    "first units, scaler": ("heterofl", True, "routed"),
    "rolled": ("fedrolex", False, "routed"),
    "rolled, scaler": ("fedrolex", True, "routed"),
    "masked": ("heterofl", False, "masked"),
}


def make_problem(model: str, clients: int, samples: int, hidden: int | None = None) -> Problem:
    """Clients of about this many random images, as different as the writers of FEMNIST.

    Args:
      model: a key of `INPUT_SHAPES`.
      clients: number of clients.
      samples: mean number of samples of a client; they have from 2/3 to 4/3 of it.
      hidden: units of the hidden layer of `leaf_cnn`; None for the default of the model.
    """
    rng, shape = np.random.default_rng(0), INPUT_SHAPES[model]
    sizes = rng.integers(2 * samples // 3, 4 * samples // 3 + 1, clients)
    x = rng.integers(0, 256, (int(sizes.sum()) + 1, *shape), dtype=np.uint8)
    y = rng.integers(0, _CLASSES, len(x))
    owner = np.repeat(np.arange(clients), sizes)
    data = from_arrays(x[:-1], y[:-1], x[-1:], y[-1:], clients=owner, num_classes=_CLASSES)
    options: dict[str, Any] = {} if hidden is None else {"hidden": hidden}
    network = models.build(model, shape, _CLASSES, **options)
    return Problem(network, data, build_fleet("uniform", clients))


def algorithm_of(problem: Problem, method: str, rate: float, *, scaler: bool) -> Algorithm:
    """The method with all clients at one rate."""
    levels = [RATES.index(rate)] * problem.num_clients
    options = {**_TRAINING, "rates": RATES, "levels": levels, "scaler": scaler}
    if method == "heterofl":
        return heterofl(problem, masked_loss=False, **options)
    return fedrolex(problem, **options)


def trainer(problem: Problem, algorithm: Algorithm, execution: Execution = "routed") -> Trainer:
    """The engine on a cohort of all clients, one epoch each."""
    work = Work(problem, problem.num_clients, 0, _BATCH)
    return Trainer(algorithm, work, execution=execution)


def runs_of(problem: Problem, rates: tuple[float, ...]) -> dict[tuple[str, float], Trainer]:
    """Everything that is timed, by way and rate; FedAvg first."""
    own = networks(problem, RATES)
    found = {("FedAvg", 1.0): trainer(problem, fedavg(problem, **_TRAINING))}
    for rate in rates:
        for way, (method, scaler, execution) in WAYS.items():
            if rate == 1.0 and (scaler or execution == "masked"):
                continue
            algorithm = algorithm_of(problem, method, rate, scaler=scaler)
            found[way, rate] = trainer(problem, algorithm, execution)
        if rate < 1.0:
            small = Problem(own.models[RATES.index(rate)], problem.data, problem.fleet)
            found["small", rate] = trainer(small, fedavg(small, **_TRAINING))
    return found


def bound(problem: Problem, rate: float) -> dict[str, float]:
    """Seconds of the products of a step at this rate, one by one, and their FLOPs a byte."""
    model = networks(problem, RATES).models[RATES.index(rate)]
    seconds, flops, moved = 0.0, 0.0, 0.0
    for product, count in roofline.products(model, _BATCH).items():
        seconds += count * roofline.product_seconds(product)
        flops += count * product.flops
        moved += count * product.bytes
    return {"seconds": seconds, "flops_per_byte": flops / moved}


def measure(
    model: str = "leaf_cnn",
    clients: int = 10,
    samples: int = 150,
    hidden: int | None = None,
    repeats: int = 5,
    memory: bool = True,
) -> dict[str, Any]:
    """Runs the benchmark; see the module.

    Args:
      model: a key of `INPUT_SHAPES`.
      clients: in the cohort.
      samples: mean number of samples of a client.
      hidden: units of the hidden layer of `leaf_cnn`.
      repeats: rounds of everyone.
      memory: whether to measure the peaks, in new processes.
    """
    facts = harness.machine()
    problem = make_problem(model, clients, samples, hidden)
    shares = dict(zip(RATES, networks(problem, RATES).shares.tolist(), strict=True))
    runs = runs_of(problem, RATES)
    everyone = {str(key): functools.partial(run, clients) for key, run in runs.items()}
    times = harness.interleave(everyone, repeats)
    reference = times[str(("FedAvg", 1.0))]
    bounds = {rate: bound(problem, rate) for rate in RATES}
    rows = []
    for (way, rate), run in runs.items():
        taken, share = times[str((way, rate))], shares[rate]
        wall = harness.ratios(taken, reference)
        cpu = harness.ratios(taken, reference, processors=True)
        row = {
            "way": way,
            "rate": rate,
            "flop_share": share,
            "round_s": harness.spread(taken.samples_s)._asdict(),
            "time_over_fedavg": wall._asdict(),
            "time": harness.Spread(*(ratio / share for ratio in wall))._asdict(),
            "cpu": harness.Spread(*(ratio / share for ratio in cpu))._asdict(),
            "products": bounds[rate]["seconds"] / bounds[1.0]["seconds"] / share,
            "flops_per_byte": bounds[rate]["flops_per_byte"],
            "programs": run.programs,
        }
        if memory and way != "small":
            child = [f"--model={model}", f"--clients={clients}", f"--samples={samples}"]
            child += [] if hidden is None else [f"--hidden={hidden}"]
            child += [f"--child={way}", f"--rate={rate}"]
            row |= harness.in_child("benchmarks.micro.widths", child)
        rows.append(row)
    title = f"{model}{'' if hidden is None else f', {hidden} hidden units'}, {clients} clients"
    return {"machine": facts, "title": f"{title} x {samples} samples", "rows": rows}


def peak(model: str, clients: int, samples: int, hidden: int | None, way: str, rate: float) -> int:
    """Peak memory of this process after two rounds, bytes."""
    problem = make_problem(model, clients, samples, hidden)
    if way == "FedAvg":
        run = trainer(problem, fedavg(problem, **_TRAINING))
    else:
        method, scaler, execution = WAYS[way]
        run = trainer(problem, algorithm_of(problem, method, rate, scaler=scaler), execution)
    for _ in range(2):
        run(clients)
    return harness.memory_bytes()["peak"]


def report(results: dict[str, Any]) -> str:
    """The table as text."""
    header = (
        "clients train",
        "width",
        "FLOPs, full = 1",
        "s a round",
        "time over FLOP share",
        "CPU over FLOP share",
        "products",
        "FLOP/B",
        "peak MB",
        "programs",
    )
    rows = [
        [
            row["way"],
            f"{row['rate']:g}",
            f"{row['flop_share']:.3f}",
            *(str(harness.Spread(**row[name])) for name in ("round_s", "time", "cpu")),
            f"{row['products']:.2f}",
            f"{row['flops_per_byte']:.0f}",
            f"{row['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in row else "",
            str(row["programs"]),
        ]
        for row in results["rows"]
    ]
    lines = [harness.describe(results["machine"]), results["title"], ""]
    return "\n".join([*lines, harness.table(header, rows)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="leaf_cnn", choices=sorted(INPUT_SHAPES))
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--samples", type=int, default=150, help="of a client, mean")
    parser.add_argument("--hidden", type=int, help="units of the hidden layer of leaf_cnn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--child", choices=("FedAvg", *WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    arguments = isa.parse(parser)
    size = (arguments.model, arguments.clients, arguments.samples, arguments.hidden)
    if arguments.child:
        print(json.dumps({"peak_bytes": peak(*size, arguments.child, arguments.rate)}))
        return
    results = measure(*size, arguments.repeats)
    print(report(results))
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
