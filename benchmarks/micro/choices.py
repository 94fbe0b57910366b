"""What a machine would choose against what the library's tables choose, model by model.

    python -m benchmarks.micro.choices --models leaf_cnn,pfl_cnn,cifar_cnn,resnet20,mlp,char_lstm

Four clients (more of a small model), three local steps each, are trained in turn with the table's
choices and with one of them replaced: the lowerings measured, half and twice as many clients side
by side, a mini-batch in one, two or four parts, the products of XLA's own choice of library, and a
client on each core. A ratio below 1 is a choice that this machine would rather have; how far the
row "table again" is from 1 shows what a ratio is worth.
"""

import argparse
import contextlib
import os
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks import harness, isa
from benchmarks.micro.training import INPUT_SHAPES, Trainer, Work, make_work
from fedjax_het import models, objectives
from fedjax_het.algorithms.fedavg import fedavg
from fedjax_het.common.types import PyTree
from fedjax_het.data.federated import from_arrays
from fedjax_het.engine.resources import Resources
from fedjax_het.fleet import build as build_fleet
from fedjax_het.problem import Problem
from fedjax_het.runtime import processes

_SYMBOLS, _LENGTH = 80, 80
_STEPS = 3


def text_work(model: str, clients: int, steps: int, batch: int) -> Work:
    """As `make_work`, for a network over symbols: "char_lstm" or "transformer"."""
    rng, count = np.random.default_rng(0), clients * steps * batch + 1
    last = model == "char_lstm"
    x = rng.integers(0, _SYMBOLS, (count, _LENGTH), dtype=np.int32)
    y = rng.integers(0, _SYMBOLS, count if last else (count, _LENGTH))
    owner = np.repeat(np.arange(clients), steps * batch)
    data = from_arrays(x[:-1], y[:-1], x[-1:], y[-1:], clients=owner, num_classes=_SYMBOLS)
    options: dict[str, Any] = {"predict": "last"} if last else {}
    network = models.build(model, (_LENGTH,), _SYMBOLS, **options)
    objective = objectives.build("classification" if last else "next_token")
    problem = Problem(network, data, build_fleet("uniform", clients), objective=objective)
    return Work(problem, clients, steps, batch)


def side_by_side(work: Work) -> int:
    """Clients that the library's rule trains at once."""
    return Resources(work.problem).side_by_side(np.array([work.batch]))


def choices(work: Work) -> dict[str, harness.Run]:
    """A round by the table's choices, and with one of them replaced, by name."""
    options: dict[str, Any] = {"learning_rate": 0.01, "batch_size": work.batch}

    def runner(patch: Callable[[], Any] | None = None, **resources: Any) -> harness.Run:
        algorithm = fedavg(work.problem, local_steps=work.steps, **options)
        trainer = Trainer(algorithm, work, **resources)

        def run() -> PyTree:
            # Programs are made in the first call, which is not measured.
            with contextlib.nullcontext() if patch is None else patch():
                return trainer(work.clients, work.steps)

        return run

    def parts(count: int) -> Callable[[], Any]:
        place = "fedjax_het.local.training.choose_parts"
        return lambda: mock.patch(place, return_value=count)

    def library() -> Any:
        return mock.patch("fedjax_het.runtime.compiling.compiler_options", dict)

    chunk = side_by_side(work)
    found: dict[str, harness.Run] = {"table": runner()}
    found["lowerings measured"] = runner(convolution="tuned")
    if chunk > 1:
        found[f"{chunk // 2} side by side"] = runner(chunk=chunk // 2)
    found[f"{2 * chunk} side by side"] = runner(chunk=2 * chunk)
    for count in (1, 2, 4):
        if work.batch % count == 0:
            found[f"parts: {count}"] = runner(parts(count))
    if chunk == 1:
        found["library: XLA's choice"] = runner(library)
    if jax.local_device_count() > 1:
        found["a client a core"] = runner(devices=jax.local_device_count())
    found["table again"] = runner()
    return found


def measure(model: str, clients: int, repeats: int) -> dict[str, Any]:
    """Runs the benchmark for one model; see the module."""
    facts = harness.machine()
    text = model not in INPUT_SHAPES
    make, batch = (text_work, 10) if text else (make_work, 20)
    work = make(model, clients, _STEPS, batch)
    if (enough := 2 * side_by_side(work)) > clients:
        work = make(model, enough, _STEPS, batch)
    times = harness.interleave(choices(work), repeats)
    rows = [
        {
            "choice": name,
            "ratio": harness.ratios(timed, times["table"]),
            "processors": harness.ratios(timed, times["table"], processors=True),
            "seconds": harness.spread(timed.samples_s),
        }
        for name, timed in times.items()
    ]
    return {"machine": facts, "model": model, "rows": rows}


def report(results: dict[str, Any]) -> str:
    """The table as text."""
    header = ("choice", "time, table = 1", "processor time", "s a round")
    rows = [
        [row["choice"], *(str(row[key]) for key in ("ratio", "processors", "seconds"))]
        for row in results["rows"]
    ]
    lines = [harness.describe(results["machine"]), results["model"], harness.table(header, rows)]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="leaf_cnn,pfl_cnn,cifar_cnn,resnet20,mlp,char_lstm")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="also write the results here")
    arguments = isa.parse(parser)
    processes.divide_cpu(os.cpu_count() or 1)
    results = []
    for model in arguments.models.split(","):
        results.append(measure(model, arguments.clients, arguments.repeats))
        print(report(results[-1]), flush=True)
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
