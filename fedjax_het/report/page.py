"""One HTML page for a run or a comparison; it contains all it needs and loads no other file.

Without JavaScript it is text, tables and figures. Its scripts (`assets/`) add a chart with the axis
of the reader's choice, a target of one's own, tables that sort, and a look at single clients.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fedjax_het.common.writing import encoded, write_atomic
from fedjax_het.report import captions, embedding
from fedjax_het.report.explorer import page_data
from fedjax_het.report.figures import Drawing, figures
from fedjax_het.report.plots import Runs
from fedjax_het.report.records import RunRecord
from fedjax_het.report.results import MethodResult, summarise
from fedjax_het.report.style import inline_svg
from fedjax_het.report.tables import table_notes, table_rows
from fedjax_het.report.verdict import headline, run_headline


@dataclass(frozen=True)
class Content:
    """What a page is made of.

    Attributes:
      title: title of the page.
      lead: what came out, in a sentence or a few.
      runs: runs of each method, one per seed; the first method is the reference.
      results: their results.
    """

    title: str
    lead: str
    runs: Runs
    results: Sequence[MethodResult]


def run_content(record: RunRecord) -> Content:
    """The content of the page of one run, with the targets of its summary.

    Raises:
      InputError: for a target that is no value of the metric, as an accuracy outside (0, 1].
    """
    name = str(record.summary["name"])
    runs = {name: [record]}
    results = summarise(runs, [t[record.metric.name] for t in record.summary["targets"]])
    title = f"{name}: {record.summary['algorithm']} on {record.summary['data']['name']}"
    goals = [target.goal for target in results[0].targets]
    return Content(title, run_headline(record, goals), runs, results)


def comparison_content(runs: Runs, targets: Sequence[float]) -> Content:
    """The content of the page of several methods over their seeds; the first is the reference.

    Args:
      runs: runs of each method, one per seed, on the same data and fleet.
      targets: values of the target metric; of an accuracy shares in (0, 1].

    Raises:
      InputError: for input that `results.summarise` refuses.
    """
    results = summarise(runs, targets)
    first = next(iter(runs.values()))[0]
    title = f"{', '.join(runs)} on {first.summary['data']['name']}"
    return Content(title, headline(results), runs, results)


def run_page(record: RunRecord) -> str:
    """The page of one run; see `run_content`."""
    return page(run_content(record))


def comparison_page(runs: Runs, targets: Sequence[float]) -> str:
    """The page of several methods over their seeds; see `comparison_content`."""
    return page(comparison_content(runs, targets))


def write_report(record: RunRecord, path: str | os.PathLike[str]) -> None:
    """Writes `run_page` to `path`, atomically; see `write_atomic`."""
    write_atomic(Path(path), encoded(run_page(record)))


def page(content: Content) -> str:
    """The page of a content."""
    data = page_data(content.runs, content.results)
    return document(content.title, body(content), data, live=False)


def document(title: str, body: str, data: Any, live: bool) -> str:
    """A complete HTML document.

    Args:
      title: title of the page.
      body: HTML of its content.
      data: what its scripts know, of JSON types.
      live: whether its scripts ask the server that it came from for news.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{embedding.policy(live)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="only light">\n'
        f"<title>{escape(title)}</title>\n{embedding.styles()}\n</head>\n<body>\n<main>\n"
        + body
        + f"\n</main>\n{embedding.scripts(data)}\n</body>\n</html>\n"
    )


def body(content: Content) -> str:
    """The HTML of a content; the scripts fill the sections that are hidden."""
    runs, results = content.runs, content.results
    first = next(iter(runs.values()))[0]
    metric, drawn = first.metric, figures(runs, results)
    parts = [
        f"<h1>{escape(content.title)}</h1>",
        f'<p class="lead">{_prose(content.lead)}</p>',
        '<section id="explore" aria-label="Chart and choices" hidden></section>',
        _table(results),
        '<details id="curves" open><summary>Figures of the curves, for papers</summary>',
        f"<h2>{escape(metric.title)}</h2>",
        *map(_figure, drawn.over_time),
        f"<p>{_prose(captions.other_axes(metric))}</p>",
        *_grid(drawn.axes),
        "</details>",
        *_section("Energy of the devices", drawn.costs, drawn.energy),
        '<section id="clients" aria-labelledby="clients-title" hidden></section>',
        *_section("Client by client", drawn.clients),
        *_section("Why: where the devices' time went", drawn.times),
        *_section("Why: who trained which part of the model", drawn.parts),
        "<h2>Fleet, data and model</h2>",
        _pairs(captions.fleet_and_data(first)),
        *map(_figure, drawn.data),
        "<h2>How it was run</h2>",
        _pairs(_provenance(runs)),
        *_configurations(runs),
        embedding.licence(),
    ]
    return "\n".join(parts)


def _section(title: str, large: Sequence[Drawing], small: Sequence[Drawing] = ()) -> list[str]:
    """A section of large figures and of small ones side by side; none without figures."""
    if not large and not small:
        return []
    return [f"<h2>{escape(title)}</h2>", *map(_figure, large), *(_grid(small) if small else [])]


def _grid(drawings: Sequence[Drawing]) -> list[str]:
    return ['<div class="grid">', *map(_figure, drawings), "</div>"]


def _prose(text: str) -> str:
    """Escaped text without line breaks inside a percentage or before a spread."""
    return escape(text).replace(" %", "&nbsp;%").replace(" ± ", "&nbsp;±&nbsp;")


def _table(results: Sequence[MethodResult]) -> str:
    head = "".join(f'<th scope="col">{escape(r.name)}</th>' for r in results)
    lines = []
    for label, cells in table_rows(results):
        part = ' class="part"' if label.startswith(" ") else ""
        data = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row"{part}>{escape(label.strip())}</th>{data}</tr>')
    notes = escape(" ".join(table_notes(results)))
    return (
        '<section id="results"><div class="wide"><table>'
        f'<thead><tr><th scope="col"></th>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f'\n</tbody></table></div>\n<p class="notes">{notes}</p></section>'
    )


def _figure(drawing: Drawing) -> str:
    svg = inline_svg(drawing.draw(), drawing.key, escape(drawing.caption, quote=True))
    text = f"<figcaption>{_prose(drawing.caption)}</figcaption>"
    return f'<figure><div class="plot">{svg}</div>\n{text}</figure>'


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)
    return f"<dl>{items}</dl>"


def _provenance(runs: Runs) -> list[tuple[str, str]]:
    """Device, revision and versions, each with all values that occur among the runs."""
    configs = [run.config for group in runs.values() for run in group]
    versions: dict[str, set[str]] = {}
    for config in configs:
        for name, version in (config.get("versions") or {}).items():
            versions.setdefault(name, set()).add(str(version))
    pairs = []
    for name, key in (("Machine", "device"), ("Revision", "git_revision")):
        values = sorted({str(c[key]) for c in configs if c.get(key) is not None})
        pairs.append((name, "; ".join(values) or "not recorded"))
    text = ", ".join(f"{name} {' and '.join(sorted(v))}" for name, v in sorted(versions.items()))
    return [*pairs, ("Versions", text or "not recorded")]


def _configurations(runs: Runs) -> list[str]:
    return [
        f"<details><summary>Configuration: {escape(name)}, seed {run.summary['seed']}</summary>"
        f"<pre>{escape(_pretty(run.config))}</pre></details>"
        for name, group in runs.items()
        for run in group
    ]


def _pretty(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False)
