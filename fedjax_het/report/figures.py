"""All figures of a run or a comparison, in the order of the page, with their captions.

The page shows them, a comparison writes them as PNG, and `export` as SVG and PDF for papers.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from fedjax_het.common.writing import make_directory, usable_path, write_atomic
from fedjax_het.report import captions, plots
from fedjax_het.report.client_plots import metric_by_client
from fedjax_het.report.clients import client_values
from fedjax_het.report.cut_plots import cuts_of, cuts_over_time
from fedjax_het.report.device_plots import timeline, trained_blocks, waiting_by_group, window_s
from fedjax_het.report.energy_plots import cost_of_targets, energy_by_group
from fedjax_het.report.plots import Runs
from fedjax_het.report.results import MethodResult
from fedjax_het.report.style import pdf, svg


class Drawing(NamedTuple):
    """A figure of a page.

    Attributes:
      key: prefix of its ids in the page.
      name: name of its file, without the ending.
      caption: how to read it, and what it shows.
      draw: draws it; every call gives a new figure with the same content.
    """

    key: str
    name: str
    caption: str
    draw: Callable[[], Figure]


class Figures(NamedTuple):
    """The figures of a page by section; a section without figures is left out of the page.

    Attributes:
      over_time: the target metric against virtual time.
      axes: the metric against the other axes.
      costs: what the targets cost, if the fleet prices energy.
      energy: energy of the devices.
      clients: the metric client by client.
      times: where the devices' time went.
      parts: who trained which part of the model.
      data: who holds which labels.
    """

    over_time: list[Drawing]
    axes: list[Drawing]
    costs: list[Drawing]
    energy: list[Drawing]
    clients: list[Drawing]
    times: list[Drawing]
    parts: list[Drawing]
    data: list[Drawing]


def figures(runs: Runs, results: Sequence[MethodResult]) -> Figures:
    """The figures of methods over their seeds.

    Args:
      runs: runs of each method, one per seed.
      results: their results, of `results.summarise`.
    """
    first, goals = next(iter(runs.values()))[0], [target.goal for target in results[0].targets]
    metric = first.metric
    own, title = re.sub(r"\W", "_", metric.name), metric.title
    priced, with_goals = results[0].priced, (runs, goals)
    axes = [
        Drawing(
            "round",
            f"{own}_vs_round",
            f"{title} against server steps.",
            partial(plots.metric_vs_round, *with_goals),
        ),
        Drawing(
            "bytes",
            f"{own}_vs_bytes_up",
            f"{title} against what the devices sent.",
            partial(plots.metric_vs_bytes_up, *with_goals),
        ),
        Drawing(
            "wall",
            f"{own}_vs_wall_time",
            f"{title} against wall time.",
            partial(plots.metric_vs_wall_time, *with_goals),
        ),
    ]
    if plots.worst_clients_vs_time(runs) is not None:
        text = f"{title} of the worst-served tenth of the clients."
        axes.append(Drawing("worst", "worst_clients_vs_time", text, partial(_worst, runs)))
    return Figures(
        over_time=[
            Drawing(
                "time",
                f"{own}_vs_time",
                captions.over_time(runs, goals),
                partial(plots.metric_vs_time, *with_goals),
            )
        ],
        axes=axes,
        costs=[
            Drawing(
                "costs",
                "cost_of_targets",
                captions.costs(results),
                partial(cost_of_targets, results),
            )
        ]
        if priced and goals
        else [],
        energy=_energy(runs, results, goals, own) if priced else [],
        clients=[
            Drawing(
                f"clients{i}",
                f"clients_{i}",
                captions.clients(record, of, name),
                partial(metric_by_client, record, of),
            )
            for i, (name, (record, *_)) in enumerate(runs.items())
            if (of := client_values(record)) is not None
        ],
        times=_times(runs),
        parts=_parts(runs),
        data=[Drawing("labels", "labels_by_client", captions.labels(), partial(_labels, runs))]
        if first.population.label_counts is not None
        else [],
    )


def export(runs: Runs, results: Sequence[MethodResult], directory: str | Path) -> list[Path]:
    """Writes every figure as SVG and as PDF; equal runs give identical files.

    Args:
      runs: runs of each method, one per seed.
      results: their results, of `results.summarise`.
      directory: directory of the files, made if it does not exist.

    Returns:
      The paths of the files.

    Raises:
      InputError: if the directory cannot be made or written to.
    """
    out = usable_path(directory, "figures")
    make_directory(out, f"figures = {str(directory)!r}")
    written = []
    for drawing in (each for section in figures(runs, results) for each in section):
        # The page's figure is the first rendering of a new one, too.
        for ending, content in (
            ("svg", svg(drawing.draw(), drawing.key)),
            ("pdf", pdf(drawing.draw())),
        ):
            written.append(out / f"{drawing.name}.{ending}")
            write_atomic(written[-1], content)
    return written


def _worst(runs: Runs) -> Figure:
    figure = plots.worst_clients_vs_time(runs)
    assert figure is not None
    return figure


def _labels(runs: Runs) -> Figure:
    return plots.labels_by_client(next(iter(runs.values()))[0])


def _energy(
    runs: Runs, results: Sequence[MethodResult], goals: Sequence[float], own: str
) -> list[Drawing]:
    text = f"{results[0].metric.title} against the energy that all devices spent."
    return [
        Drawing("joules", f"{own}_vs_joules", text, partial(plots.metric_vs_joules, runs, goals)),
        Drawing(
            "spenders",
            "energy_by_group",
            captions.energy_by_group(results),
            partial(energy_by_group, runs),
        ),
    ]


def _times(runs: Runs) -> list[Drawing]:
    """Time lines of the first seed of each method, on one time scale, and the waiting."""
    firsts = {name: group[0] for name, group in runs.items()}
    until_s = window_s(list(firsts.values()))
    most = 40 if len(runs) <= 2 else 20
    lines = [
        Drawing(
            f"timeline{i}",
            f"timeline_{i}",
            captions.timeline(record, name),
            partial(timeline, record, until_s, most),
        )
        for i, (name, record) in enumerate(firsts.items())
    ]
    waited = partial(waiting_by_group, runs)
    return [*lines, Drawing("waiting", "waiting_by_group", captions.waiting(runs), waited)]


def _parts(runs: Runs) -> list[Drawing]:
    """Blocks that were trained, and the cuts of the first seed of each method that splits."""

    def cuts(name: str) -> Figure:
        figure = cuts_over_time(runs[name][0])
        assert figure is not None
        return figure

    blocks = partial(trained_blocks, runs)
    return [
        Drawing("blocks", "trained_blocks", captions.trained_blocks(runs), blocks),
        *(
            Drawing(f"cuts{i}", f"cuts_{i}", captions.cuts(name), partial(cuts, name))
            for i, name in enumerate(runs)
            if cuts_of(runs[name][0]) is not None
        ),
    ]
