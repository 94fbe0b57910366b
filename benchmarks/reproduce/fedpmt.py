"""FedPMT against sub-models by depth with exits, by width and by weights, at equal capacity.

    python -m benchmarks.reproduce.fedpmt --out=runs/fedpmt
    python -m benchmarks.reproduce.fedpmt --splits=dirichlet --out=runs/fedpmt

30 clients in three equal groups afford 0.456, 0.701 and 1 of a training step of the network; every
method gives every client the largest sub-model that it affords. MNIST averaged down to 14 x 14, or
scikit-learn's digits for a quick look. The network has six dense layers, whose sizes are such that
for both smaller groups there are a suffix (FedPMT), a prefix with its exit heads (DepthFL), a width
(HeteroFL), a dropout rate (FedDrop) and a share of the weights (FIARSE) that cost what the group
affords within 2 %. All clients take part in every round with five steps of 20 and equal weights.
Communication is free, and the work of the whole network takes the fastest devices one virtual
second.

Pruned weights cost nothing on FIARSE's clock here; "dense" reads the same run on a clock that
charges the whole network, as on devices that cannot skip single weights. FedAvg, FedDyn and
"DepthFL, everyone whole" give everyone the whole network, whatever the device affords. Every arm
has the same grid of step sizes on a seed of its own, and the best by the mean of the accuracies
over the rounds.

Every cell is written when it has run; a cell with a file is not repeated. Prints the work of a
client of each group before the runs, and the accuracies after as many rounds, and as many seconds.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.cells import edge, run_cells
from benchmarks.reproduce.oort import best_rates
from fedjax_het import algorithms
from fedjax_het.common.writing import write_atomic
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.plan import Situation
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.data.partition import partitioner
from fedjax_het.data.sources import load
from fedjax_het.fleet.cost import cost_table
from fedjax_het.fleet.presets import speed_groups
from fedjax_het.models.base import BlockModel
from fedjax_het.models.exits import with_exits
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.report.style import legend_above, method_style, png, styled
from fedjax_het.simulation.simulate import simulate

CLIENTS, TUNING_SEED, HELD_OUT = 30, 100, 2000
SPEEDS = (0.456, 0.701, 1.0)
HIDDEN = (48, 80, 64, 64, 64)
TRAINING: dict[str, Any] = {"batch_size": 20, "local_steps": 5, "weighting": "uniform"}
SPLITS: dict[str, dict[str, Any]] = {
    "iid": {"name": "iid"},
    "dirichlet": {"name": "dirichlet", "alpha": 0.5},
    "shards": {"name": "shards", "shards_per_client": 2},
}
# Blocks at which DepthFL's sub-models end, depths of FedPMT's, and rates of widths.
EXITS, DEPTHS, WIDTHS = (1, 2, 5), (2, 4, 6), (1.0, 0.8, 0.61)
# Label -> method and options.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "FedAvg": ("fedavg", {}),
    "FedDyn": ("feddyn", {"alpha": 0.1}),
    "drop-stragglers": ("drop_stragglers", {"deadline_s": 1.0 + 1e-6}),
    "FedPMT": ("fedpmt", {"depths": DEPTHS}),
    "DepthFL": ("depthfl", {"exits": EXITS}),
    "DepthFL, plain mean": ("depthfl", {"exits": EXITS, "alpha": 0.0}),
    "FedDrop": ("feddrop", {"rates": WIDTHS}),
    "FedDrop, holders": ("feddrop", {"rates": WIDTHS, "merge": "holders"}),
    "HeteroFL": ("heterofl", {"rates": WIDTHS}),
    "HeteroFL, plain loss": ("heterofl", {"rates": WIDTHS, "masked_loss": False}),
    "DepthFL, everyone whole": ("depthfl", {"exits": EXITS, "levels": (len(EXITS),) * CLIENTS}),
    "FIARSE": ("fiarse", {"sizes": SPEEDS[::-1], "flops": "ideal"}),
}
DENSE = "FIARSE"


@functools.cache
def federated(name: str, split: str) -> FederatedData:
    """The data; MNIST at half its resolution with 2000 images held out."""
    raw, parts = load(name), dict(SPLITS[split])
    x, test_x, test_y = raw.x, raw.test_x, raw.test_y
    if name == "mnist":
        held = np.random.default_rng(0).permutation(len(test_x))[:HELD_OUT]
        x, test_x, test_y = _halved(x), _halved(test_x[held]), test_y[held]
    clients = partitioner(parts.pop("name"), CLIENTS, **parts)
    return from_arrays(x, raw.y, test_x, test_y, clients=clients, num_classes=10, seed=0)


def _halved(x: np.ndarray) -> np.ndarray:
    """Images [n, 28, 28, ...] of bytes averaged to float32[n, 14, 14, 1], standardised."""
    x = x.reshape(len(x), 14, 2, 14, 2, 1).astype(np.float32)
    return (x.mean(axis=(2, 4)) / 255 - 0.13) / 0.31


def network(input_shape: tuple[int, ...], *, exits: bool) -> BlockModel:
    """Six dense layers."""
    model = mlp(input_shape, 10, hidden=HIDDEN)
    return with_exits(model) if exits else model


@functools.cache
def problem(name: str, split: str, exits: bool = False) -> Problem:
    """Data, network and three groups of devices; exits have no price where they are not used."""
    data = federated(name, split)
    step = float(cost_table(network(data.input_shape, exits=False)).step_flops())
    work = step * TRAINING["batch_size"] * TRAINING["local_steps"]
    fleet = speed_groups(CLIENTS, relative_speeds=SPEEDS, base_flops_per_s=work)
    return Problem(network(data.input_shape, exits=exits), data, fleet)


def build(label: str, name: str, split: str, learning_rate: float) -> tuple[Algorithm, Problem]:
    """The method of an arm, and its problem."""
    method, options = ARMS[label]
    setting = problem(name, split, method == "depthfl")
    # One factor on a step size of 1 is one program for all step sizes.
    step = {"learning_rate": 1.0, "schedule": functools.partial(_constant, learning_rate)}
    return algorithms.build(method, setting, **TRAINING, **step, **options), setting


def _constant(rate: float, round: int) -> float:
    del round
    return rate


def run(
    label: str,
    name: str,
    split: str,
    seeds: Sequence[int],
    learning_rate: float,
    rounds: int,
) -> dict[str, Any]:
    """The runs of an arm with some seeds, which share their programs."""
    algorithm, setting = build(label, name, split, learning_rate)
    began = time.perf_counter()
    results = simulate(
        algorithm, setting, rounds=rounds, seeds=seeds, eval_every=max(rounds // 20, 1)
    )
    seen = [
        {
            column: [
                row[column] for row in result.record.metrics if row.get("accuracy") is not None
            ]
            for column in result.record.metrics[0]
            if column in ("step", "virtual_s") or column.startswith("accuracy")
        }
        for result in results
    ]
    tasks = results[0].record.clients
    return {
        "label": label,
        "learning_rate": learning_rate,
        "seeds": list(seeds),
        "curves": seen,
        # For the choice of a step size.
        "accuracy": np.mean([one["accuracy"] for one in seen], axis=0).tolist(),
        "megabytes_up": sum(task["bytes_up"] for task in tasks) / rounds / 1e6,
        "wall_s": time.perf_counter() - began,
    }


def capacities(name: str, split: str, labels: Sequence[str], rounds: int = 10) -> str:
    """FLOPs of a client of each group in a round, over those of the whole network, as a table."""
    full = problem(name, split).fleet.flops_per_s.max()
    rows = []
    for label in labels:
        algorithm, setting = build(label, name, split, 0.1)
        work = np.mean([_flops(algorithm, setting, t) for t in range(rounds)], axis=0) / full
        rows.append((label, *(f"{work[g :: len(SPEEDS)].mean():.3f}" for g in range(len(SPEEDS)))))
    return harness.table(("arm", *(f"affords {speed:g}" for speed in SPEEDS)), rows)


def _flops(algorithm: Algorithm, setting: Problem, round: int) -> np.ndarray:
    """FLOPs of every client in a round at the start of a run, float64[n]."""
    key, variables = jax.random.key(round), setting.model.init(jax.random.key(0))
    situation = Situation(round, 0.0, np.arange(CLIENTS), key, np.random.default_rng(round))
    plan, _ = algorithm.plan(algorithm.init(variables, key), variables, situation)
    return plan.timing.flops


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracies after the same rounds and after the same seconds, as Markdown.

    The seconds are those of FedPMT or, if it was not run, of the first arm.
    """
    reference = runs.get("FedPMT") or next(iter(runs.values()))
    until_s = float(np.mean([one["virtual_s"][-1] for one in reference["curves"]]))
    lines = [
        f"| arm | step size | same rounds (%) | same seconds, {until_s:.0f} s (%) | s a round | "
        "MB up a round |",
        "|---|---|---|---|---|---|",
    ]
    for label, one in runs.items():
        slow = 1 / SPEEDS[0]
        clocks = {label: 1.0, **({f"{label}, dense": slow} if label == DENSE else {})}
        names = ["accuracy", "accuracy[ensemble]"]
        for clock, factor in clocks.items():
            for metric in names:
                curves = [c for c in one["curves"] if metric in c]
                if not curves:
                    continue
                last = [100 * c[metric][-1] for c in curves]
                timed = [100 * at_time(c, metric, until_s / factor) for c in curves]
                round_s = np.mean([factor * c["virtual_s"][-1] / c["step"][-1] for c in curves])
                which = clock if metric == "accuracy" else f"{clock}, mean of exits"
                lines.append(
                    f"| {which} | {one['learning_rate']:g} | {_spread(last)} | {_spread(timed)} | "
                    f"{round_s:.2f} | {one['megabytes_up']:.2f} |"
                )
    return "\n".join(lines)


