"""Table and figures of `benchmarks.reproduce.fedel` from its JSON files.

python -m benchmarks.reproduce.fedel_figures --runs=runs/fedel --out=docs/results/images
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE")
_GROUPS = ("fastest", "2x slower", "3x slower", "4x slower")
Runs = Mapping[str, list[dict[str, Any]]]


def read(directories: Sequence[str]) -> Runs:
    """Label -> its runs; labels of all but the first directory carry its number of rounds."""
    found = defaultdict(list)
    for i, directory in enumerate(directories):
        for path in sorted(Path(directory).glob("*.json")):
            row = json.loads(path.read_text())
            label = row["label"] if i == 0 else f"{row['label']}, {row['rounds']} rounds"
            found[label].append(row)
    return found


def _spread(values: Sequence[float], form: str) -> str:
    mean = format(float(np.mean(values)), form)
    return mean if len(values) < 2 else f"{mean} ± {format(float(np.std(values, ddof=1)), form)}"


def table(runs: Runs) -> str:
    """One line a label, in Markdown."""
    lines = [
        "| arm | step size | seeds | final accuracy % | last 5 evaluations % | round / T_th | "
        "true step / T_th, most | upload / FedAvg | O1 | positive | tensors a window |",
        "|---" * 11 + "|",
    ]
    whole = np.mean([r["bytes_up"] / r["rounds"] for r in runs["FedAvg"]])
    for label, rows in sorted(runs.items(), key=lambda item: (-len(item[1]), item[0])):
        bias = [float(np.mean(r["o1"])) for r in rows if r["o1"]]
        true = [max(r["true_budget_ratio"]) for r in rows if r["true_budget_ratio"]]
        positive = [float(np.mean(r["positive"])) for r in rows if "positive" in r]
        tensors = [float(np.mean(r["tensors"])) for r in rows if r["tensors"]]
        cells = [
            label,
            f"{rows[0]['rate']:g}",
            str(len(rows)),
            _spread([100 * r["accuracy"][-1] for r in rows], ".1f"),
            _spread([float(100 * np.mean(r["accuracy"][-5:])) for r in rows], ".1f"),
            _spread([r["round_s"] / r["budget_s"] for r in rows], ".2f"),
            f"{max(true):.2f}" if true else "",
            f"{np.mean([r['bytes_up'] / r['rounds'] for r in rows]) / whole:.2f}",
            _spread(bias, ".1f") if bias else "",
            _spread(positive, ".2f") if positive else "",
            _spread(tensors, ".1f") if tensors else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def at_equal_time(runs: Runs, labels: Sequence[str], budgets: Sequence[float]) -> str:
    """Accuracy after so many budgets of virtual time, mean of the last three evaluations."""
    lines = [
        "| arm | " + " | ".join(f"after {t:g} T_th (%)" for t in budgets) + " |",
        "|---|" + "---|" * len(budgets),
    ]
    for label in (label for label in labels if label in runs):
        cells = []
        for budget in budgets:
            values = []
            for r in runs[label]:
                past = np.asarray(r["virtual_s"]) <= budget * r["budget_s"] * (1 + 1e-9)
                values.append(float(100 * np.mean(np.asarray(r["accuracy"])[past][-3:])))
            last = min(max(r["virtual_s"]) / r["budget_s"] for r in runs[label])
            cells.append(_spread(values, ".1f") if last >= 0.95 * budget else "")
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def accuracy(runs: Runs, labels: Sequence[str]) -> Figure:
    """Accuracy against rounds and against virtual time, mean and range over seeds."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    by_round, by_time = figure.subplots(1, 2, sharey=True)
    for label, colour in zip(labels, _COLOURS):
        rows = runs.get(label)
        if not rows:
            continue
        values = 100 * np.asarray([r["accuracy"] for r in rows])
        steps = np.linspace(0, rows[0]["rounds"], values.shape[1])
        time = np.mean([r["virtual_s"] for r in rows], axis=0) / rows[0]["budget_s"]
        for axes, at in ((by_round, steps), (by_time, time)):
            axes.plot(at, values.mean(axis=0), color=colour, label=label)
            axes.fill_between(at, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15)
    by_round.set_xlabel("round")
    by_time.set_xlabel("virtual time (budgets of the fastest device)")
    by_round.set_ylabel("test accuracy (%)")
    for axes in (by_round, by_time):
        axes.grid(alpha=0.3)
    by_time.legend(loc="lower right", fontsize=8)
    return figure


def coverage(runs: Runs, labels: Sequence[str]) -> Figure:
    """Share of a device group's tasks that trained a tensor of each block."""
    figure = Figure(figsize=(11.0, 2.6), layout="constrained")
    columns = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
    for axes, label in zip(columns, labels):
        trained = np.sum([r["trained_blocks"] for r in runs[label]], axis=0)
        tasks = np.sum([r["tasks_by_group"] for r in runs[label]], axis=0)
        share = 100 * trained / np.maximum(tasks, 1)[:, None]
        image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues", aspect="auto")
        for (g, b), value in np.ndenumerate(share):
            colour = "white" if value > 55 else "black"
            axes.text(b, g, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_title(label, fontsize=10)
        axes.set_xticks(range(share.shape[1]), [str(b + 1) for b in range(share.shape[1])])
        axes.set_yticks(range(len(_GROUPS)), _GROUPS)
        axes.set_xlabel("block, input to output")
    figure.colorbar(image, ax=columns, label="tasks that train it (%)")
    return figure


def main(_: Sequence[str]) -> None:
    """Prints the table and writes the figures."""
    runs = read(flags.FLAGS.runs)
    out = Path(flags.FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    print(table(runs))
    main_labels = ["FedAvg", "FedEL", "ElasticTrainer", "FedPMT"]
    longer = [label for label in runs if label.startswith("FedEL, ") and "rounds" in label]
    print()
    print(at_equal_time(runs, [*main_labels, *longer], (30, 60, 115, 470)))
    accuracy(runs, [*main_labels, *longer]).savefig(out / "fedel_accuracy.png", dpi=130)
    coverage(runs, ["FedEL", "FedEL, small probe", "ElasticTrainer"]).savefig(
        out / "fedel_coverage.png", dpi=130
    )


if __name__ == "__main__":
    flags.DEFINE_list("runs", ["runs/fedel"], "Directories of results; later ones add labels.")
    flags.DEFINE_string("out", "docs/results/images", "Where the figures go.")
    app.run(main)
