"""Tables and a figure of `benchmarks.reproduce.pr_fl` from its JSON files.

    python -m benchmarks.reproduce.pr_fl_figures --runs=runs/pr_fl --total_s=5000

Every run counts up to the given time: columns of accuracies are at equal virtual time, and the best
of a run stands apart.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from benchmarks.reproduce.pr_fl import ARMS, METHODS

# Accuracies whose times are compared: low enough for the slowest method to get there.
TARGETS = {"cifar10": (0.4, 0.45), "femnist": (0.5, 0.6), "digits": (0.85, 0.9)}
_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE")


def reached_s(run: dict[str, Any], target: float) -> float:
    """Virtual seconds until an evaluation shows the target; inf if none does."""
    hits = [t for t, a in zip(run["virtual_s"], run["accuracy"], strict=True) if a >= target]
    return hits[0] if hits else float("inf")


def cut(run: dict[str, Any], until_s: float) -> dict[str, Any]:
    """A run as if it had ended then; runs of a table may have been given different times."""
    seen = [(t, a) for t, a in zip(run["virtual_s"], run["accuracy"], strict=True) if t <= until_s]
    return {**run, "virtual_s": [t for t, _ in seen], "accuracy": [a for _, a in seen]}


def at(run: dict[str, Any], until_s: float) -> float:
    """Accuracy in percent, the mean of the last five evaluations by this time."""
    return 100 * float(np.mean(cut(run, 1.01 * until_s)["accuracy"][-5:]))


def _spread(values: list[float]) -> float:
    """Sample standard deviation; 0 for a single run."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def table(runs: list[dict[str, Any]], name: str, split: str, total_s: float) -> str:
    """A Markdown table of one setting: times to the targets, speed-ups, participation."""
    targets = TARGETS[name]
    labels = [label for arms in ARMS.values() for label in arms]
    chosen = [
        cut(run, 1.01 * total_s) for run in runs if (run["data"], run["split"]) == (name, split)
    ]
    by_label = {
        label: [run for run in chosen if run["label"] == label]
        for label in labels
        if any(run["label"] == label for run in chosen)
    }

    def middle(label: str, target: float) -> float:
        return float(np.mean([reached_s(run, target) for run in by_label[label]]))

    lines = [
        "| method | seeds | "
        + " | ".join(f"s to {100 * t:g} %" for t in targets)
        + f" | over FedAsyn | at {total_s / 2:.0f} s (%) | at {total_s:.0f} s (%) | best (%) "
        + "| slowest / fastest trainings | staleness |",
        "|---" * (8 + len(targets)) + "|",
    ]
    for label, own in by_label.items():
        base = "FedAsyn of the author" + ", coo64" * label.endswith("coo64")
        cells = []
        for target in targets:
            times = [reached_s(run, target) for run in own]
            there = [t for t in times if np.isfinite(t)]
            text = f"{np.mean(there):.0f} ± {_spread(there):.0f}" if there else "-"
            cells.append(text if len(there) == len(own) else f"{text} ({len(there)} of {len(own)})")
        ratios = [middle(base, t) / middle(label, t) for t in targets if base in by_label]
        seen = [[at(run, until_s) for run in own] for until_s in (total_s / 2, total_s)]
        seen.append([100 * max(run["accuracy"]) for run in own])
        spread = " | ".join(f"{np.mean(each):.1f} ± {_spread(each):.1f}" for each in seen)
        share = [min(run["trained"]) / max(run["trained"]) for run in own]
        lines.append(
            f"| {label} | {len(own)} | "
            + " | ".join(cells)
            + f" | {', '.join(f'{r:.2f}' if np.isfinite(r) else '-' for r in ratios)} | "
            + f"{spread} | {np.mean(share):.2f} | "
            + f"{np.mean([run['staleness'] for run in own]):.1f} |"
        )
    return "\n".join(lines)


def figure(
    runs: list[dict[str, Any]], settings: Sequence[tuple[str, str]], until_s: float
) -> Figure:
    """Accuracy against virtual time, mean and range over the seeds; a panel a setting."""
    drawing = Figure(figsize=(9.0, 3.1 * -(-len(settings) // 2)), layout="constrained")
    panels = np.ravel(
        drawing.subplots(-(-len(settings) // 2), min(2, len(settings)), squeeze=False)
    )
    for axes, (name, split) in zip(panels, settings):
        for method, colour in zip(METHODS, _COLOURS):
            own = [r for r in runs if (r["data"], r["split"], r["label"]) == (name, split, method)]
            if not own:
                continue
            # Evaluations fall on the merges of each run.
            axis = np.linspace(0, min(until_s, min(r["virtual_s"][-1] for r in own)), 120)
            seen = 100 * np.stack([np.interp(axis, r["virtual_s"], r["accuracy"]) for r in own])
            axes.plot(axis, seen.mean(axis=0), color=colour, label=method)
            axes.fill_between(axis, seen.min(axis=0), seen.max(axis=0), color=colour, alpha=0.15)
        axes.set_title(f"{name}, {split}", fontsize=10)
        axes.set_xlabel("virtual time (s)")
        axes.set_ylabel("test accuracy (%)")
        axes.grid(alpha=0.3)
    for spare in panels[len(settings) :]:
        spare.set_axis_off()
    panels[0].legend(loc="lower right", fontsize=8)
    return drawing


def main(_: Sequence[str]) -> None:
    """Prints the tables and draws the figure."""
    paths = sorted(Path(flags.FLAGS.runs).glob("*.json"))
    runs = [json.loads(path.read_text()) for path in paths]
    settings = sorted({(run["data"], run["split"]) for run in runs})
    for name, split in settings:
        print(f"\n{name}, {split}\n\n{table(runs, name, split, flags.FLAGS.total_s)}")
    if flags.FLAGS.figure:
        figure(runs, settings, flags.FLAGS.total_s).savefig(flags.FLAGS.figure, dpi=130)


if __name__ == "__main__":
    flags.DEFINE_string("runs", "runs/pr_fl", "Directory of the results.")
    flags.DEFINE_float("total_s", 7000.0, "Virtual seconds that count of every run.")
    flags.DEFINE_string("figure", None, "Where to draw accuracies against virtual time.")
    app.run(main)
