"""One HTML page for a run or a comparison; it contains its figures and loads no other file."""

import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fedjax_het.common.writing import encoded, write_atomic
from fedjax_het.report import captions
from fedjax_het.report.client_plots import metric_by_client
from fedjax_het.report.clients import client_values
from fedjax_het.report.cut_plots import cuts_over_time
from fedjax_het.report.device_plots import timeline, trained_blocks, waiting_by_group, window_s
from fedjax_het.report.energy_plots import cost_of_targets, energy_by_group
from fedjax_het.report.plots import (
    Runs,
    labels_by_client,
    metric_vs_bytes_up,
    metric_vs_joules,
    metric_vs_round,
    metric_vs_time,
    metric_vs_wall_time,
    worst_clients_vs_time,
)
from fedjax_het.report.records import RunRecord
from fedjax_het.report.results import MethodResult, summarise
from fedjax_het.report.style import inline_svg
from fedjax_het.report.tables import table_notes, table_rows
from fedjax_het.report.verdict import headline, run_headline

_CSS = """
:root{color-scheme:only light}
*{box-sizing:border-box}
body{margin:0;background:#f6f6f4;color:#1c1c1c;
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1{font-size:1rem;font-weight:600;color:#555;margin:0 0 .6rem}
h2{font-size:1.2rem;margin:2.4rem 0 .7rem}
.lead{font-size:1.35rem;line-height:1.4;margin:0 0 1.2rem;max-width:50rem}
.wide{overflow-x:auto;background:#fff;border:1px solid #ddd;border-radius:8px}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.38rem .9rem;text-align:right;white-space:nowrap;border-top:1px solid #eee}
tr:first-child>*{border-top:0}
th:first-child{text-align:left;position:sticky;left:0;background:#fff}
thead th{border-bottom:2px solid #ccc}
tbody th{font-weight:400}
tbody th.part{padding-left:2rem;color:#555}
.notes{font-size:.85rem;color:#555;margin:.5rem 0 0}
figure{margin:0 0 1.4rem;background:#fff;border:1px solid #ddd;border-radius:8px;padding:.9rem}
figure .plot{overflow-x:auto}
svg{display:block;width:100%;min-width:22rem;height:auto;margin:0 auto}
figcaption{font-size:.92rem;color:#333;margin-top:.5rem;max-width:52rem}
.grid{display:grid;gap:0 1.2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,29rem),1fr))}
dl{margin:0 0 1rem;display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.2rem}
dt{color:#555}dd{margin:0;overflow-wrap:anywhere}
details{background:#fff;border:1px solid #ddd;border-radius:8px;padding:.6rem .9rem;margin:.5rem 0}
summary{cursor:pointer}
pre{overflow-x:auto;font-size:.82rem;line-height:1.4;margin:.6rem 0 0}
@media(max-width:600px){main{padding:1rem .7rem 3rem}.lead{font-size:1.15rem}
 figure{padding:.4rem}figcaption{padding:0 .3rem}
 dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}
 table{font-size:.8rem}th,td{padding:.35rem .4rem;white-space:normal;min-width:5.6rem}
 tbody th.part{padding-left:1rem}}
"""


def run_page(record: RunRecord) -> str:
    """The page of one run, with the targets of its summary.

    Raises:
      InputError: for a target that is no value of the metric, as an accuracy outside (0, 1].
    """
    name = str(record.summary["name"])
    runs = {name: [record]}
    results = summarise(runs, [t[record.metric.name] for t in record.summary["targets"]])
    title = f"{name}: {record.summary['algorithm']} on {record.summary['data']['name']}"
    return _page(title, run_headline(record, _goals(results)), runs, results)


def comparison_page(runs: Runs, targets: Sequence[float]) -> str:
    """The page of several methods over their seeds; the first method is the reference.

    Args:
      runs: runs of each method, one per seed, on the same data and fleet.
      targets: values of the target metric; of an accuracy shares in (0, 1].

    Raises:
      InputError: for input that `results.summarise` refuses.
    """
    results = summarise(runs, targets)
    first = next(iter(runs.values()))[0]
    title = f"{', '.join(runs)} on {first.summary['data']['name']}"
    return _page(title, headline(results), runs, results)


def write_report(record: RunRecord, path: str | os.PathLike[str]) -> None:
    """Writes `run_page` to `path`, atomically; see `write_atomic`."""
    write_atomic(Path(path), encoded(run_page(record)))


