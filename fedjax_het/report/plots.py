"""Plots of the target metric against time, steps, bytes and joules, and of each client's labels.

The functions take the runs of each method (one per seed) and return a matplotlib `Figure`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from fedjax_het.common.errors import InputError
from fedjax_het.report.records import RunRecord, time_to
from fedjax_het.report.style import legend_above, method_style, plain, styled
from fedjax_het.report.tasks import evenly
from fedjax_het.report.units import unit

Runs = Mapping[str, Sequence[RunRecord]]

_MOST_POINTS = 400  # points per line, more than a screen shows
_MOST_ROWS = 60
_MOST_ACROSS = 6  # characters of a name that fits beside eleven others
_WIDE = 5.0  # ratio of largest to smallest value from which a linear axis hides the progress


class _Axes(NamedTuple):
    """Columns of the metrics to draw, the kind of unit on the x axis, and the axes' labels.

    Column and label of the y axis are filled in with the name and the label of the target metric.
    """

    column: str
    kind: str
    label: str
    metric: str = "{}"
    metric_label: str = "test {}"


def metric_vs_time(runs: Runs, targets: Sequence[float]) -> Figure:
    """The target metric on the test set against virtual time."""
    return _curves(runs, targets, _Axes("virtual_s", "s", "virtual time"))


def metric_vs_round(runs: Runs, targets: Sequence[float]) -> Figure:
    """The target metric on the test set against server steps."""
    return _curves(runs, targets, _Axes("step", "", "server steps"))


def metric_vs_bytes_up(runs: Runs, targets: Sequence[float]) -> Figure:
    """The target metric on the test set against the total bytes sent by all devices."""
    return _curves(runs, targets, _Axes("bytes_up", "B", "sent by all devices"))


def metric_vs_joules(runs: Runs, targets: Sequence[float]) -> Figure:
    """The target metric on the test set against the total energy of all devices."""
    return _curves(runs, targets, _Axes("joules", "J", "energy of all devices"))


def metric_vs_wall_time(runs: Runs, targets: Sequence[float]) -> Figure:
    """The target metric against the wall time of the simulation, without compilation."""
    return _curves(runs, targets, _Axes("wall_s", "s", "wall time without compiling"))


def worst_clients_vs_time(runs: Runs) -> Figure | None:
    """The metric of the worst tenth of the clients against virtual time; None if not recorded."""
    column = "client_{}_worst_decile"
    recorded = {
        name: [r for r in g if r.evaluations(metric=column.format(r.metric.name))[1].size]
        for name, g in runs.items()
    }
    if not all(recorded.values()):
        return None
    axes = _Axes("virtual_s", "s", "virtual time", column, "worst-decile client {}")
    return _curves(recorded, (), axes)


@styled
def _curves(runs: Runs, targets: Sequence[float], what: _Axes) -> Figure:
    """Mean line and min-max band over seeds; thin lines continue seeds that ran longer."""
    figure = Figure(figsize=(6.6, 4.1))
    axes = figure.add_subplot()
    metric = next(iter(runs.values()))[0].metric
    curves = {
        name: [run.evaluations(what.column, what.metric.format(metric.name)) for run in group]
        for name, group in runs.items()
    }
    ends = [float(x[-1]) for group in curves.values() for x, _ in group]
    scale, unit_name = unit(max(ends), what.kind)
    entries: list[tuple[str, Any]] = []
    for i, (name, group) in enumerate(curves.items()):
        look = method_style(i)
        _draw_curve(axes, [(x / scale, metric.scale * y) for x, y in group], look)
        entries.append((name, Line2D([], [], lw=2, ms=5, **look)))  # type: ignore[arg-type]
        for target in targets:
            at = [time_to(run, target, what.column) for run in runs[name]]
            reached = [t / scale for t in at if t is not None]
            if len(reached) == len(at):
                at_target = (np.mean(reached), metric.scale * target)
                axes.plot(*at_target, zorder=4, ms=8, mec="white", **look)  # type: ignore[arg-type]
    for target in targets:
        axes.axhline(metric.scale * target, color="#555555", lw=1, ls=(0, (4, 3)), zorder=1)
        axes.annotate(
            metric.short(target),
            (1, metric.scale * target),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color="#555555",
            fontsize=9.5,
        )
    values = np.concatenate([y for group in curves.values() for _, y in group])
    label = what.metric_label.format(plain(metric.label)) + metric.unit
    falls = not (metric.share or metric.higher_is_better)
    if falls and values.min() > 0 and values.max() > _WIDE * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        label += ", log scale"
    axes.set_xlabel(f"{what.label} ({unit_name})" if unit_name else what.label)
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=not what.kind, steps=[1, 2, 5, 10]))
    axes.set_xlim(0, max(ends) / scale * 1.02 or 1)
    axes.grid(True)
    legend_above(figure, entries)
    return figure


def _draw_curve(
    axes: Axes, group: Sequence[tuple[np.ndarray, np.ndarray]], look: Mapping[str, str]
) -> None:
    line = {"color": look["color"], "ls": look["linestyle"]}
    low, high = max(x[0] for x, _ in group), min(x[-1] for x, _ in group)
    common = np.unique(np.concatenate([x[(x >= low) & (x <= high)] for x, _ in group]))
    if len(group) > 1 and common.size:
        common = common[evenly(common.size, _MOST_POINTS)]
        values = np.stack([np.interp(common, x, y) for x, y in group])
        axes.fill_between(
            common, values.min(0), values.max(0), color=look["color"], alpha=0.18, lw=0
        )
        axes.plot(common, values.mean(0), lw=2, **line)  # type: ignore[arg-type]
        for x, y in group:
            after = np.append(high, x[x > high])
            after = after[evenly(after.size, _MOST_POINTS)]
            if after.size > 1:
                axes.plot(after, np.interp(after, x, y), lw=0.9, alpha=0.6, **line)  # type: ignore[arg-type]
    else:
        for x, y in group:
            kept = evenly(x.size, _MOST_POINTS)
            dots = {"marker": look["marker"], "ms": 3.5} if x.size <= 40 else {}
            axes.plot(x[kept], y[kept], lw=2, **dots, **line)  # type: ignore[arg-type]


@styled
def labels_by_client(record: RunRecord) -> Figure:
    """Heat map of the number of samples of each class on each device; shows at most 60 devices.

    Raises:
      InputError: if the record has no `label_counts`.
    """
    counts = record.population.label_counts
    if counts is None:
        raise InputError(
            f"{record.source}: label_counts: is not recorded; draw this plot for labelled data only"
        )
    shown = evenly(len(counts), _MOST_ROWS)
    figure = Figure(figsize=(6.6, 3.6))
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(
        counts[shown].T.astype(np.float64), cmap="Blues", vmin=0, edgecolors="face", lw=0.3
    )
    ticks = np.arange(0, shown.size, -(-shown.size // 12))
    names = [record.population.client_name(int(shown[t])) for t in ticks]
    long = max(map(len, names)) > _MOST_ACROSS
    slant, side = (30, "right") if long else (0, "center")
    axes.set_xticks(ticks + 0.5, names, rotation=slant, ha=side, parse_math=False)
    classes = np.arange(0, counts.shape[1], -(-counts.shape[1] // 20))
    labels = [record.population.class_name(int(c)) for c in classes]
    axes.set_yticks(classes + 0.5, labels, parse_math=False)
    some = "" if shown.size == len(counts) else f" ({shown.size} of {len(counts)}, evenly chosen)"
    axes.set_xlabel(f"device{some}")
    axes.set_ylabel("class")
    figure.colorbar(mesh, ax=axes, label="training samples", pad=0.02)
    return figure
