"""Tables of the results of several methods, as rows, text and JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_het.report.optimisers import training_notes
from fedjax_het.report.results import TARGET_COLUMNS, MethodResult
from fedjax_het.report.submodels import submodel_rows
from fedjax_het.report.units import Spread, percent, quantity, smallest, spread_data, times

_COLUMNS_PER_BLOCK = 4


def table_rows(results: Sequence[MethodResult]) -> list[tuple[str, list[str]]]:
    """The rows of the comparison table: a label and one text cell per method."""
    metric = results[0].metric
    rows = [("seeds", [", ".join(map(str, r.seeds)) for r in results])]
    for i in range(len(results[0].targets)):
        rows += target_rows(results, i)
    rows += [
        (f"final {metric.label}", [metric.text(r.final) for r in results]),
        (f"best {metric.label}", [metric.text(r.best) for r in results]),
        (f"worst-decile client {metric.label}", [metric.text(r.worst_decile) for r in results]),
        *_client_rows(results),
        *submodel_rows(metric, [r.submodels for r in results], [r.local for r in results]),
        ("tasks dropped", [percent(r.dropped_share, 1) for r in results]),
    ]
    if any(r.failed_share is not None and r.failed_share.mean > 0 for r in results):
        rows.append(("tasks failed", [percent(r.failed_share, 1) for r in results]))
    if any(r.wasted_bytes_share is not None and r.wasted_bytes_share.mean > 0 for r in results):
        rows += [
            ("wasted device work", [percent(r.wasted_flops_share, 1) for r in results]),
            ("wasted traffic", [percent(r.wasted_bytes_share, 1) for r in results]),
        ]
    if any(r.nonfinite for r in results):
        rows.append(("updates left out, not finite", [str(r.nonfinite) for r in results]))
    for label, key, kind in (
        ("whole run: virtual time", "virtual_s", "s"),
        ("  sent by devices", "bytes_up", "B"),
        ("  sent to devices", "bytes_down", "B"),
        ("  device work", "flops", "FLOP"),
        *([("  energy of devices", "joules", "J")] if results[0].priced else []),
        ("  wall time, without compiling", "wall_s", "s"),
        ("  compile time", "compile_s", "s"),
    ):
        rows.append((label, _quantities([r.totals[key] for r in results], kind)))
    return rows


def target_rows(results: Sequence[MethodResult], i: int) -> list[tuple[str, list[str]]]:
    """The rows of target i: when and at what cost each method reached it.

    `assets/numbers.js` makes the same rows in the page, for a target that the reader chooses.
    """
    metric, several = results[0].metric, len(results) > 1
    at = metric.target(results[0].targets[i].goal)
    like = smallest(r.targets[i].virtual_s for r in results)
    rows = [
        (f"virtual time to {at}", [r.targets[i].time_text(metric, like) for r in results]),
        *([(f"  speed-up over {results[0].name}", _speed_ups(results, i))] if several else []),
        ("  server steps", [_plain(r.targets[i].step) for r in results]),
        (
            "  sent by devices until then",
            _quantities([r.targets[i].bytes_up for r in results], "B"),
        ),
    ]
    if results[0].priced:
        energy = _quantities([r.targets[i].joules for r in results], "J")
        rows.append(("  energy of devices until then", energy))
    return rows


def _client_rows(results: Sequence[MethodResult]) -> list[tuple[str, list[str]]]:
    """The rows on the clients one by one; none if no method has them."""
    metric, found = results[0].metric, [r.clients for r in results]
    if not any(found):
        return []
    rows = [
        (
            f"mean client {metric.label}",
            ["-" if c is None else metric.text(c.mean) for c in found],
        ),
        (
            "  lowest to highest",
            [
                "-" if c is None else f"{metric.text(c.lowest)} to {metric.text(c.highest)}"
                for c in found
            ],
        ),
    ]
    if any(c is not None and c.personal for c in found):
        cells = ["-" if c is None else metric.text(c.personal) for c in found]
        rows.append(("  mean after local training", cells))
    return rows


def _quantities(values: Sequence[Spread | None], kind: str) -> list[str]:
    """The cells of a row, in one unit."""
    return [quantity(value, kind, smallest(values)) for value in values]


def _plain(value: Spread | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.0f}" if value.std is None else f"{value.mean:.1f} ± {value.std:.1f}"


def _speed_ups(results: Sequence[MethodResult], i: int) -> list[str]:
    cells = ["1 (reference)" if results[0].targets[i].virtual_s else "-"]
    for result in results[1:]:
        target = result.targets[i]
        some = "" if target.always and results[0].targets[i].always else " *"
        cells.append("-" if target.speed_up is None else times(target.speed_up) + some)
    return cells


def table_notes(results: Sequence[MethodResult]) -> list[str]:
    """Notes on the numbers of `table_rows`: what they mean and what they do not show."""
    beyond = "above" if results[0].metric.higher_is_better else "below"
    notes = [
        f"A target is reached at the first evaluation at or {beyond} it; nothing is interpolated."
    ]
    if any(len(r.seeds) > 1 for r in results):
        notes.append("± is the sample standard deviation over seeds.")
    if any(len(r.seeds) == 1 for r in results):
        notes.append("One seed shows no spread: small differences may be chance.")
    if len(results) > 1 and results[0].targets:
        notes.append("A speed-up is the ratio of the mean virtual times over the seeds.")
    if any(" *" in cell for _, cells in table_rows(results) for cell in cells):
        notes.append("* over the seeds that reached the target only, which flatters that method.")
    if len({tuple(sorted(r.seeds)) for r in results}) > 1:
        notes.append("The methods ran with different seeds.")
    return [*notes, *training_notes({r.name: r.training for r in results})]


def text_table(results: Sequence[MethodResult]) -> str:
    """The comparison as an aligned text table; at most four methods side by side."""
    rows = table_rows(results)
    width = max(len(label) for label, _ in rows)
    blocks = []
    for start in range(0, len(results), _COLUMNS_PER_BLOCK):
        part = slice(start, start + _COLUMNS_PER_BLOCK)
        table = [("", [r.name for r in results[part]])] + [(a, cells[part]) for a, cells in rows]
        widths = [max(len(cells[j]) for _, cells in table) for j in range(len(table[0][1]))]
        lines = [
            "  ".join([label.ljust(width), *(c.rjust(w) for c, w in zip(cells, widths))]).rstrip()
            for label, cells in table
        ]
        lines.insert(1, "-" * (width + sum(widths) + 2 * len(widths)))
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, "\n".join(table_notes(results))]) + "\n"


def _spreads(values: Mapping[str, Spread | None]) -> dict[str, dict[str, Any] | None]:
    return {name: spread_data(value) for name, value in values.items()}


def table_data(results: Sequence[MethodResult]) -> list[dict[str, Any]]:
    """The entries of `comparison.json`, one per method; spreads with all their values."""
    return [
        {
            "name": r.name,
            "seeds": r.seeds,
            "targets": [
                {
                    r.metric.name: t.goal,
                    "reached": t.reached,
                    "seeds": t.seeds,
                    "speed_up": t.speed_up,
                    **{
                        column: spread_data(getattr(t, column))
                        for column in TARGET_COLUMNS
                        if column != "joules" or r.priced
                    },
                }
                for t in r.targets
            ],
            f"final_{r.metric.name}": spread_data(r.final),
            f"best_{r.metric.name}": spread_data(r.best),
            f"worst_decile_{r.metric.name}": spread_data(r.worst_decile),
            "dropped_share": spread_data(r.dropped_share),
            "failed_share": spread_data(r.failed_share),
            "wasted_flops_share": spread_data(r.wasted_flops_share),
            "wasted_bytes_share": spread_data(r.wasted_bytes_share),
            "nonfinite": r.nonfinite,
            **{key: spread_data(value) for key, value in r.totals.items()},
            **({} if r.clients is None else {"clients": r.clients.data()}),
            **({} if r.local is None else {f"local_{r.metric.name}": spread_data(r.local)}),
            **({"submodels": _spreads(r.submodels)} if r.submodels else {}),
        }
        for r in results
    ]
