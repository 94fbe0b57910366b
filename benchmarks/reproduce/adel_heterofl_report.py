"""Tables and figure of `adel_heterofl`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedjax_het.report.style import legend_above, method_style, styled

# Rounds of the authors' Wait over those that the devices' times give, least and most.
AUTHORS_WAIT = (1.28, 1.57)


def at_time(one: Mapping[str, Any], total_s: float) -> tuple[float, int]:
    """Accuracy and number of rounds at the last evaluation within the time."""
    inside = np.asarray(one["virtual_s"]) <= total_s * (1 + 1e-9)
    last = int(np.flatnonzero(inside)[-1])
    return one["accuracy"][last], one["step"][last]


def on_the_authors_clock(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs of Wait, read on a clock whose rounds are too long by what the authors' are.

    Their rounds last 28 to 57 % longer than the devices need (methods/adel_fl.md 5).
    """
    found = []
    for one in runs:
        for factor in AUTHORS_WAIT if one["label"] == "Wait" else ():
            slower = [
                {**c, "virtual_s": [factor * at_s for at_s in c["virtual_s"]]}
                for c in one["curves"]
            ]
            label = f"Wait, authors' clock ({factor:g} times as slow)"
            found.append({**one, "label": label, "curves": slower})
    return found


def table(runs: Sequence[Mapping[str, Any]], total_s: float, rounds: int) -> str:
    """Accuracies at the end of the time and after SALF's rounds, as Markdown, the best first.

    Args:
      runs: cells of the study, one of each arm.
      total_s: virtual time of the setting.
      rounds: SALF's rounds.
    """
    lines = [
        "| method | step size | accuracy at the end of the time (%) | per seed | rounds | "
        "at SALF's rounds (%) | dropped | all missed the input layer | weight |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for one in (*runs, *on_the_authors_clock(runs)):
        found = [at_time(each, total_s) for each in one["curves"]]
        last = [100 * accuracy for accuracy, _ in found]
        after = [100 * c["accuracy"][-1] for c in one["curves"] if c["step"][-1] == rounds]
        batch = f", batch {one['batch_size']}" if one["batch_size"] else ""
        rows.append(
            (
                -np.mean(last),
                f"| {one['label']} | {one['learning_rate']:g}{batch} | {_spread(last)} | "
                f"{', '.join(f'{value:.1f}' for value in last)} | "
                f"{np.mean([step for _, step in found]):.0f} | "
                f"{_spread(after) if len(after) == len(last) else '-'} | "
                f"{100 * np.mean(one['dropped']):.0f} % | {_counted(one, 'miss_observed')} | "
                f"{_counted(one, 'update_weight')} |",
            )
        )
    return "\n".join([*lines, *(line for _, line in sorted(rows))])


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=len(values) > 1):.1f}"


def _counted(one: Mapping[str, Any], name: str) -> str:
    values = [each[name] for each in one["merging"] if name in each]
    return f"{np.mean(values):.2f}" if values else "-"


@styled
def figure(runs: Sequence[Mapping[str, Any]], total_s: float) -> Figure:
    """Accuracy against virtual time, mean over the seeds with their range."""
    drawing = Figure(figsize=(7.2, 4.2))
    axes = drawing.add_subplot()
    entries: list[Any] = []
    for i, one in enumerate(runs):
        look: dict[str, Any] = {**method_style(i), "marker": ""}
        at = np.linspace(0, total_s, 100)
        seen = [np.interp(at, c["virtual_s"], c["accuracy"]) for c in one["curves"]]
        every = 100 * np.stack(seen)
        (line,) = axes.plot(at, every.mean(axis=0), lw=1.8, **look)
        axes.fill_between(at, every.min(axis=0), every.max(axis=0), color=look["color"], alpha=0.1)
        entries.append((one["label"], line))
    axes.set_xlabel("virtual time (s)")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(True)
    legend_above(drawing, entries)
    return drawing
