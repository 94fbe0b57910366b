"""Local training of a cohort, compared with other implementations of the same work.

    python -m benchmarks.micro.training
    python -m benchmarks.micro.training --model mlp --clients 64 --json training.json

All contenders run in turn in one run, with the same model, start and mini-batches and plain SGD.
The rate of a matrix product is measured in the same rounds. Slow contenders run a part of the
clients and steps (column "samples") and are compared per sample. The last column is the largest
difference of a parameter of the averaged model from ours on the same part. A second table shows the
wall time that routes save: FedPMT's cohorts of equal depth against the full model.
"""

import argparse
import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Unpack

import jax
import numpy as np

from benchmarks import harness
from benchmarks.micro.jax_peers import client_batches, jax_loop
from fedjax_het import models
from fedjax_het.algorithms.fedavg import fedavg
from fedjax_het.algorithms.fedpmt import fedpmt
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.plan import Situation
from fedjax_het.data.federated import from_arrays
from fedjax_het.engine.engine import make_engine
from fedjax_het.engine.resources import ResourceKeywords
from fedjax_het.engine.steps import Now
from fedjax_het.fleet.presets import build as build_fleet
from fedjax_het.models.lowering import lowering
from fedjax_het.problem import Problem

INPUT_SHAPES = {
    "leaf_cnn": (28, 28, 1),
    "adel_cnn2": (28, 28, 1),
    "mlp": (28, 28, 1),
    "logistic": (28, 28, 1),
    "cifar_cnn": (32, 32, 3),
    "pfl_cnn": (32, 32, 3),
    "resnet20": (32, 32, 3),
    "vgg11": (32, 32, 3),
}
_LEARNING_RATE = 0.01
_KEY = 1


@dataclass(frozen=True)
class Work:
    """The clients and what each of them does.

    Attributes:
      problem: clients with exactly `steps * batch` samples each.
      clients: all of them take part.
      steps: local steps.
      batch: samples per step.
    """

    problem: Problem
    clients: int
    steps: int
    batch: int

    def samples(self, clients: int, steps: int) -> int:
        """Samples that a slice of the work processes."""
        return clients * steps * self.batch


def make_work(
    model: str,
    clients: int,
    steps: int,
    batch: int,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
) -> Work:
    """Random images in random classes: what is timed does not depend on what they show."""
    shape, each = INPUT_SHAPES[model], steps * batch
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (clients * each + 1, *shape), dtype=np.uint8)
    y = rng.integers(0, 10, clients * each + 1)
    owner = np.repeat(np.arange(clients), each)
    data = from_arrays(x[:-1], y[:-1], x[-1:], y[-1:], clients=owner, num_classes=10)
    network = models.build(model, shape, 10, compute_dtype=compute_dtype)
    return Work(Problem(network, data, build_fleet("uniform", clients)), clients, steps, batch)


class Trainer:
    """The library's own cohort engine on a slice of the work, merge and results included.

    Args:
      algorithm: what to train.
      work: the clients.
      **resources: keyword arguments of `Resources`.
    """

    def __init__(self, algorithm: Algorithm, work: Work, **resources: Unpack[ResourceKeywords]):
        self._algorithm = algorithm
        self._engine = make_engine(algorithm, work.problem, **resources)
        self._variables = work.problem.model.init(jax.random.key(0))
        self._state = algorithm.init(self._variables, jax.random.key(0))

    @property
    def programs(self) -> int:
        """Number of training programs compiled so far."""
        return self._engine.programs

    def __call__(self, clients: int, steps: int | None = None) -> PyTree:
        """Trains clients 0..clients-1 and returns the merged parameters.

        Args:
          clients: number of clients.
          steps: local steps; None for those of the method's plan.
        """
        key = jax.random.key(_KEY)
        who = np.arange(clients)
        situation = Situation(0, 0.0, who, key, np.random.default_rng(0))
        plan, _ = self._algorithm.plan(self._state, self._variables, situation)
        if steps is not None:
            plan = plan._replace(steps=np.full(clients, steps))
        routes = self._engine.resources.routes().execute(plan)
        acc, _ = self._engine.train(self._state, self._variables, plan, key, routes)
        now = Now(np.int32(0), key)
        return self._engine.close(acc, self._state, self._variables, plan.shared, now)[1].params