def at_time(one: Mapping[str, Any], metric: str, until_s: float) -> float:
    """Value at the last evaluation within the time."""
    inside = np.asarray(one["virtual_s"]) <= until_s * (1 + 1e-6)
    return one[metric][int(np.flatnonzero(inside)[-1])]


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=len(values) > 1):.1f}"


@styled
def figure(studies: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    """Accuracy against virtual time, mean over the seeds with their range; a panel a split."""
    drawing = Figure(figsize=(9.4, 4.4))
    panels = np.ravel(drawing.subplots(1, len(studies), squeeze=False))
    entries: dict[str, Any] = {}
    for axes, (split, runs) in zip(panels, studies.items(), strict=True):
        until_s = runs["FedPMT"]["curves"][0]["virtual_s"][-1]
        for i, (label, one) in enumerate(runs.items()):
            look = {**method_style(i), "marker": ""}
            at = np.linspace(0, until_s, 100)
            seen = [np.interp(at, c["virtual_s"], c["accuracy"]) for c in one["curves"]]
            every = 100 * np.stack(seen)
            (entries[label],) = axes.plot(at, every.mean(axis=0), lw=1.8, **look)
            axes.fill_between(
                at, every.min(axis=0), every.max(axis=0), color=look["color"], alpha=0.1
            )
        axes.set_title(split)
        axes.set_xlabel("virtual time (s)")
        axes.set_ylabel("test accuracy (%)")
        axes.grid(True)
    legend_above(drawing, list(entries.items()))
    return drawing


def study(
    name: str,
    split: str,
    out: str,
    *,
    rounds: int,
    seeds: Sequence[int],
    rates: Sequence[float],
    labels: Sequence[str] = tuple(ARMS),
) -> dict[str, dict[str, Any]]:
    """Tunes every arm, then runs it with all seeds; the runs by arm.

    Args:
      name: "mnist" or "digits".
      split: one of `SPLITS`.
      out: directory of the cells.
      rounds: rounds of a run; tuning runs have half as many.
      seeds: seeds of the reported runs.
      rates: step sizes to choose from.
      labels: arms to run.
    """

    def announce(cell: str, one: dict[str, Any]) -> None:
        print(f"{cell}: {100 * one['accuracy'][-1]:.1f} %, {one['wall_s']:.0f} s", flush=True)

    tuned = run_cells(
        {
            f"{name} {split} tuning {label} {rate:g}": functools.partial(
                run, label, name, split, [TUNING_SEED], rate, -(-rounds // 2)
            )
            for label in labels
            for rate in rates
        },
        out,
        announce,
    )
    best = best_rates(tuned)
    for label, rate in best.items():
        edge(label, rate, rates)
    found = run_cells(
        {
            f"{name} {split} {label} {rate:g} {len(seeds)} seeds": functools.partial(
                run, label, name, split, seeds, rate, rounds
            )
            for label, rate in best.items()
        },
        out,
        announce,
    )
    return {one["label"]: one for one in found.values()}


def main(_: Sequence[str]) -> None:
    """Prints the capacities, runs the study and prints its tables."""
    chosen = flags.FLAGS
    labels = tuple(chosen.arm) or tuple(ARMS)
    studies = {}
    for split in chosen.splits:
        print(capacities(chosen.data, split, labels), flush=True)
        studies[split] = study(
            chosen.data,
            split,
            chosen.out,
            rounds=chosen.rounds,
            seeds=[int(seed) for seed in chosen.seeds],
            rates=[float(rate) for rate in chosen.rates],
            labels=labels,
        )
    for split, runs in studies.items():
        print(f"\n{split}\n\n{table(runs)}")
    if chosen.figure:
        write_atomic(Path(chosen.figure), png(figure(studies)))


if __name__ == "__main__":
    flags.DEFINE_enum("data", "mnist", ["mnist", "digits"], "Data set.")
    flags.DEFINE_list("splits", ["iid", "dirichlet"], f"Of {', '.join(SPLITS)}.")
    flags.DEFINE_string("out", "runs/fedpmt", "Directory of the cells.")
    flags.DEFINE_integer("rounds", 60, "Rounds of a run.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds that are reported.")
    flags.DEFINE_list("rates", ["0.03", "0.1", "0.3"], "Step sizes to choose from.")
    flags.DEFINE_multi_string("arm", [], "Label of an arm to run; all if none is given.")
    flags.DEFINE_string("figure", None, "Where to draw accuracies against virtual time.")
    app.run(main)
