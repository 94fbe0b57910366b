"""Plots of the target metric client by client: its spread, by device group and by data size."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fedjax_het.report.clients import ClientValues
from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.records import RunRecord
from fedjax_het.report.style import PALETTE, legend_above, plain, styled
from fedjax_het.report.tasks import evenly, group_devices, tasks_of

_MOST_POINTS = 400
_MOST_OF_A_GROUP = 80
_MOST_BINS = 20
_SERVER, _PERSONAL = PALETTE[0], PALETTE[1]


@styled
def metric_by_client(record: RunRecord, of: ClientValues) -> Figure:
    """Histogram of the clients' metric above; by device group and training samples below.

    Args:
      record: record of one run.
      of: its clients' values, from `clients.client_values`.
    """
    metric = record.metric
    figure = Figure(figsize=(6.6, 5.6))
    parts = figure.subplot_mosaic([["all", "all"], ["group", "samples"]])
    sets = [(metric.scale * of.values, _SERVER)]
    if np.isfinite(of.personal).any():
        sets.append((metric.scale * of.personal, _PERSONAL))
    marks = [
        ("mean", float(of.values.mean()), "-"),
        ("worst decile", metric.worst_decile(of.values), ":"),
    ]
    _histogram(parts["all"], sets, metric)
    for _, value, dashes in marks:
        parts["all"].axvline(metric.scale * value, color="black", lw=1.4, ls=dashes)
    _by_group(parts["group"], sets, *_groups_of(record, of))
    _by_samples(parts["samples"], sets, of.train_samples)
    label = f"test {plain(metric.label)}{metric.unit}"
    parts["all"].set_xlabel(label)
    parts["group"].set_ylabel(label)
    parts["samples"].sharey(parts["group"])
    parts["samples"].tick_params("y", labelleft=False)
    entries: list[tuple[str, Any]] = [("server's model", Patch(color=_SERVER, alpha=0.75))]
    if len(sets) > 1:
        entries.append(("after local training", Patch(color=_PERSONAL, alpha=0.75)))
    entries += [
        (f"{name} {metric.text(value)}", Line2D([], [], color="black", lw=1.4, ls=dashes))
        for name, value, dashes in marks
    ]
    legend_above(figure, entries, columns=2 if len(entries) > 3 else 3)
    return figure


def _histogram(axes: Axes, sets: list[tuple[np.ndarray, str]], metric: MetricInfo) -> None:
    """The server's model as bars, the clients' own models as a line over them."""
    finite = [values[np.isfinite(values)] for values, _ in sets]
    bins = int(np.clip(2 * np.sqrt(finite[0].size), 5, _MOST_BINS))
    edges = np.histogram_bin_edges(np.concatenate(finite), bins)
    for i, (values, (_, color)) in enumerate(zip(finite, sets, strict=True)):
        kind: dict[str, Any] = {"histtype": "step", "lw": 1.8} if i else {"alpha": 0.75}
        axes.hist(values, edges.tolist(), color=color, **kind)
    if metric.share:
        axes.set_xlim(max(edges[0] - 2, -1), min(edges[-1] + 2, 101))
    axes.set_ylabel("clients")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(True, axis="y")


def _groups_of(record: RunRecord, of: ClientValues) -> tuple[np.ndarray, list[str]]:
    """Place of each client's group on the x axis, and the names of the places."""
    groups = group_devices([record], [tasks_of(record)])
    place, names = np.full(of.client.size, -1), groups.names
    place[of.has_device] = groups.of_client[0][of.client[of.has_device]]
    idle = of.has_device & (place < 0)
    for rows, name in ((idle, "no task"), (~of.has_device, "only tests")):
        if rows.any():
            place[rows] = len(names)
            names = [*names, name]
    return place, names


def _by_group(
    axes: Axes, sets: list[tuple[np.ndarray, str]], place: np.ndarray, names: list[str]
) -> None:
    """Clients side by side in their group (of many, every n-th by value), and the group's mean."""
    width = 0.8 / len(sets)
    for i, (values, color) in enumerate(sets):
        middle = (i - (len(sets) - 1) / 2) * width
        for group in range(len(names)):
            own = np.sort(values[(place == group) & np.isfinite(values)])
            if not own.size:
                continue
            shown = own[evenly(own.size, _MOST_OF_A_GROUP)]
            # Neighbours in value stand apart: the golden ratio spreads any number of them evenly.
            beside = (np.arange(shown.size) * 0.618034) % 1.0 - 0.5
            x = group + middle + 0.7 * width * beside
            axes.plot(x, shown, "o", ms=3.5, color=color, alpha=0.6, mew=0)
            half = 0.45 * width
            ends = [group + middle - half, group + middle + half]
            axes.plot(ends, [own.mean()] * 2, color="black", lw=1.6)
    axes.set_xticks(np.arange(len(names)), [plain(name) for name in names])
    axes.tick_params("x", labelsize=8.5, length=0, rotation=0 if len(names) <= 4 else 90)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_title("by device group, mean as a line", fontsize=10)
    axes.grid(True, axis="y")


def _by_samples(axes: Axes, sets: list[tuple[np.ndarray, str]], train_samples: np.ndarray) -> None:
    order = np.argsort(train_samples, kind="stable")
    shown = order[evenly(order.size, _MOST_POINTS)]
    for values, color in sets:
        axes.plot(train_samples[shown], values[shown], "o", ms=4, color=color, alpha=0.6, mew=0)
    if train_samples.min() > 0 and train_samples.max() > 30 * train_samples.min():
        axes.set_xscale("log")
    some = "" if shown.size == order.size else f" ({shown.size} of {order.size})"
    axes.set_xlabel("training samples of the client")
    axes.set_title(f"by data size{some}", fontsize=10)
    axes.grid(True)