class Contender(NamedTuple):
    """A way to train: what it is, the slice it is given, and how to run it on that slice."""

    name: str
    clients: int
    steps: int
    run: Callable[[], PyTree]


def contenders(work: Work, model: str) -> tuple[list[Contender], Callable[[int, int], PyTree]]:
    """Everyone who takes part, ours first; and ours as a function of the slice."""
    options: dict[str, Any] = {"learning_rate": _LEARNING_RATE, "batch_size": work.batch}
    algorithm = fedavg(work.problem, local_steps=work.steps, **options)
    ours = Trainer(algorithm, work)
    everyone = (work.clients, work.steps)
    few = (min(work.clients, 4), min(work.steps, 2))
    one_by_one = (min(work.clients, 2), work.steps)
    start = work.problem.model.init(jax.random.key(0))
    x, y = client_batches(
        work.problem.data.device(),
        work.problem.data.pipeline,
        jax.random.key(_KEY),
        work.clients,
        work.steps,
        work.batch,
    )
    found = [Contender("ours", *everyone, functools.partial(ours, *everyone))]
    vmapped = Trainer(algorithm, work, chunk=few[0])

    def run_vmapped() -> PyTree:
        with lowering("lax"):
            return vmapped(*few)

    found.append(Contender("vmap over clients, lax.conv", *few, run_vmapped))
    for name, (clients, steps), per_step in (
        ("loop, jit per client, lax.conv", one_by_one, False),
        ("loop, jit per step, lax.conv", everyone, True),
    ):
        batches = (x[:clients, :steps], y[:clients, :steps])
        run = jax_loop(work.problem.model, start, *batches, _LEARNING_RATE, call_per_step=per_step)
        found.append(Contender(name, clients, steps, run))
    if importlib.util.find_spec("torch"):
        from benchmarks.micro.torch_peer import torch_loop

        run = torch_loop(model, start, x, y, _LEARNING_RATE)
        found.append(Contender("loop, PyTorch", *everyone, run))
    return found, ours


