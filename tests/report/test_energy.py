"""Energy in tables, plots, captions and pages; records without it are as before."""

import json
import re

import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.report import RunRecord, compare, time_to
from fedjax_het.report.energy_plots import cost_of_targets, energy_by_group
from fedjax_het.report.plots import metric_vs_joules
from fedjax_het.report.results import summarise
from fedjax_het.report.tables import table_data, table_rows
from fedjax_het.report.units import quantity
from fedjax_het.report.verdict import cheapest, headline, run_headline


def test_energy_to_a_target_is_the_sum_of_the_steps_until_then(priced_methods):
    run = priced_methods["FedPMT"][0]
    step = int(time_to(run, 0.9, "step"))
    joules = sum(row["joules"] for row in run.clients if row["step"] <= step)
    assert time_to(run, 0.9, "joules") == pytest.approx(joules, rel=1e-12)
    results = summarise(priced_methods, [0.8, 0.9])
    spread = results[1].targets[1].joules
    assert spread.values[0] == pytest.approx(joules, rel=1e-12)
    assert results[1].totals["joules"].values[0] == run.summary["joules"]
    assert results[2].targets[1].joules is None
    rows = dict(table_rows(results))
    assert rows["  energy of devices"][1] == quantity(results[1].totals["joules"], "J")
    assert rows["  energy of devices until then"][2] == "-"
    assert table_data(results)[1]["targets"][1]["joules"]["values"] == spread.values


def test_who_reached_a_target_on_the_least_of_what(priced_methods):
    results = summarise(priced_methods, [0.8, 0.9])
    said = cheapest(results, 1)
    least = results[1].targets[1]
    assert said == (
        f"90 % was reached on the least energy by FedPMT ({quantity(least.joules, 'J')}), on the "
        f"least traffic by FedPMT ({quantity(least.bytes_up, 'B')}) and in the least time by "
        f"FedPMT ({quantity(least.virtual_s, 's')})."
    )
    assert said in headline(results)
    same = dict.fromkeys(("A", "B"), priced_methods["FedAvg"])
    assert ", tied with B)" in cheapest(summarise(same, [0.9]), 0)
    assert cheapest(summarise(priced_methods, [0.999]), 0) == ""
    text = run_headline(priced_methods["FedAvg"][0], [0.9])
    energy = quantity(time_to(priced_methods["FedAvg"][0], 0.9, "joules"), "J")
    assert f"after {energy} of energy and " in text


def test_bars_are_the_costs(priced_methods):
    results = summarise(priced_methods, [0.8, 0.9])
    figure = cost_of_targets(results)
    energy, traffic, time_axes = figure.axes
    assert energy.get_ylabel() == "energy of devices (kJ)"
    assert [t.get_text() for t in energy.get_xticklabels()] == ["80 %", "90 %"]
    heights = [bar.get_height() for bar in traffic.patches]
    expected = [t.bytes_up.mean / 1e6 for r in results[:2] for t in r.targets]
    expected.append(results[2].targets[0].bytes_up.mean / 1e6)
    assert heights == pytest.approx(expected)
    crosses = [line for line in time_axes.lines if line.get_marker() == "x"]
    assert len(crosses) == 1  # FedAsync at 90 %
    (axes,) = energy_by_group(priced_methods).axes
    total = np.mean([run.summary["joules"] for run in priced_methods["FedAvg"]])
    assert sum(bar.get_height() for bar in axes.patches[:3]) == pytest.approx(total / 1e3)
    (axes,) = metric_vs_joules(priced_methods, [0.9]).axes
    assert axes.get_xlabel() == "energy of all devices (kJ)"


def test_a_comparison_shows_energy_where_it_is_priced(priced_methods, make_run, tmp_path):
    names = {"accuracy_vs_joules.png", "energy_by_group.png", "cost_of_targets.png"}
    one = {name: runs[:1] for name, runs in priced_methods.items() if name != "FedAsync"}
    compare(one, [0.9], tmp_path / "priced")
    assert names <= {path.name for path in (tmp_path / "priced").iterdir()}
    page = (tmp_path / "priced" / "report.html").read_text()
    assert "Energy of the devices" in page
    assert "on the least energy by FedPMT" in page
    compare({"FedAvg": make_run(steps=3)}, [0.9], tmp_path / "plain")
    assert not names & {path.name for path in (tmp_path / "plain").iterdir()}
    for name in ("report.html", "comparison.txt", "comparison.json"):
        text = (tmp_path / "plain" / name).read_text().lower()
        # What a reader's browser can show is in the code of every page.
        text = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
        assert "joules" not in text
        assert "energy" not in text


def test_runs_with_and_without_energy_are_not_compared(make_run):
    runs = {"FedAvg": [make_run(joules=True)], "FedPMT": [make_run("FedPMT")]}
    with pytest.raises(InputError, match="energy of tasks is 'not recorded' but 'recorded'"):
        summarise(runs, [0.9])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, c, s: c[3].update(joules=-1.0), "joules = -1.0 must be a number >= 0"),
        (lambda m, c, s: c[3].update(joules=None), "joules = None must be a number >= 0"),
        (lambda m, c, s: m[2].update(joules="12"), "joules = '12' must be a number >= 0"),
        (lambda m, c, s: s.update(joules=1.0), "joules = 1: the steps of metrics.jsonl add up"),
        (lambda m, c, s: s.update(joules_by_group=[-1.0]), "joules_by_group holds .* a list"),
    ],
)
def test_bad_energy_in_a_record_is_refused(make_run, change, message):
    run = make_run(joules=True, steps=2)
    parts = json.loads(json.dumps([run.metrics, run.clients, run.summary]))
    change(*parts)
    with pytest.raises(InputError, match=message):
        RunRecord(run.config, *parts, run.population)
