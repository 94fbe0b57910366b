"""Captions of the figures: how to read them, and what they show about these runs."""

from collections.abc import Sequence

import numpy as np

from fedjax_het.report.clients import ClientValues
from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.plots import Runs
from fedjax_het.report.records import RunRecord
from fedjax_het.report.results import MethodResult
from fedjax_het.report.tasks import (
    group_devices,
    mean_by_group,
    skipped_share,
    tasks_of,
)
from fedjax_het.report.units import percent, quantity
from fedjax_het.report.verdict import cheapest


def over_time(runs: Runs, targets: Sequence[float]) -> str:
    """How to read the target metric against virtual time."""
    seeds = max(len(group) for group in runs.values())
    metric = next(iter(runs.values()))[0].metric
    text = "Further left is sooner"
    text += ". " if metric.higher_is_better else f", a lower {metric.label} is better. "
    if seeds > 1:
        text += (
            "Lines are means over the seeds and bands reach from the lowest to the highest of "
            "them; a thin line follows the seeds that ran on after the first had ended. "
        )
    if targets:
        goals = ", ".join(map(metric.short, targets))
        text += (
            f"Dashed: the target{'s' if len(targets) > 1 else ''} ({goals}); the mark on it is "
            "the first evaluation there"
            + (", averaged over the seeds and drawn only if all got there." if seeds > 1 else ".")
        )
    return text.strip()


def other_axes(metric: MetricInfo) -> str:
    """Which questions the three smaller plots of the target metric answer."""
    what = "accuracies" if metric.name == "accuracy" else "values"
    return (
        f"The same {what} against server steps (is a step worth less?), against what the "
        "devices sent (is speed paid for in communication?) and against the wall time of the "
        "simulation itself (which says nothing about the devices)."
    )


def costs(results: Sequence[MethodResult]) -> str:
    """How to read the costs of the targets, and which method reached each at the least cost."""
    text = (
        "What each method spent until it reached a target, less is better; a cross: not every seed "
        "reached it. Traffic is what the devices sent."
    )
    said = [cheapest(results, i) for i in range(len(results[0].targets))]
    return " ".join([text, *filter(None, said)])


def energy_by_group(results: Sequence[MethodResult]) -> str:
    """What the bars count."""
    spent = ", ".join(f"{r.name} {quantity(r.totals['joules'], 'J')}" for r in results)
    return (
        "Energy of computation, transfers and waiting for the merge, by device group, fast groups "
        f"on the left; dropped tasks included. Whole runs: {spent}."
    )


def clients(record: RunRecord, of: ClientValues, name: str) -> str:
    """What the plot of the clients shows, and of which samples its values are."""
    metric = record.metric
    text = (
        f"{name}, seed {record.summary['seed']}: test {metric.label} of each of {of.values.size} "
        f"clients at server step {of.step}, on average {metric.text(float(of.values.mean()))}; in "
        f"the worst tenth of them {metric.text(metric.worst_decile(of.values))}. "
    )
    trained = np.isfinite(of.personal)
    if trained.any():
        before, after = of.values[trained], of.personal[trained]
        better = after > before if metric.higher_is_better else after < before
        text += (
            f"After their local training the clients' own models are at "
            f"{metric.text(float(after.mean()))} on average, better than the server's for "
            f"{better.sum()} of {trained.sum()}. "
        )
    text += "Below: by device group, fast groups on the left, and by number of training samples."
    made_up = int((~of.own).sum())
    if made_up:
        who = f"{made_up} of the clients have no test samples of their own"
        if made_up == of.own.size:
            who = "No client has test samples of its own"
        text += (
            f" {who}: the value is made of the whole test set's accuracies per class, weighted "
            "with the client's label shares, so it shows the mix of classes and nothing else about "
            "the client's data."
        )
    return text


