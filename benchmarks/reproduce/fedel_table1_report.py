"""Tables and figure of `benchmarks.reproduce.fedel_table1`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import harness

Run = Mapping[str, Any]
Runs = Mapping[str, Sequence[Run]]

# Table 1 of the paper, CIFAR-10 on ten devices: accuracy in %, speed-up over FedAvg.
PAPER = {
    "FedAvg": (56.13, 1.0),
    "ElasticTrainer": (40.03, 1.84),
    "HeteroFL": (53.44, 1.49),
    "DepthFL": (54.89, 1.54),
    "PyramidFL": (56.24, 1.03),
    "TimelyFL": (53.74, 1.81),
    "FIARSE": (56.48, 1.66),
    "FedEL": (56.51, 1.87),
}
# Least share of positive importances at which a probe by whole steps is valid.
LEAST_POSITIVE = 0.8
# Evaluations at the end that are averaged.
LAST = 2
# The target is this share of FedAvg's accuracy at the end.
TARGET = 0.9
_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB", "#000000")


def positive(one: Run) -> float:
    """Share of positive importances over a run; 1 for a method that measures none."""
    return float(np.mean(one.get("positive", 1.0)))


def invalid(runs: Sequence[Run]) -> bool:
    """Whether too few importances are positive for the runs to say something of the method."""
    return float(np.mean([positive(one) for one in runs])) < LEAST_POSITIVE


def best_rate(tuned: Sequence[Run]) -> float:
    """The step size with the highest mean accuracy over time among the valid ones.

    If at none of them `LEAST_POSITIVE` of the importances are positive, all count.
    """
    valid = [one for one in tuned if positive(one) >= LEAST_POSITIVE] or tuned
    return float(max(valid, key=lambda one: float(np.mean(one["accuracy"])))["rate"])


def repriced(runs: Sequence[Run], label: str, round_s: float) -> list[dict[str, Any]]:
    """The same training on another clock, by which every round lasts as long."""
    at_s = [[step * round_s for step in one["step"]] for one in runs]
    return [{**one, "label": label, "virtual_s": s} for one, s in zip(runs, at_s, strict=True)]


def final(one: Run) -> float:
    """Accuracy at the end of a run in %, mean of the last evaluations."""
    return 100 * float(np.mean(one["accuracy"][-LAST:]))


def reached(one: Run, target: float) -> float:
    """Time until an evaluation reached the accuracy in %, in local works of a fast device."""
    pairs = zip(one["virtual_s"], one["accuracy"], strict=True)
    at_s = next((second for second, accuracy in pairs if 100 * accuracy >= target), np.inf)
    return float(at_s / one["fast_step_s"])


def _spread(values: Sequence[float], digits: int) -> str:
    mean, std = np.mean(values), np.std(values, ddof=len(values) > 1)
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def table(runs: Runs) -> str:
    """Paper against here, mean and standard deviation over the seeds."""
    whole = runs["FedAvg"]
    target = TARGET * float(np.mean([final(one) for one in whole]))
    rows = []
    for label, group in runs.items():
        accuracy, speed = PAPER.get(label, ("", ""))
        times = [reached(one, target) for one in group]
        found = [at for at in times if np.isfinite(at)]
        hit = _spread(found, 0) if len(found) == len(times) else f"{len(found)} of {len(times)}"
        lasts = [one["virtual_s"][-1] / one["fast_step_s"] for one in group]
        faster = [a["virtual_s"][-1] / b["virtual_s"][-1] for a, b in zip(whole, group)]
        moved = [
            np.mean([one[name] / base[name] for one, base in zip(group, whole)])
            for name in ("bytes_up", "bytes_down")
        ]
        rows.append(
            (
                label,
                f"{group[0]['rate']:g}",
                str(accuracy),
                _spread([final(one) for one in group], 1),
                str(speed),
                f"{np.mean(faster):.2f}",
                f"{np.mean(lasts):.1f}",
                hit,
                *(f"{share:.2f}" for share in moved),
            )
        )
    head = (
        "arm",
        "step size",
        "paper %",
        "here %",
        "paper x",
        "here x",
        "T_th",
        f"T_th to {target:.1f} %",
        "up",
        "down",
    )
    return harness.table(head, rows)


def signs(runs: Runs) -> str:
    """Positive importances, and blocks whose kernels train by type of device, as a table."""
    rows = []
    for label, group in runs.items():
        if "kernels" not in group[0]:
            continue
        for g, kind in enumerate(("fast", "slow")):
            trained = np.mean([one["kernels"][g] for one in group], axis=0)
            # Half of the devices are of each type, and all take part in every round.
            tasks = group[0]["rounds"] * group[0]["devices"] / 2
            share = " ".join(f"{100 * count / tasks:.0f}" for count in trained)
            sign = f"{np.mean([positive(one) for one in group]):.2f}" if g == 0 else ""
            rows.append((f"{label}, {kind}", sign, share))
    head = ("arm", "positive", "tasks that train a kernel of a block, %")
    return harness.table(head, rows)


def figure(runs: Runs) -> Figure:
    """Accuracy against virtual time, mean over the seeds, one line per method."""
    made = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = made.subplots()
    shown = [label for label in PAPER if label in runs]
    for label, colour in zip(shown, _COLOURS):
        group = runs[label]
        at = np.mean([one["virtual_s"] for one in group], axis=0) / group[0]["fast_step_s"]
        accuracy = 100 * np.asarray([one["accuracy"] for one in group])
        width = 2.6 if label == "FedEL" else 1.4
        axes.plot(at, accuracy.mean(axis=0), color=colour, label=label, linewidth=width)
    axes.set_xlabel("virtual time (local works of a fast device, T_th)")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8, ncols=2)
    return made