def _goals(results: Sequence[MethodResult]) -> tuple[float, ...]:
    return tuple(target.goal for target in results[0].targets)


def _page(title: str, lead: str, runs: Runs, results: Sequence[MethodResult]) -> str:
    first, targets = next(iter(runs.values()))[0], _goals(results)
    metric = first.metric
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{_prose(lead)}</p>',
        _table(results),
        f"<h2>{escape(metric.title)}</h2>",
        _figure(metric_vs_time(runs, targets), "time", captions.over_time(runs, targets)),
        f"<p>{_prose(captions.other_axes(metric))}</p>",
        '<div class="grid">',
        _figure(metric_vs_round(runs, targets), "round", f"{metric.title} against server steps."),
        _figure(
            metric_vs_bytes_up(runs, targets),
            "bytes",
            f"{metric.title} against what the devices sent.",
        ),
        _figure(metric_vs_wall_time(runs, targets), "wall", f"{metric.title} against wall time."),
        *_worst_clients(runs),
        "</div>",
        *_energy(runs, results),
        *_clients(runs),
        "<h2>Why: where the devices' time went</h2>",
        *_timelines(runs),
        _figure(waiting_by_group(runs), "waiting", captions.waiting(runs)),
        "<h2>Why: who trained which part of the model</h2>",
        _figure(trained_blocks(runs), "blocks", captions.trained_blocks(runs)),
        *_cuts(runs),
        "<h2>Fleet, data and model</h2>",
        _pairs(captions.fleet_and_data(first)),
    ]
    if first.population.label_counts is not None:
        body.append(_figure(labels_by_client(first), "labels", captions.labels()))
    body += ["<h2>How it was run</h2>", _pairs(_provenance(runs)), *_configurations(runs)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="only light">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


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
        f'<div class="wide"><table><thead><tr><th scope="col"></th>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f'\n</tbody></table></div>\n<p class="notes">{notes}</p>'
    )


def _figure(figure: Figure, prefix: str, caption: str) -> str:
    svg = inline_svg(figure, prefix, escape(caption, quote=True))
    text = f"<figcaption>{_prose(caption)}</figcaption>"
    return f'<figure><div class="plot">{svg}</div>\n{text}</figure>'


def _worst_clients(runs: Runs) -> list[str]:
    figure = worst_clients_vs_time(runs)
    if figure is None:
        return []
    title = next(iter(runs.values()))[0].metric.title
    return [_figure(figure, "worst", f"{title} of the worst-served tenth of the clients.")]


def _energy(runs: Runs, results: Sequence[MethodResult]) -> list[str]:
    """Figures of the energy, if the fleet prices it."""
    if not results[0].priced:
        return []
    targets, title = _goals(results), results[0].metric.title
    costs = [_figure(cost_of_targets(results), "costs", captions.costs(results))] if targets else []
    against = f"{title} against the energy that all devices spent."
    return [
        "<h2>Energy of the devices</h2>",
        *costs,
        '<div class="grid">',
        _figure(metric_vs_joules(runs, targets), "joules", against),
        _figure(energy_by_group(runs), "spenders", captions.energy_by_group(results)),
        "</div>",
    ]


def _clients(runs: Runs) -> list[str]:
    """Figures of the clients of the first seed of each method that evaluated them one by one."""
    drawn = [
        _figure(metric_by_client(record, of), f"clients{i}", captions.clients(record, of, name))
        for i, (name, (record, *_)) in enumerate(runs.items())
        if (of := client_values(record)) is not None
    ]
    return ["<h2>Client by client</h2>", *drawn] if drawn else []


def _cuts(runs: Runs) -> list[str]:
    """Figures of the cuts in the first seed of each method that splits the network."""
    drawn = [(name, cuts_over_time(group[0])) for name, group in runs.items()]
    return [
        _figure(figure, f"cuts{i}", captions.cuts(name))
        for i, (name, figure) in enumerate(drawn)
        if figure is not None
    ]


def _timelines(runs: Runs) -> list[str]:
    """Time lines of the first seed of each method, on one time scale."""
    firsts = {name: group[0] for name, group in runs.items()}
    until_s = window_s(list(firsts.values()))
    most = 40 if len(runs) <= 2 else 20
    return [
        _figure(timeline(record, until_s, most), f"timeline{i}", captions.timeline(record, name))
        for i, (name, record) in enumerate(firsts.items())
    ]


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