def timeline(record: RunRecord, name: str) -> str:
    """How to read the time line, how long devices waited, and which tasks were the longest."""
    tasks = tasks_of(record)
    total_s = float((tasks.busy_s + tasks.waiting_s).sum())
    waited = float(tasks.waiting_s.sum()) / total_s if total_s > 0 else 0.0
    text = (
        f"{name}, seed {record.summary['seed']}: each row is a device, fast groups on top; hatched "
        "is idle until the server merges (vertical lines). "
        f"In the whole run the devices at work spent {percent(waited, 0)} of their time waiting, "
        f"{quantity(float(tasks.waiting_s.mean()), 's')} per task on average."
    )
    groups = group_devices([record], [tasks])
    key = groups.of_client[0][tasks.client]
    busy_s = mean_by_group(tasks.busy_s, key, len(groups.labels))
    if len(groups.labels) > 1 and np.isfinite(busy_s).sum() > 1:
        last = int(np.nanargmax(busy_s))
        text += (
            f" The longest tasks are those of {groups.names[last]}: "
            f"{quantity(float(busy_s[last]), 's')} on average."
        )
    dropped = record.summary["dropped"] / max(record.summary["tasks"], 1)
    if dropped:
        text += f" {percent(dropped, 1)} of the tasks were dropped: time spent for nothing."
    return text


def trained_blocks(runs: Runs) -> str:
    """How to read the heat map, and how much work the sub-models saved."""
    text = (
        "Share of each group's tasks that brought the server an update of the block; fast groups "
        "on the left. Where a cell is pale, the model hardly learns that block from those devices."
    )
    for name, group in runs.items():
        skipped = float(np.mean([skipped_share(tasks_of(run)) for run in group]))
        dropped = sum(run.summary["dropped"] for run in group)
        if skipped >= 0.005:
            text += (
                f" Against training its largest sub-model on every device, {name} skipped "
                f"{percent(skipped, 0)} of the work."
            )
        elif dropped:
            text += f" {name} cut no work, only tasks."
        else:
            text += f" {name} gave every device the same work per sample."
    return text


def cuts(name: str) -> str:
    """How to read the plot of the cuts over time."""
    return (
        f"{name}: where the network was cut, client by client, fast devices on top. The deeper the "
        "last block on the client, the less is left to the server. White: no task in that step."
    )


def waiting(runs: Runs) -> str:
    """How to read the bars, and which share of the devices' time each method lost by waiting."""
    shares = []
    for name, group in runs.items():
        every = [tasks_of(run) for run in group]
        waited = sum(float(t.waiting_s.sum()) for t in every)
        total = waited + sum(float(t.busy_s.sum()) for t in every)
        shares.append(f"{name} {percent(waited / total if total > 0 else 0.0, 0)}")
    return (
        "Solid is work (download, computation, upload), hatched is waiting for the merge. "
        f"Share of the devices' time lost waiting: {', '.join(shares)}."
    )


def labels() -> str:
    """How to read the label heat map."""
    return (
        "Darker is more samples. Columns that differ mean that devices hold different classes, "
        "so leaving slow devices out would lose what only they know."
    )


def fleet_and_data(record: RunRecord) -> list[tuple[str, str]]:
    """The fleet, the data and the model of a run, as pairs of a name and a description."""
    tasks = tasks_of(record)
    groups = group_devices([record], [tasks])
    sizes = record.population.sizes
    pairs = [
        (
            "Devices",
            f"{len(sizes)}: "
            + "; ".join(
                f"{n} in {label.replace(chr(10), ', ')}"
                for n, label in zip(groups.sizes, groups.labels)
            ),
        )
    ]
    low, middle, high = np.percentile(sizes, [0, 50, 100])
    text = (
        f"{record.summary['data']['name']}: {sizes.sum():,} training samples; per device {low:.0f} "
        f"to {high:.0f}, median {middle:.0f}"
    )
    names = record.summary["block_names"]
    pairs += [("Data", text), ("Model", f"{len(names)} blocks: {', '.join(names)}")]
    return pairs
