r"""HeteroFL on MNIST: levels a to e drawn anew every round, against its widest and narrowest alone.

    python -m benchmarks.reproduce.heterofl --out=runs/heterofl
    python -m benchmarks.reproduce.heterofl --share=0.2 --divide=4 --epochs=1 --norm=group \
        --out=runs/heterofl_4

100 users, ten of them a round; the network of the paper, four 3x3 convolutions of 64 to 512
channels with static batch norm. Five epochs of batches of 10, SGD with 0.01, momentum 0.9 that is
new in every round, weight decay 5e-4, gradients clipped to a norm of 1.
The published schedules have 200 rounds for labels dealt out evenly and 400 for two labels a user,
with a tenth of the step size from the middle on; `--share` takes that share of the rounds and keeps
the middle. `--divide` divides the channels and `--epochs` sets the passes of a round, for machines
that the whole setting is too much for. With `--norm=group` an evaluation takes no pass over the
training samples.

Every cell is written when it has run; a cell with a file is not repeated, and a cell that was
interrupted goes on at its last checkpoint. Prints who trained which level (a check that the
mechanism is active), then the accuracies.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks import harness
from benchmarks.cells import curve, run_cells
from fedjax_het.algorithms.heterofl import heterofl
from fedjax_het.contract.algorithm import Variables
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.data.partition import iid, label_limited
from fedjax_het.data.sources import load
from fedjax_het.fleet.device import Fleet
from fedjax_het.models.base import BlockModel
from fedjax_het.models.cnn import heterofl_cnn
from fedjax_het.models.norm import Norm
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

LEVELS = (1.0, 0.5, 0.25, 0.125, 0.0625)
# Published rounds of the partitions.
ROUNDS = {"even": 200, "two labels": 400}
TRAINING: dict[str, Any] = {
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "clip_norm": 1.0,
    "batch_size": 10,
}


class Arm(NamedTuple):
    """A row of the tables.

    Attributes:
      partition: how labels are dealt out, a key of `ROUNDS`.
      options: options of the method.
      published: accuracies in % that others report, in words.
    """

    partition: str
    options: Mapping[str, Any]
    published: str


DRAWN: Mapping[str, Any] = {"rates": LEVELS, "dynamic": True}
ARMS = {
    "a-e": Arm("even", DRAWN, "99.23"),
    "a alone": Arm("even", {"rates": (1.0,)}, "-"),
    "e alone": Arm("even", {"rates": LEVELS[-1:]}, "-"),
    "a-e, two labels": Arm("two labels", DRAWN, "98.5, local 99.84"),
    "a-e, two labels, plain loss": Arm("two labels", {**DRAWN, "masked_loss": False}, "-"),
}


class Size(NamedTuple):
    """What of the published setting a run has.

    Attributes:
      share: share of the rounds.
      divide: divisor of the channels.
      epochs: passes over the samples of a user in a round.
      users: number of users; a tenth of them trains in a round.
      data: name of the data set.
      norm: norm of the network; "batch" is static.
      eval_every: rounds between evaluations.
    """

    share: float = 1.0
    divide: int = 1
    epochs: int = 5
    users: int = 100
    data: str = "mnist"
    norm: Norm = "batch"
    eval_every: int = 5


@functools.cache
def federated(name: str, partition: str, users: int, seed: int) -> FederatedData:
    """The data, dealt out anew for every seed."""
    raw = load(name)
    deal = iid(users) if partition == "even" else label_limited(users, 2)

    def normal(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.float32) / 255 - 0.13) / 0.31

    return from_arrays(
        normal(raw.x),
        raw.y,
        normal(raw.test_x),
        raw.test_y,
        clients=deal,
        num_classes=10,
        seed=seed,
    )


def setting(arm: Arm, size: Size, seed: int) -> Problem:
    """The problem of an arm; times are not measured here, so all devices are alike."""
    data = federated(size.data, arm.partition, size.users, seed)
    channels = tuple(64 * 2**i // size.divide for i in range(4))
    model = heterofl_cnn(data.input_shape, 10, channels=channels, norm=size.norm)
    return Problem(model, data, Fleet(np.full(size.users, 1e9)))


def own_classes(model: BlockModel, variables: Variables, data: FederatedData) -> float:
    """Mean over the users of the accuracy among the classes that they have.

    A user is tested on the test samples of its classes, and predicts the best of them.
    """
    logits_of = jax.jit(lambda variables, x: model.apply(variables, x)[0])
    parts = np.array_split(np.asarray(data.test_x), max(1, len(data.test_x) // 1000))
    logits = np.concatenate([np.asarray(logits_of(variables, part)) for part in parts])
    labels = np.asarray(data.test_y)
    found: dict[tuple[int, ...], float] = {}
    every = [tuple(np.flatnonzero(row).tolist()) for row in data.label_counts()]
    for classes in set(every):
        tested = np.isin(labels, classes)
        best = np.asarray(classes)[np.argmax(logits[tested][:, classes], axis=1)]
        found[classes] = float(np.mean(best == labels[tested]))
    return float(np.mean([found[classes] for classes in every]))


def run(label: str, size: Size, seed: int, workdir: str | None = None) -> dict[str, Any]:
    """One run of an arm; it goes on where it stopped if there is a directory for it."""
    arm = ARMS[label]
    rounds = max(2, round(size.share * ROUNDS[arm.partition]))
    problem = setting(arm, size, seed)
    algorithm = heterofl(
        problem,
        **TRAINING,
        **arm.options,
        epochs=size.epochs,
        clients_per_round=max(1, size.users // 10),
        schedule="step",
        decay_rounds=rounds / 2,
    )
    began = time.perf_counter()
    result = simulate(
        algorithm,
        problem,
        rounds=rounds,
        seed=seed,
        eval_every=size.eval_every,
        workdir=workdir,
        checkpoint_every=5,
    )
    evaluated = result.variables
    if algorithm.calibrate is not None:
        evaluated = algorithm.calibrate(evaluated)
    rates = arm.options["rates"]
    # Level 0 of a run is the complete network, also if no user has it.
    every = sorted({1.0, *rates}, reverse=True)
    last = result.record.metrics[-1]
    trained = np.zeros((rounds, len(LEVELS)))
    for task in result.record.clients:
        rate = every[task.get("width_level", 0)]
        trained[task["step"] - 1, LEVELS.index(rate)] += 1
    return {
        "label": label,
        "seed": seed,
        "size": list(size),
        "faults": result.faults,
        **curve(result.record),
        "own_classes": own_classes(problem.model, evaluated, problem.data),
        "by_width": [last.get(f"accuracy[width_{rate:g}]") for rate in LEVELS],
        "rounds": rounds,
        # Per level: share of the tasks, and share of the rounds that had one.
        "tasks": (trained.sum(axis=0) / trained.sum()).tolist(),
        "seen": np.mean(trained > 0, axis=0).tolist(),
        "wall_s": time.perf_counter() - began,
    }


def activity(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Who trained which level, as a table: share of the tasks (share of the rounds with one)."""
    rows = []
    for label, group in runs.items():
        tasks, seen = (np.mean([one[name] for one in group], axis=0) for name in ("tasks", "seen"))
        cells = [f"{t:.2f} ({s:.2f})" for t, s in zip(tasks, seen, strict=True)]
        rows.append((label, *cells))
    return harness.table(("arm", *(f"width {rate:g}" for rate in LEVELS)), rows)


