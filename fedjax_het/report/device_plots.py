"""Plots of the devices' work: time line of a few merges, waiting times, and blocks trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path

from fedjax_het.report.plots import Runs
from fedjax_het.report.records import RunRecord
from fedjax_het.report.style import PALETTE, WAITING, legend_above, method_style, plain, styled
from fedjax_het.report.tasks import (
    Tasks,
    device_labels,
    evenly,
    group_devices,
    mean_by_group,
    tasks_of,
    trained_share,
)
from fedjax_het.report.units import unit

_MOST_MERGES = 12
_PARTS = (
    ("download", "download_s", PALETTE[5]),
    ("compute", "compute_s", PALETTE[0]),
    ("upload", "upload_s", PALETTE[4]),
)


def window_s(records: Sequence[RunRecord], merges: int = 3) -> float:
    """The virtual time at which the time lines of several runs end, so that they can be compared.

    It is the time of merge number `merges` of the slowest run, but no later than the twelfth merge
    of the fastest run, in seconds.
    """
    at = [sorted({row["virtual_s"] for row in r.metrics if row["step"] > 0}) for r in records]
    slowest = max((times[min(merges, len(times)) - 1] for times in at if times), default=0.0)
    twelve = min((times[_MOST_MERGES - 1] for times in at if len(times) >= _MOST_MERGES), default=0)
    return min(slowest, twelve) if twelve else slowest


@styled
def timeline(record: RunRecord, until_s: float, most: int = 40) -> Figure:
    """Bars of download, computation, upload and waiting of each device, with the merges as lines.

    Devices are sorted by group, the fastest group on top, and within a group by busy time.

    Args:
      record: record of one run.
      until_s: virtual time at which the plot ends, in seconds; see `window_s`.
      most: largest number of devices to show, evenly chosen from that order; more than 40 are hard
        to read.
    """
    every = tasks_of(record)
    groups = group_devices([record], [every])
    early = every.dispatched_s < until_s
    devices = np.unique(every.client[early])
    group = groups.of_client[0][devices]
    busy_s = mean_by_group(
        every.busy_s[early], every.client[early], int(devices.max(initial=0)) + 1
    )
    devices = devices[np.lexsort((devices, busy_s[devices], group))]
    shown = devices[evenly(devices.size, most)]
    row_of = {int(device): row for row, device in enumerate(shown)}

    figure = Figure(figsize=(6.6, 1.9 + 0.17 * max(shown.size, 6)))
    axes = figure.add_subplot()
    scale, unit_name = unit(until_s, "s")
    drawn = np.flatnonzero(early & np.isin(every.client, shown))
    rows = np.array([row_of[int(c)] for c in every.client[drawn]], np.float64)
    _draw_bars(axes, every, drawn, rows, scale)
    for row in record.metrics:
        if 0 < row["virtual_s"] <= until_s and row["step"] > 0:
            axes.axvline(row["virtual_s"] / scale, color="black", lw=1.1, zorder=3)
    lost = drawn[~every.used[drawn]]
    if lost.size:
        axes.plot(
            every.end_s[lost] / scale,
            rows[~every.used[drawn]],
            "X",
            color=PALETTE[1],
            ms=6,
            zorder=4,
        )
    _label_rows(axes, device_labels(record, shown), groups.of_client[0][shown], groups.labels)
    axes.set_xlim(0, until_s / scale * 1.005)
    axes.set_xlabel(f"virtual time ({unit_name})")
    some = "" if shown.size == devices.size else f" ({shown.size} of {devices.size}, evenly chosen)"
    axes.set_ylabel(f"device{some}")
    entries: list[tuple[str, Any]] = [(name, Patch(color=color)) for name, _, color in _PARTS]
    entries.append(("waiting", Patch(facecolor=WAITING, hatch="////", edgecolor="#AAAAAA")))
    entries.append(("merge", axes.plot([], [], color="black", lw=1.1)[0]))
    if lost.size:
        entries.append(("left out", axes.plot([], [], "X", color=PALETTE[1], ms=6)[0]))
    legend_above(figure, entries, columns=len(entries))
    return figure


def _draw_bars(axes: Axes, tasks: Tasks, drawn: np.ndarray, rows: np.ndarray, scale: float) -> None:
    """Draws the bars of the tasks `drawn` at heights `rows`; a bar ends at the merge at latest."""
    start, end = tasks.dispatched_s[drawn], tasks.end_s[drawn]
    for _, part, color in _PARTS:
        stop = np.minimum(start + getattr(tasks, part)[drawn], end)
        axes.add_patch(PathPatch(_bars(start / scale, stop / scale, rows), fc=color, lw=0))
        start = stop
    idle = tasks.waiting_s[drawn] > 0
    path = _bars(end[idle] / scale, tasks.merge_s[drawn][idle] / scale, rows[idle])
    axes.add_patch(PathPatch(path, fc=WAITING, hatch="////", ec="#BBBBBB", lw=0))


def _bars(left: np.ndarray, right: np.ndarray, row: np.ndarray) -> Path:
    """All rectangles as one path; the file is several times smaller than with separate patches."""
    low, high = row - 0.41, row + 0.41
    x = np.stack([left, right, right, left, left], 1)
    y = np.stack([low, low, high, high, low], 1)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    return Path(np.stack([x, y], 2).reshape(-1, 2), np.tile(codes, row.size))


def _label_rows(axes: Axes, names: Sequence[str], group: np.ndarray, labels: Sequence[str]) -> None:
    axes.set_yticks(np.arange(len(names)), [plain(name) for name in names])
    axes.tick_params("y", length=0, labelsize=8 if len(names) > 20 else 9.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    for g in np.unique(group):
        rows = np.flatnonzero(group == g)
        if rows[0] > 0:
            axes.axhline(rows[0] - 0.5, color="#777777", lw=0.8)
        axes.annotate(
            plain(labels[g]),
            (1, rows.mean()),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )


@styled
def trained_blocks(runs: Runs) -> Figure:
    """Heat maps, one per method: share of each group's tasks that updated each block of the model.

    The share is the mean over the seeds of a method. Block 0, the input side, is at the bottom.
    """
    tasks = {name: [tasks_of(run) for run in group] for name, group in runs.items()}
    flat = [run for group in runs.values() for run in group]
    groups = group_devices(flat, [t for group in tasks.values() for t in group])
    count = len(groups.labels)
    of_client = iter(groups.of_client)
    names = list(flat[0].summary["block_names"])
    columns = min(len(runs), 2 if count > 4 else 3)
    lines = -(-len(runs) // columns)
    height = min(max(0.3 * len(names), 1.6), 4.5)
    figure = Figure(figsize=(max(2.9 * columns, 4.6), 1.2 + (height + 0.7) * lines))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for i, (axes, (name, group)) in enumerate(zip(grid.flat, runs.items())):
        shares = [trained_share(r, t, next(of_client), count) for r, t in zip(group, tasks[name])]
        stacked = np.stack(shares)
        known = np.isfinite(stacked).sum(0)
        share = np.divide(
            np.nansum(stacked, 0), known, out=np.full(known.shape, np.nan), where=known > 0
        )
        mesh = axes.pcolormesh(
            100 * share, cmap="Blues", vmin=0, vmax=100, edgecolors="face", lw=0.3
        )
        if share.size <= 60:
            for (b, g), value in np.ndenumerate(share):
                text = "-" if np.isnan(value) else f"{100 * value:.0f}"
                color = "white" if value > 0.55 else "black"
                axes.text(g + 0.5, b + 0.5, text, ha="center", va="center", color=color, fontsize=9)
        axes.set_title(plain(name))
        axes.set_xticks(np.arange(count) + 0.5, [plain(name) for name in groups.names])
        lowest = i + columns >= len(runs)
        axes.tick_params("x", labelsize=8.5, rotation=0 if count <= 3 else 90, labelbottom=lowest)
        ticks = np.arange(0, len(names), -(-len(names) // 20))
        axes.set_yticks(ticks + 0.5, [f"{t} {plain(names[t])}" for t in ticks])
        axes.tick_params("y", labelsize=8.5)
    for axes in list(grid.flat)[len(runs) :]:
        axes.remove()
    figure.supylabel("block, input side at the bottom", fontsize=10)
    figure.colorbar(
        mesh, ax=list(grid.flat)[: len(runs)], label="tasks that updated it (%)", pad=0.02
    )
    return figure


@styled
def waiting_by_group(runs: Runs) -> Figure:
    """Stacked bars: mean busy and waiting seconds per task, per device group and method."""
    tasks = {name: [tasks_of(run) for run in group] for name, group in runs.items()}
    flat = [t for group in tasks.values() for t in group]
    groups = group_devices([run for group in runs.values() for run in group], flat)
    count = len(groups.labels)
    of_client = iter(groups.of_client)
    means = {}
    for name, group in tasks.items():
        key = np.concatenate([next(of_client)[t.client] for t in group])
        means[name] = [
            mean_by_group(np.concatenate([getattr(t, part) for t in group]), key, count)
            for part in ("busy_s", "waiting_s")
        ]
    scale, unit_name = unit(max(float(np.nanmax(b + w)) for b, w in means.values()), "s")
    figure = Figure(figsize=(6.6, 3.9))
    axes = figure.add_subplot()
    width = 0.8 / len(runs)
    entries: list[tuple[str, Any]] = []
    for i, (name, (busy_s, waiting_s)) in enumerate(means.items()):
        at = np.arange(count) + (i - (len(runs) - 1) / 2) * width
        color = method_style(i)["color"]
        axes.bar(at, busy_s / scale, width * 0.92, color=color)
        axes.bar(
            at,
            waiting_s / scale,
            width * 0.92,
            bottom=busy_s / scale,
            color=WAITING,
            hatch="////",
            edgecolor=color,
            lw=0.8,
        )
        entries.append((f"{name}, busy", Patch(color=color)))
    entries.append(("waiting", Patch(facecolor=WAITING, hatch="////", edgecolor="#888888")))
    axes.set_xticks(np.arange(count), [plain(label) for label in groups.labels])
    axes.tick_params("x", labelsize=9.5 if count <= 4 else 7.5, length=0)
    axes.set_ylabel(f"mean time per task ({unit_name})")
    axes.grid(True, axis="y")
    legend_above(figure, entries)
    return figure
