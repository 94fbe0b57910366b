"""Output of a preview, of any method, as text for a terminal, as a figure and as JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedjax_het.contract.preview import Column, Preview
from fedjax_het.report.style import PALETTE, method_style, styled

_MOST_ROUNDS = 12


def text(preview: Preview) -> str:
    """The preview for a terminal: the summary, some rounds, and all clients."""
    facts = ", ".join(f"{name} = {_number(value, 6)}" for name, value in preview.summary.items())
    parts = [f"{preview.method}: {facts}"]
    for name, start, columns, most in (
        ("round", 1, preview.by_round, _MOST_ROUNDS),
        ("client", 0, preview.by_client, None),
    ):
        if columns:
            parts.append(_table(name, start, columns, most))
    return "\n\n".join(parts)


def data(preview: Preview) -> dict[str, Any]:
    """The content of `plan.json`: all numbers by name, with all rounds and clients."""
    whole = preview._asdict()
    for part in ("by_round", "by_client"):
        whole[part] = {name: column._asdict() for name, column in whole[part].items()}
    return whole


@styled
def figure(preview: Preview) -> Figure:
    """A panel per column: by round above; by client, against their first column, below."""
    rounds, clients = list(preview.by_round.values()), list(preview.by_client.values())
    if len(clients) == 1:
        clients.insert(0, Column("client", np.arange(len(clients[0].values))))
    rows = [row for row in (rounds, clients[1:]) if row]
    most = max(map(len, rows))
    drawn = Figure(figsize=(3.6 * most, 3.2 * len(rows)))
    for strip, row in zip(drawn.subfigures(len(rows), 1, squeeze=False)[:, 0], rows):
        for axes, column in zip(strip.subplots(1, len(row), squeeze=False)[0], row):
            if row is rounds:
                _over_rounds(axes, column)
            else:
                _over_clients(axes, clients[0], column)
    return drawn


def _over_rounds(axes: Axes, column: Column) -> None:
    t = np.arange(1, len(column.values) + 1)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if column.values.ndim == 1:
        axes.plot(t, column.values, lw=2, color=PALETTE[0])
    elif not column.entries:
        low, middle, high = _spread(column.values)
        axes.fill_between(t, low, high, color=PALETTE[0], alpha=0.25, lw=0, label="all")
        axes.plot(t, middle, lw=2, color=PALETTE[0], label="median")
        _legend(axes)
    else:
        edges = [np.arange(size + 1) + 0.5 for size in column.values.shape]
        mesh = axes.pcolormesh(*edges, column.values.T, cmap="Blues")
        axes.set_yticks(np.arange(len(column.entries)) + 1, column.entries)
        axes.figure.colorbar(mesh, ax=axes, label=column.label)
        return
    axes.set_ylabel(column.label)
    axes.grid(True)


def _over_clients(axes: Axes, against: Column, column: Column) -> None:
    axes.set_xlabel(against.label)
    axes.set_ylabel(column.label)
    axes.grid(True)
    values, names = column.values, column.entries
    if values.ndim == 1:
        values, names = values[:, None], [""]
    elif not names:
        values, names = _spread(values).T, ["least", "median", "largest"]
    # If there are several entries, only the first and the last are drawn.
    for i, entry in enumerate(sorted({0, len(names) - 1})):
        look: dict[str, Any] = {**method_style(i), "linestyle": ""}
        axes.plot(against.values, values[:, entry], ms=5, label=names[entry], **look)
    if len(names) > 1:
        _legend(axes)


def _legend(axes: Axes) -> None:
    """Adds a legend above the panel, where it covers no data."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _spread(values: np.ndarray) -> np.ndarray:
    """Least, median and largest value of every row, float64[3, rows]."""
    return np.stack([values.min(axis=1), np.median(values, axis=1), values.max(axis=1)])


def _table(name: str, start: int, columns: Mapping[str, Column], most: int | None) -> str:
    """The columns side by side, aligned; at most `most` rows, evenly chosen."""
    rows = len(next(iter(columns.values())).values)
    few = rows if most is None else min(rows, most)
    picked = np.unique(np.linspace(0, rows - 1, few).round().astype(int))
    cells = [[name, *(str(start + row) for row in picked)]]
    cells += [_cells(column, picked) for column in columns.values()]
    widths = [max(map(len, column)) for column in cells]
    lines = zip(*cells, strict=True)
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths)).rstrip() for line in lines
    )


def _cells(column: Column, picked: np.ndarray) -> list[str]:
    """The heading of a column and its text in these rows."""
    if column.values.ndim == 1:
        return [column.label, *(_number(value, 5) for value in column.values[picked])]
    if column.entries:
        shown, names = column.values[picked], list(column.entries)
    else:
        shown, names = _spread(column.values[picked]).T, ["least", "median", "largest"]
    heading = " ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]}"
    texts = [[_number(value, 3) for value in row] for row in shown]
    width = max(len(text) for row in texts for text in row)
    return [
        f"{column.label}: {heading}",
        *(" ".join(text.rjust(width) for text in row) for row in texts),
    ]


def _number(value: Any, digits: int) -> str:
    """Text of a number: whole numbers in full, others with `digits` significant digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:.{digits}g}"
