"""A round on an accelerator: whole local training with every lowering and precision.

    python -m benchmarks.scale.accelerator                          # ten minutes on one GPU
    python -m benchmarks.scale.accelerator --works leaf --dtypes bfloat16
    python -m benchmarks.scale.accelerator --small                  # a minute, to see that it runs

| work | |
|---|---|
| leaf | LEAF CNN, 128 clients x 10 steps x batch 20 |
| resnet | ResNet-20 with group norm, 64 x 10 x 32 |
| pfl | pfl-research's CIFAR-10 benchmark on random images: 1,000 users of 50 samples, 50 a round, |
| | batches of 10, CNN with dropout; 1,500 rounds, warm, evaluated after every tenth |

The first two measure training and merge of one cohort on the library's engine. "table" is the
lowering that the library chooses, "tuned" the fastest one by measurement; the others are used for
every convolution. The arms run in turn; an arm that fails is reported and omitted. `weights apart`
is the relative distance of the merged weights from those of the first arm. The third work runs the
whole simulation loop with the table.
"""

import argparse
import datetime
import functools
import time
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from benchmarks import harness
from benchmarks.micro.training import Trainer, make_work
from fedjax_het.algorithms.fedavg import fedavg
from fedjax_het.engine.engine import Engine
from fedjax_het.models.lowering import Lowering, device_fits, lowering
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.simulate import simulate

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


class Training(NamedTuple):
    """One cohort that trains a model of `benchmarks.micro.training`."""

    model: str
    clients: int
    steps: int
    batch: int


class Rounds(NamedTuple):
    """A whole simulation of the pfl CNN."""

    users: int
    samples: int
    per_round: int
    batch: int
    rounds: int


WORKS: dict[str, Training | Rounds] = {
    "leaf": Training("leaf_cnn", 128, 10, 20),
    "resnet": Training("resnet20", 64, 10, 32),
    "pfl": Rounds(1000, 50, 50, 10, 1500),
}
SMALL: dict[str, Training | Rounds] = {
    "leaf": Training("leaf_cnn", 2, 2, 4),
    "resnet": Training("resnet20", 2, 1, 2),
    "pfl": Rounds(8, 10, 4, 5, 4),
}


def ways() -> tuple[str, ...]:
    """The table, the tuner, and the lowerings that this device has."""
    here = [n for n in get_args(Lowering) if n not in ("shift_add", "direct", "onednn")]
    if not device_fits():
        here.remove("implicit")
    return ("table", "tuned", *here)


class _Arm:
    """The engine on one work in one precision, by one way of convolution."""

    def __init__(self, work: Training, dtype: Precision, how: str):
        made = make_work(*work, compute_dtype=dtype)
        algorithm = fedavg(
            made.problem, learning_rate=0.01, batch_size=work.batch, local_steps=work.steps
        )
        chunk = work.clients if jax.default_backend() != "cpu" else None
        tuned: Literal["table", "tuned"] = "tuned" if how == "tuned" else "table"
        self._engine = Trainer(algorithm, made, chunk=chunk, convolution=tuned)
        self._how, self._size = how, (work.clients, work.steps)
        self.step_flops = float(made.problem.cost.step_flops())

    def __call__(self) -> Any:
        if self._how in ("table", "tuned"):
            return self._engine(*self._size)
        with lowering(self._how):  # type: ignore[arg-type]
            return self._engine(*self._size)


def train(
    work: Training, dtypes: Sequence[Precision], how: Sequence[str], repeats: int
) -> list[dict[str, Any]]:
    """Rows of one table, an arm each."""
    arms: dict[str, _Arm] = {}
    rows: list[dict[str, Any]] = []
    for dtype in dtypes:
        for name in how:
            label = f"{dtype}, {name}"
            try:
                arm = _Arm(work, dtype, name)
                jax.block_until_ready(arm())
                arms[label] = arm
            except Exception as error:  # what one lowering cannot do must not cost the others
                rows.append({"label": label, "failed": str(error).strip().split("\n")[0][:200]})
    samples = work.clients * work.steps * work.batch
    reference: np.ndarray | None = None
    for label, timed in harness.interleave(arms, repeats).items():
        arm = arms[label]
        merged = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(arm())])
        reference = merged if reference is None else reference
        flops = samples * arm.step_flops
        rows.append(
            {
                "label": label,
                "seconds": harness.spread(timed.samples_s)._asdict(),
                "clients_per_s": work.clients / min(timed.samples_s),
                "tflop_per_s": flops / min(timed.samples_s) / 1e12,
                "apart": float(np.linalg.norm(merged - reference) / np.linalg.norm(reference)),
            }
        )
    return rows