def checks(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Whether the mechanism is active, in words, as far as its arms have run."""
    claims = {}
    for label, group in runs.items():
        if ARMS[label].options.get("dynamic") and group:
            shares = np.mean([one["tasks"] for one in group], axis=0)
            claims[f"{label}: every level trains"] = bool(np.all(shares > 0))
            widest = float(np.mean([one["seen"][0] for one in group]))
            claims[f"{label}: the outermost units train in {100 * widest:.0f} % of the rounds"] = (
                0 < widest < 1
            )
    return [f"{claim}: {'yes' if holds else 'NO'}" for claim, holds in claims.items()]


def by_width(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Accuracy of the network of every level at the end in %, mean over the seeds, as a table."""

    def cell(values: Sequence[float | None]) -> str:
        return "-" if None in values else f"{100 * np.mean(np.asarray(values, float)):.2f}"

    rows = [
        (label, *map(cell, zip(*(one["by_width"] for one in group), strict=True)))
        for label, group in runs.items()
        if group
    ]
    return harness.table(("arm", *(f"width {rate:g}" for rate in LEVELS)), rows)


def accuracies(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Accuracies of the complete network in %, mean and standard deviation, as a table."""

    def cell(values: Sequence[float]) -> str:
        spread = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        return f"{100 * np.mean(values):.2f}{spread}"

    rows = [
        (
            label,
            str(group[0]["rounds"]),
            str(len(group)),
            cell([max(one["accuracy"]) for one in group]),
            cell([one["accuracy"][-1] for one in group]),
            cell([one["own_classes"] for one in group]),
            ARMS[label].published,
        )
        for label, group in runs.items()
        if group
    ]
    heads = ("arm", "rounds", "seeds", "best", "at the end", "own classes", "published")
    return harness.table(heads, rows)


def study(
    out: str, size: Size, *, seeds: Sequence[int], labels: Sequence[str] = tuple(ARMS)
) -> dict[str, list[dict[str, Any]]]:
    """Runs every arm with every seed; the runs by arm.

    Args:
      out: directory of the cells and of their checkpoints.
      size: what of the published setting a run has.
      seeds: seeds of the runs.
      labels: arms to run.
    """

    def announce(name: str, one: dict[str, Any]) -> None:
        last = 100 * one["accuracy"][-1]
        print(f"{name}: {last:.2f} %, {one['rounds']} rounds, {one['wall_s']:.0f} s", flush=True)

    cells = {}
    for seed in seeds:
        for number, label in enumerate(ARMS):
            if label in labels:
                place = Path(out) / "checkpoints" / f"{number}_{seed}"
                cells[f"{label} {seed}"] = functools.partial(run, label, size, seed, str(place))
    found = run_cells(cells, out, announce)
    return {label: [one for one in found.values() if one["label"] == label] for label in labels}


def main(_: Sequence[str]) -> None:
    """Runs the study and prints its tables."""
    chosen = flags.FLAGS
    logging.set_verbosity(logging.WARNING)  # checkpoints report every step
    print(harness.describe(harness.machine()), flush=True)
    runs = study(
        chosen.out,
        Size(
            chosen.share,
            chosen.divide,
            chosen.epochs,
            norm=chosen.norm,
            eval_every=chosen.eval_every,
        ),
        seeds=[int(seed) for seed in chosen.seeds],
        labels=chosen.arms or tuple(ARMS),
    )
    tables = activity(runs), "\n".join(checks(runs)), by_width(runs), accuracies(runs)
    print(*tables, sep="\n\n")


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/heterofl", "Directory of the cells.")
    flags.DEFINE_float("share", 1.0, "Share of the published rounds.")
    flags.DEFINE_integer("divide", 1, "Divisor of the channels.")
    flags.DEFINE_integer("epochs", 5, "Passes over the samples of a user in a round.")
    flags.DEFINE_enum("norm", "batch", ["batch", "group"], "Norm of the network.")
    flags.DEFINE_integer("eval_every", 5, "Rounds between evaluations.")
    flags.DEFINE_list("seeds", ["0"], "Seeds that are reported.")
    flags.DEFINE_multi_enum("arms", [], list(ARMS), "Arms; all if empty.")
    app.run(main)