def difference(a: PyTree, b: PyTree) -> float:
    """Largest absolute difference of two models."""
    return max(
        float(np.max(np.abs(np.asarray(p) - np.asarray(q))))
        for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def compare(work: Work, model: str, repeats: int) -> list[dict[str, Any]]:
    """Rows of the first table."""
    found, ours = contenders(work, model)
    product, product_flops = harness.gemm()
    runs: dict[str, harness.Run] = {"matrix product": product}
    if importlib.util.find_spec("torch"):
        from benchmarks.micro import torch_peer

        torch_peer.all_cores()
        runs["matrix product, PyTorch"] = torch_peer.gemm(harness.GEMM_SIZE)
    times = harness.interleave({**runs, **{c.name: c.run for c in found}}, repeats)
    rates = {name: [product_flops / s / 1e9 for s in times[name].samples_s] for name in runs}
    rows: list[dict[str, Any]] = []
    for name in runs:
        rows.append({"name": name, "gflop_per_s": harness.spread(rates[name])._asdict()})
    sample_flops = float(work.problem.cost.step_flops())
    for c in found:
        samples = work.samples(c.clients, c.steps)
        seconds = times[c.name].samples_s
        own = [s / samples for s in seconds]
        reference = [s / work.samples(work.clients, work.steps) for s in times["ours"].samples_s]
        gflops = [sample_flops / s / 1e9 for s in own]
        machine = rates["matrix product, PyTorch" if "PyTorch" in c.name else "matrix product"]
        rows.append(
            {
                "name": c.name,
                "clients": c.clients,
                "steps": c.steps,
                "samples": samples,
                "samples_per_s": harness.spread([1 / s for s in own])._asdict(),
                "gflop_per_s": harness.spread(gflops)._asdict(),
                "share_of_matrix_product": harness.spread(
                    [g / m for g, m in zip(gflops, machine, strict=True)]
                )._asdict(),
                "time_per_sample_over_ours": harness.spread(
                    [a / b for a, b in zip(own, reference, strict=True)]
                )._asdict(),
                "first_call_extra_s": times[c.name].compile_s,
                "difference": difference(c.run(), ours(c.clients, c.steps)),
            }
        )
    return rows


def depths(work: Work, repeats: int) -> list[dict[str, Any]]:
    """Rows of the second table: cohorts in which everyone trains the last d blocks."""
    blocks = work.problem.model.num_blocks
    everyone = (work.clients, work.steps)
    runs = {}
    for depth in range(1, blocks + 1):
        algorithm = fedpmt(
            work.problem,
            depths=[depth],
            learning_rate=_LEARNING_RATE,
            batch_size=work.batch,
            local_steps=work.steps,
        )
        runs[str(depth)] = functools.partial(Trainer(algorithm, work), *everyone)
    times = harness.interleave(runs, repeats)
    full = times[str(blocks)]
    cost = work.problem.cost
    return [
        {
            "depth": depth,
            "flop_share": float(cost.step_flops(blocks - depth) / cost.step_flops()),
            "time_share": harness.ratios(times[str(depth)], full)._asdict(),
            "first_call_extra_s": times[str(depth)].compile_s,
        }
        for depth in range(1, blocks + 1)
    ]


def _show(value: dict[str, float], scale: float = 1.0) -> str:
    return str(harness.Spread(*(scale * v for v in value.values())))


def report(results: dict[str, Any]) -> str:
    """Both tables as text."""
    header = (
        "median (range)",
        "samples",
        "samples/s",
        "GFLOP/s",
        "% of matmul",
        "time/sample, ours = 1",
        "compile s",
        "difference",
    )
    rows = []
    for row in results["contenders"]:
        if "samples" not in row:
            rows.append([row["name"], "", "", _show(row["gflop_per_s"]), "100", "", "", ""])
            continue
        rows.append(
            [
                row["name"],
                f"{row['clients']} x {row['steps']} x {results['batch']}",
                _show(row["samples_per_s"]),
                _show(row["gflop_per_s"]),
                _show(row["share_of_matrix_product"], 100.0),
                _show(row["time_per_sample_over_ours"]),
                f"{row['first_call_extra_s']:.1f}",
                f"{row['difference']:.1e}",
            ]
        )
    text = [harness.describe(results["machine"]), "", harness.table(header, rows)]
    if not importlib.util.find_spec("torch"):
        text.append('PyTorch is missing: pip install "fedjax-het[peers]"')
    depths = ("FedPMT, everyone trains", "FLOPs, full = 1", "time, full = 1", "compile s")
    rows = [
        [
            f"the last {row['depth']} blocks",
            f"{row['flop_share']:.3f}",
            _show(row["time_share"]),
            f"{row['first_call_extra_s']:.1f}",
        ]
        for row in results["depths"]
    ]
    return "\n".join([*text, "", harness.table(depths, rows)])


def measure(
    model: str = "leaf_cnn", clients: int = 16, steps: int = 5, batch: int = 20, repeats: int = 3
) -> dict[str, Any]:
    """Runs the benchmark; see the module.

    Args:
      model: a key of `INPUT_SHAPES`.
      clients: in the cohort.
      steps: local steps per client.
      batch: samples per step.
      repeats: rounds.
    """
    facts = harness.machine()
    work = make_work(model, clients, steps, batch)
    return {
        "machine": facts,
        "model": model,
        "clients": clients,
        "steps": steps,
        "batch": batch,
        "repeats": repeats,
        "sample_gflop": float(work.problem.cost.step_flops()) / 1e9,
        "contenders": compare(work, model, repeats),
        "depths": depths(work, repeats),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="leaf_cnn", choices=sorted(INPUT_SHAPES))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    harness.command(parser, measure, report)


if __name__ == "__main__":
    main()
