"""Tables and figures of `benchmarks.reproduce.dtfl` from its JSON files.

python -m benchmarks.reproduce.dtfl_figures --runs=runs/dtfl --out=docs/results/images
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from benchmarks.reproduce.dtfl import ARMS, NETS, PER_CLIENT, TRAINING, setting
from benchmarks.reproduce.dtfl_timing import TABLE_3, markdown, rounds_of
from fedjax_het import algorithms

_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE")
Runs = Mapping[str, list[dict[str, Any]]]


def read(directory: str) -> Runs:
    """Label -> its runs, by seed."""
    found = defaultdict(list)
    for path in sorted(Path(directory).glob("*.json")):
        row = json.loads(path.read_text())
        found[row["label"]].append(row)
    return found


def with_splitfed(runs: Runs, net: str, per_client: int) -> Runs:
    """Adds SplitFed: FedAvg's model round by round (a test holds them equal) on its own clock."""
    found = dict(runs)
    for where in ("IID", "Dirichlet"):
        name, options, place = (ARMS["iid"] | ARMS["skewed"])[f"SplitFed, {where}"]
        problem, speed, _ = setting(net, per_client=per_client, **place)
        options = {**TRAINING, **options, "server_flops_per_s": speed}
        algorithm = algorithms.build(name, problem, **options)
        ((_, lasts, _),) = rounds_of(algorithm, problem, 1)
        found[f"SplitFed, {where}"] = [
            {**row, "virtual_s": [step * lasts for step in row["step"]], "round_s": [lasts]}
            for row in runs.get(f"FedAvg, {where}", [])
        ]
    return found


def reached(row: dict[str, Any], target: float, column: str = "virtual_s") -> float:
    """Virtual seconds (or rounds) at the first evaluation at the target; inf if never."""
    hits = (at for at, acc in zip(row[column], row["accuracy"]) if acc >= target)
    return float(next(hits, np.inf))


def _spread(values: Sequence[float], form: str) -> str:
    if not np.isfinite(values).all():
        hits = int(np.isfinite(values).sum())
        return "never" if hits == 0 else f"{hits} of {len(values)}"
    mean = format(float(np.mean(values)), form)
    return mean if len(values) < 2 else f"{mean} ± {format(float(np.std(values, ddof=1)), form)}"


def table(runs: Runs, targets: Sequence[float]) -> str:
    """One line a label: final accuracy, seconds of a round, rounds and seconds to each target."""
    head = ["arm", "seeds", "best accuracy %", "round s"]
    head += [f"{unit} to {100 * t:g} %" for t in targets for unit in ("rounds", "s")]
    lines = []
    for label, rows in runs.items():
        if not rows:
            continue
        cells = [label, str(len(rows)), _spread([100 * max(r["accuracy"]) for r in rows], ".1f")]
        cells.append(_spread([float(np.mean(r["round_s"])) for r in rows], ".2f"))
        for target in targets:
            cells.append(_spread([reached(r, target, "step") for r in rows], ".0f"))
            cells.append(_spread([reached(r, target) for r in rows], ".0f"))
        lines.append(cells)
    return markdown(head, lines)


def order(runs: Runs, target: float) -> str:
    """Time to the target over DTFL's, beside the paper's ratios for ResNet-56."""
    lines = []
    label = {"dtfl": "DTFL", "fedyogi": "FedYogi", "fedavg": "FedAvg", "fedgkt": "FedGKT"}
    label["splitfed"] = "SplitFed"
    for name, paper in TABLE_3.items():
        cells = [label[name], f"{paper[0] / TABLE_3['dtfl'][0]:.2f}"]
        for where in ("IID", "Dirichlet"):
            rows, base = (runs.get(f"{m}, {where}", []) for m in (label[name], "DTFL"))
            pairs = [
                reached(a, target) / reached(b, target)
                for a, b in zip(rows, base)
                if np.isfinite(reached(b, target))
            ]
            cells.append(_spread(pairs, ".2f") if pairs else "")
        lines.append(cells)
    head = [
        "method",
        "paper, IID",
        f"here, IID, {100 * target:g} %",
        f"Dirichlet, {100 * target:g} %",
    ]
    return markdown(head, lines)


def accuracy(runs: Runs, where: str) -> Figure:
    """Accuracy against rounds and against virtual time, mean and range over seeds."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    by_round, by_time = figure.subplots(1, 2, sharey=True)
    for method, colour in zip(("DTFL", "FedAvg", "FedYogi", "FedGKT", "SplitFed"), _COLOURS):
        rows = runs.get(f"{method}, {where}")
        if not rows:
            continue
        values = 100 * np.asarray([r["accuracy"] for r in rows])
        for axes, column in ((by_round, "step"), (by_time, "virtual_s")):
            at = np.mean([r[column] for r in rows], axis=0)
            axes.plot(at, values.mean(axis=0), color=colour, label=method)
            axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15)
    by_round.set_xlabel("round")
    by_time.set_xlabel("virtual time (s)")
    by_time.set_xscale("log")
    by_round.set_ylabel("test accuracy (%)")
    for axes in (by_round, by_time):
        axes.grid(alpha=0.3)
    by_round.legend(loc="lower right", fontsize=8)
    return figure


def main(_: Sequence[str]) -> None:
    """Prints the tables and writes the figures."""
    runs = with_splitfed(read(flags.FLAGS.runs), flags.FLAGS.net, flags.FLAGS.per_client)
    out = Path(flags.FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    targets = [float(t) for t in flags.FLAGS.targets]
    print(table(runs, targets))
    for target in targets:
        print(f"\n{order(runs, target)}")
    for where, name in (("IID", "iid"), ("Dirichlet", "dirichlet")):
        accuracy(runs, where).savefig(
            out / f"dtfl_{flags.FLAGS.name or flags.FLAGS.net}_{name}.png", dpi=130
        )


if __name__ == "__main__":
    flags.DEFINE_string("runs", "runs/dtfl", "Directory of results.")
    flags.DEFINE_enum("net", "resnet", NETS, "Network of the runs.")
    flags.DEFINE_string("out", "docs/results/images", "Where the figures go.")
    flags.DEFINE_integer("per_client", PER_CLIENT, "Images of a client in the runs.")
    flags.DEFINE_string("name", None, "Of the figures; the default is the network.")
    flags.DEFINE_list("targets", ["0.3", "0.35", "0.4"], "Accuracies.")
    app.run(main)
