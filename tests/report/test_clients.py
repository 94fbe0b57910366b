"""The metric client by client: its last evaluation, its figure and what the caption admits."""

from dataclasses import replace

import numpy as np
import pytest

from fedjax_het.report import captions
from fedjax_het.report.client_plots import metric_by_client
from fedjax_het.report.clients import client_summary, client_values
from fedjax_het.report.results import summarise
from fedjax_het.report.style import png
from fedjax_het.report.tables import table_data, table_rows


def with_rows(record, rows):
    return replace(record, client_evaluations=rows)


def values(record):
    of = client_values(record)
    assert of is not None
    return of


def test_the_last_evaluation_counts(two_regressions):
    record = two_regressions["FedAvg"][0]
    of = values(record)
    last = [row for row in record.client_evaluations if row["step"] == 20]
    assert len(record.client_evaluations) == 2 * len(last) == 24
    assert of.step == 20
    assert of.values.tolist() == [row["mae"] for row in last]
    assert of.personal.tolist() == [row["personal_mae"] for row in last]
    assert of.train_samples.tolist() == record.population.sizes.tolist()
    assert of.own.all()


def test_clients_without_a_value_are_left_out(make_run):
    record = make_run(steps=2, client_rows="own")
    rows = [{**r, "accuracy": None} if r["client"] == 3 else r for r in record.client_evaluations]
    assert 3 not in values(with_rows(record, rows)).client
    none = [{k: v for k, v in row.items() if k != "accuracy"} for row in rows]
    assert client_values(with_rows(record, none)) is None
    assert client_values(make_run(steps=2)) is None


def test_the_summary_is_over_clients_and_seeds(two_regressions, make_run):
    runs = two_regressions["FedAvg"]
    found = client_summary(runs)
    assert found is not None
    every = [[r["mae"] for r in run.client_evaluations if r["step"] == 20] for run in runs]
    assert found.mean.values == pytest.approx([np.mean(v) for v in every])
    assert (found.lowest, found.highest) == (np.min(every), np.max(every))
    assert found.personal is not None
    assert found.personal.mean == pytest.approx(0.9 * found.mean.mean)
    assert client_summary([make_run(steps=1)]) is None


def test_the_table_has_lines_for_it(two_regressions, make_run):
    rows = dict(table_rows(summarise(two_regressions, [3.0])))
    assert rows["mean client MAE"] == ["2.378 ± 0.056", "2.421 ± 0.057"]
    assert rows["  lowest to highest"][0] == "2.105 to 2.734"
    assert "  mean after local training" in rows
    assert table_data(summarise(two_regressions, []))[0]["clients"]["mean"]["std"] > 0
    mixed = {"A": [make_run(steps=2, client_rows="own")], "B": [make_run(steps=2)]}
    rows = dict(table_rows(summarise(mixed, [])))
    assert rows["mean client accuracy"][1] == rows["  lowest to highest"][1] == "-"
    assert "  mean after local training" not in rows
    assert "clients" not in table_data(summarise(mixed, []))[1]


def test_the_figure_marks_mean_and_worst_decile(two_regressions):
    record = two_regressions["FedAvg"][0]
    of = values(record)
    figure = metric_by_client(record, of)
    histogram, groups, samples = figure.axes
    assert histogram.get_xlabel() == groups.get_ylabel() == "test MAE"
    marks = [float(np.ravel(line.get_xdata())[0]) for line in histogram.lines]
    assert marks == [of.values.mean(), of.values.max()]  # the worst of 12 clients has the largest
    assert [t.get_text() for t in groups.get_xticklabels()] == ["group 0", "group 1", "group 2"]
    means = [line.get_ydata()[0] for line in groups.lines if line.get_color() == "black"]
    own = of.values.reshape(3, 4).mean(axis=1)
    assert means == pytest.approx([*own, *(0.9 * own)])
    (server, personal) = (np.sort(line.get_ydata()) for line in samples.lines)
    np.testing.assert_array_equal(server, np.sort(of.values))
    np.testing.assert_array_equal(personal, np.sort(of.personal))
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names[:2] == ["server's model", "after local training"]


def test_shares_are_in_percent_and_clients_that_only_test_stand_apart(make_run):
    record = make_run(steps=2, client_rows="own")
    guest = {"client": 99, "train_samples": 0, "device_group": None}
    rows = [*record.client_evaluations, {**record.client_evaluations[-1], **guest}]
    record = with_rows(record, rows)
    of = values(record)
    figure = metric_by_client(record, of)
    assert figure.axes[0].get_xlabel() == "test accuracy (%)"
    ticks = [t.get_text() for t in figure.axes[1].get_xticklabels()]
    assert ticks == ["group 0", "group 1", "group 2", "only tests"]
    (points,) = figure.axes[2].lines
    assert max(points.get_ydata()) == 100 * of.values.max()
    assert png(figure).startswith(b"\x89PNG")


def test_a_fleet_of_many_groups_and_equal_values_are_drawn(make_run):
    record = make_run(steps=2, devices=40, groups=40, client_rows="own")
    rows = [{**row, "accuracy": 1.0} for row in record.client_evaluations]
    record = with_rows(record, rows)
    figure = metric_by_client(record, values(record))
    assert len(figure.axes[1].get_xticklabels()) == 4
    assert figure.axes[2].get_title() == "by data size"
    assert png(figure).startswith(b"\x89PNG")


def test_large_fleets_are_thinned(make_run):
    record = make_run(steps=1, devices=900, client_rows="own")
    _, groups, samples = metric_by_client(record, values(record)).axes
    assert samples.get_title() == "by data size (400 of 900)"
    assert max(len(np.ravel(line.get_xdata())) for line in samples.lines) == 400
    assert max(len(np.ravel(line.get_xdata())) for line in groups.lines) == 80


def test_the_caption_says_what_the_values_are(make_run, two_regressions):
    run = make_run(client_rows="classes")
    text = captions.clients(run, values(run), "FedAvg")
    assert "No client has test samples of its own: the value is made of the whole" in text
    assert "after their local training" not in text.lower()
    rows = [{**row, "own": row["client"] > 4} for row in run.client_evaluations]
    some = with_rows(run, rows)
    assert "5 of the clients have no test samples of their own" in captions.clients(
        some, values(some), "FedAvg"
    )
    run = two_regressions["FedAvg"][0]
    text = captions.clients(run, values(run), "FedAvg")
    assert text.startswith(
        "FedAvg, seed 0: test MAE of each of 12 clients at server step 20, on average 2.419; in "
        "the worst tenth of them 2.690. After their local training the clients' own models are at "
        "2.177 on average, better than the server's for 12 of 12."
    )
    assert "own:" not in text
