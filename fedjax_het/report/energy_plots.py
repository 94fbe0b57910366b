"""Plots of energy: what a target costs in joules, bytes and seconds, and who spends the joules."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fedjax_het.report.plots import Runs
from fedjax_het.report.records import RunRecord
from fedjax_het.report.results import MethodResult
from fedjax_het.report.style import legend_above, method_style, plain, styled
from fedjax_het.report.tasks import group_devices, tasks_of
from fedjax_het.report.units import unit

# Column of a target, kind of unit, and label of the three costs.
COSTS = (
    ("joules", "J", "energy of devices"),
    ("bytes_up", "B", "sent by devices"),
    ("virtual_s", "s", "virtual time"),
)


@styled
def cost_of_targets(results: Sequence[MethodResult]) -> Figure:
    """Bars: energy, traffic and time of each method until each target, with their spreads.

    A bar is drawn only if every seed reached the target; else a cross is in its place.
    """
    metric, goals = results[0].metric, [target.goal for target in results[0].targets]
    figure = Figure(figsize=(8.4, 3.3))
    width = 0.8 / len(results)
    for axes, (column, kind, label) in zip(figure.subplots(1, len(COSTS)), COSTS):
        costs = [[getattr(t, column) if t.always else None for t in r.targets] for r in results]
        tops = [c.mean + (c.std or 0.0) for row in costs for c in row if c is not None]
        scale, unit_name = unit(max(tops, default=1.0), kind)
        for i, row in enumerate(costs):
            look = method_style(i)
            for at, cost in enumerate(row):
                x = at + (i - (len(results) - 1) / 2) * width
                if cost is None:
                    # The height of a cross is a share of the panel's.
                    axes.plot(
                        x, 0.03, "x", color=look["color"], transform=axes.get_xaxis_transform()
                    )
                    continue
                error = None if cost.std is None else cost.std / scale
                axes.bar(
                    x,
                    cost.mean / scale,
                    width * 0.92,
                    yerr=error,
                    color=look["color"],
                    error_kw={"lw": 1, "capsize": 2.5},
                )
        axes.set_xticks(np.arange(len(goals)), [metric.short(goal) for goal in goals])
        axes.tick_params("x", length=0)
        axes.set_xlim(-0.6, len(goals) - 0.4)
        axes.set_ylim(0, max(tops, default=1.0) / scale * 1.05)
        axes.set_ylabel(f"{label} ({unit_name})")
        axes.grid(True, axis="y")
    figure.supxlabel(f"target: {plain(metric.label)}", fontsize=10)
    legend_above(figure, _entries([result.name for result in results]))
    return figure


@styled
def energy_by_group(runs: Runs) -> Figure:
    """Bars: joules that each device group spent in a whole run, per method, mean over the seeds."""
    tasks = {name: [tasks_of(run) for run in group] for name, group in runs.items()}
    flat = [run for group in runs.values() for run in group]
    groups = group_devices(flat, [t for group in tasks.values() for t in group])
    count, of_client = len(groups.labels), iter(groups.of_client)

    def joules_of(run: RunRecord) -> np.ndarray:
        columns = run.client_columns  # with probes, which are no tasks
        group = next(of_client)[columns["client"].astype(np.int64)]
        known = group >= 0  # a device that was only probed may have no group
        return np.bincount(group[known], columns["joules"][known], minlength=count)

    spent = {
        name: np.mean([joules_of(run) for run in group], axis=0) for name, group in runs.items()
    }
    scale, unit_name = unit(max(float(joules.max()) for joules in spent.values()), "J")
    figure = Figure(figsize=(6.6, 3.6))
    axes = figure.add_subplot()
    width = 0.8 / len(runs)
    for i, joules in enumerate(spent.values()):
        at = np.arange(count) + (i - (len(runs) - 1) / 2) * width
        axes.bar(at, joules / scale, width * 0.92, color=method_style(i)["color"])
    axes.set_xticks(np.arange(count), [plain(label) for label in groups.labels])
    axes.tick_params("x", labelsize=9.5 if count <= 4 else 7.5, length=0)
    axes.set_ylabel(f"energy of a whole run ({unit_name})")
    axes.grid(True, axis="y")
    legend_above(figure, _entries(list(runs)))
    return figure


def _entries(names: Sequence[str]) -> list[tuple[str, Any]]:
    """The legend: one patch per method."""
    return [(name, Patch(color=method_style(i)["color"])) for i, name in enumerate(names)]