def simulate_rounds(work: Rounds, dtype: Precision) -> dict[str, Any]:
    """A row: wall seconds of all rounds after a first run has compiled, records included."""
    steps = work.samples // work.batch
    problem = make_work("pfl_cnn", work.users, steps, work.batch, compute_dtype=dtype).problem
    algorithm = fedavg(
        problem, learning_rate=0.1, batch_size=work.batch, clients_per_round=work.per_round
    )
    every = min(10, work.rounds)
    options: dict[str, Any] = {"rounds": work.rounds, "eval_every": every}
    evaluator = Evaluator(problem)
    engine = Engine(algorithm, RunOptions.parse(options).resources(problem))
    run = functools.partial(simulate, algorithm, problem, engine=engine, evaluator=evaluator)
    began = time.perf_counter()
    run(rounds=1)
    first_s = time.perf_counter() - began
    began = time.perf_counter()
    result = run(**options)
    jax.block_until_ready(result.variables)
    warm_s = time.perf_counter() - began
    flops = work.rounds * work.per_round * work.samples * float(problem.cost.step_flops())
    return {
        "label": dtype,
        "first_s": first_s,
        "warm_s": warm_s,
        "round_ms": 1e3 * warm_s / work.rounds,
        "tflop_per_s": flops / warm_s / 1e12,
        "faults": len(result.faults),
    }


def measure(
    works: dict[str, Training | Rounds],
    dtypes: Sequence[Precision],
    how: Sequence[str],
    repeats: int,
) -> dict[str, Any]:
    """Runs the benchmark; see the module."""
    found: dict[str, Any] = {}
    for name, work in works.items():
        if isinstance(work, Rounds):
            rows = [simulate_rounds(work, dtype) for dtype in dtypes]
        else:
            rows = train(work, dtypes, how, repeats)
        found[name] = {"work": work._asdict(), "rows": rows}
    return {
        "date": str(datetime.date.today()),
        "machine": harness.machine(),
        "works": found,
    }


def report(results: dict[str, Any]) -> str:
    """The tables as text."""
    lines = [f"{results['date']}, {harness.describe(results['machine'])}"]
    for name, part in results["works"].items():
        size = ", ".join(f"{key} {value}" for key, value in part["work"].items())
        lines += ["", f"{name}: {size}"]
        failed = [row for row in part["rows"] if "failed" in row]
        rows = [row for row in part["rows"] if "failed" not in row]
        if rows and "round_ms" in rows[0]:
            header: tuple[str, ...] = (
                "precision",
                "ms a round",
                "all rounds s",
                "TFLOP/s",
                "first s",
            )
            cells = [
                [
                    row["label"],
                    f"{row['round_ms']:.2f}",
                    f"{row['warm_s']:.2f}",
                    f"{row['tflop_per_s']:.3g}",
                    f"{row['first_s']:.1f}",
                ]
                for row in rows
            ]
        else:
            header = ("precision, lowering", "ms a round", "clients/s", "TFLOP/s", "weights apart")
            cells = [
                [
                    row["label"],
                    str(harness.Spread(*(1e3 * s for s in row["seconds"].values()))),
                    f"{row['clients_per_s']:.0f}",
                    f"{row['tflop_per_s']:.3g}",
                    f"{row['apart']:.0e}",
                ]
                for row in rows
            ]
        lines.append(harness.table(header, cells))
        lines += [f"{row['label']}: failed ({row['failed']})" for row in failed]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", default=",".join(WORKS), help="of leaf, resnet, pfl")
    parser.add_argument("--dtypes", default=",".join(PRECISIONS))
    parser.add_argument("--how", default=",".join(ways()), help="ways of convolution")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="sizes for a laptop")
    parser.add_argument("--json", help="also write the results here")
    arguments = parser.parse_args()
    sizes = SMALL if arguments.small else WORKS
    works = {name: sizes[name] for name in arguments.works.split(",")}
    dtypes = [dtype for dtype in PRECISIONS if dtype in arguments.dtypes.split(",")]
    results = measure(works, dtypes, arguments.how.split(","), arguments.repeats)
    print(report(results))
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
