import json
from dataclasses import replace

import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import jsonable
from fedjax_het.report import time_to
from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.results import summarise
from fedjax_het.report.tables import table_data, table_notes, table_rows, text_table
from fedjax_het.report.units import Spread, number, percent, quantity, spread, times, unit


def known(value):
    assert value is not None
    return value


def cells(results, label):
    return next(row for name, row in table_rows(results) if name.strip() == label)


def test_figures_are_those_of_the_records(two_methods):
    avg, pmt = summarise(two_methods, [0.9, 0.8])
    assert [t.goal for t in avg.targets] == [0.8, 0.9]
    expected = [known(time_to(run, 0.9)) for run in two_methods["FedPMT"]]
    assert known(pmt.targets[1].virtual_s).values == tuple(expected)
    assert known(pmt.targets[1].virtual_s).std == pytest.approx(np.std(expected, ddof=1))
    base = np.mean([known(time_to(run, 0.9)) for run in two_methods["FedAvg"]])
    assert pmt.targets[1].speed_up == pytest.approx(base / np.mean(expected))
    assert avg.targets[1].speed_up == 1
    assert pmt.targets[1].reached == pmt.targets[1].seeds == 3
    assert known(pmt.totals["bytes_up"]).values == tuple(
        float(run.summary["bytes_up"]) for run in two_methods["FedPMT"]
    )
    last = [run.metrics[-1]["client_accuracy_worst_decile"] for run in two_methods["FedAvg"]]
    assert known(avg.worst_decile).values == tuple(last)


def test_cells(two_methods, make_run):
    results = summarise(two_methods, [0.9, 0.999])
    assert cells(results, "virtual time to 90 %") == ["218 ± 38 s", "108 ± 6 s"]
    assert cells(results, "speed-up over FedAvg") == ["1 (reference)", "2.01×"]
    assert cells(results, "tasks dropped") == ["0.0 ± 0.0 %", "0.0 ± 0.0 %"]
    best = max(run.summary["best_accuracy"] for run in two_methods["FedAvg"])
    assert (
        cells(results, "virtual time to 99.9 %")[0]
        == f"not reached (best {MetricInfo().missed(best, 0.999)})"
    )
    late = summarise({"drop": [make_run("drop", deadline_s=6.0)]}, [0.9])
    share = known(late[0].dropped_share).mean
    assert 0 < share < 1
    assert cells(late, "tasks dropped") == [f"{100 * share:.1f} %"]


def test_waste_has_rows_where_there_is_any(two_methods, make_run):
    labels = [label for label, _ in table_rows(summarise(two_methods, [0.9]))]
    assert not {"tasks failed", "wasted device work", "wasted traffic"} & {*labels}
    run = make_run("drop", deadline_s=6.0)
    for i, row in enumerate(run.clients):
        row["status"] = ("merged", "failed", "dropped")[i % 3]
    rows = run.clients
    (result,) = summarise({"drop": [run]}, [0.9])
    flops = sum(row["flops"] * (row["status"] != "merged") for row in rows)
    down = sum(row["bytes_down"] * (row["status"] != "merged") for row in rows)
    up = sum(row["bytes_up"] * (row["status"] == "failed") for row in rows)
    sent = sum(row["bytes_up"] * (row["status"] != "dropped") for row in rows)
    moved = sent + sum(row["bytes_down"] for row in rows)
    work, traffic = flops / sum(row["flops"] for row in rows), (down + up) / moved
    assert cells([result], "wasted device work") == [f"{100 * work:.1f} %"]
    assert cells([result], "wasted traffic") == [f"{100 * traffic:.1f} %"]


def test_one_seed_has_no_spread(make_run):
    results = summarise({"FedAvg": [make_run()]}, [0.9])
    text = text_table(results)
    assert " ± " not in text
    assert "One seed shows no spread" in text
    assert "speed-up" not in text


def test_seeds_that_missed_the_target_are_counted_and_flagged(make_run):
    weak = [make_run("weak", 0, best=0.7), make_run("weak", 1)]
    results = summarise({"FedAvg": [make_run(seed=s) for s in range(2)], "weak": weak}, [0.9])
    assert results[1].targets[0].reached == 1
    assert cells(results, "virtual time to 90 %")[1].endswith(" min (1 of 2 seeds)")
    assert cells(results, "speed-up over FedAvg")[1].endswith("× *")
    assert any(note.startswith("* over the seeds that reached") for note in table_notes(results))


def test_a_reference_that_missed_the_target_gives_no_speed_up(make_run):
    results = summarise({"weak": [make_run(best=0.5)], "FedAvg": [make_run()]}, [0.9])
    assert cells(results, "speed-up over weak") == ["-", "-"]
    assert results[1].targets[0].speed_up is None


def test_nonfinite_updates_and_unequal_seeds_are_reported(make_run):
    record = make_run(steps=3)
    ill = replace(record, summary={**record.summary, "nonfinite": 2})
    results = summarise({"ill": [ill], "other": [make_run(seed=5)]}, [])
    assert cells(results, "updates left out, not finite") == ["2", "0"]
    assert "The methods ran with different seeds." in table_notes(results)


def test_a_diverged_run_without_final_accuracy(make_run):
    record = make_run(steps=3)
    summary = {**record.summary, "final_accuracy": float("nan"), "best_accuracy": None}
    ill = replace(record, summary=summary)
    assert cells(summarise({"ill": [ill]}, []), "final accuracy") == ["-"]


def test_the_text_is_aligned_and_wraps_many_methods(make_run):
    runs = {f"method-{i}": [make_run(seed=i, steps=3)] for i in range(6)}
    text = text_table(summarise(runs, [0.2, 0.99]))
    for block in text.split("\n\n")[:2]:
        lines = block.split("\n")
        assert {len(line) for line in lines} == {len(lines[0])}
    assert "method-5" in text.split("\n\n")[1]


def test_data_is_json_with_all_values(two_methods):
    data = jsonable(table_data(summarise(two_methods, [0.9, 0.999])))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert len(data[0]["targets"][0]["virtual_s"]["values"]) == 3
    assert data[0]["targets"][1]["virtual_s"] is None


def test_where_lower_is_better(two_regressions):
    avg, pmt = results = summarise(two_regressions, [1.0, 2.5, 3.0])
    assert [t.goal for t in avg.targets] == [3.0, 2.5, 1.0]
    firsts = {
        name: [next(row["virtual_s"] for row in run.metrics if row["mae"] <= 2.5) for run in runs]
        for name, runs in two_regressions.items()
    }
    assert known(pmt.targets[1].virtual_s).values == tuple(firsts["FedPMT"])
    ratio = np.mean(firsts["FedAvg"]) / np.mean(firsts["FedPMT"])
    assert ratio > 1.5
    assert pmt.targets[1].speed_up == pytest.approx(ratio)
    lowest = min(run.column("mae").min() for run in two_regressions["FedAvg"])
    assert avg.targets[2].best == lowest
    assert cells(results, "virtual time to MAE 1")[0] == f"not reached (best {lowest:.3f})"
    assert cells(results, "best MAE") == ["2.009 ± 0.012", "2.052 ± 0.009"]
    assert "worst-decile client MAE" in dict(table_rows(results))
    last = [run.metrics[-1]["client_mae_worst_decile"] for run in two_regressions["FedAvg"]]
    assert known(avg.worst_decile).values == tuple(last)
    assert "first evaluation at or below it" in table_notes(results)[0]
    data = table_data(results)[0]
    assert data["targets"][0]["mae"] == 3.0
    assert {"final_mae", "best_mae", "worst_decile_mae"} <= set(data)


def test_runs_with_different_metrics_are_refused(two_regressions, make_run):
    with pytest.raises(
        InputError,
        match="target metric is 'mae, lower is better' but 'accuracy, higher is better' in runs",
    ):
        summarise({"A": [make_run()], "B": two_regressions["FedAvg"]}, [])


@pytest.mark.parametrize(
    ("records", "targets", "message"),
    [
        (lambda run: {}, [], "records: is empty"),
        (lambda run: {"a": []}, [], "method 'a': has no run"),
        (lambda run: {"a": [run(), run()]}, [], r"seeds \[0, 0\]: hold one twice"),
        (lambda run: {"a": [run()], "b": [run(devices=9)]}, [], "number of devices is 9 but 12"),
        (lambda run: {"a": [run()]}, [90], "accuracy = 90: must be in"),
        (lambda run: {"a": [run()]}, [0.0], "accuracy = 0.0: must be in"),
    ],
)
def test_what_cannot_be_compared_is_refused(make_run, records, targets, message):
    with pytest.raises(InputError, match=message):
        summarise(records(lambda **kw: make_run(steps=2, **kw)), targets)


def test_runs_on_other_data_are_refused(make_run):
    record = make_run(steps=2)
    data = {**record.summary["data"], "name": "mnist"}
    other = replace(record, summary={**record.summary, "data": data})
    with pytest.raises(InputError, match="data is 'mnist' but 'digits'"):
        summarise({"a": [record], "b": [other]}, [])


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (0.0, "s", "0 µs"),
        (3.2e-5, "s", "32.0 µs"),
        (0.0123, "s", "12.3 ms"),
        (12.34, "s", "12.3 s"),
        (119.6, "s", "120 s"),
        (150.0, "s", "2.50 min"),
        (9000.0, "s", "2.50 h"),
        (1e6, "s", "11.6 d"),
        (999, "B", "999 B"),
        (1.5e6, "B", "1.50 MB"),
        (2e12, "FLOP", "2.00 TFLOP"),
        (None, "s", "-"),
        (Spread((10.0, 12.0)), "s", "11.0 ± 1.4 s"),
        (Spread((100.0, 100.2)), "s", "100.1 ± 0.1 s"),
        (Spread((5.0,)), "s", "5.00 s"),
    ],
)
def test_quantity(value, kind, expected):
    assert quantity(value, kind) == expected


def test_neighbours_share_a_unit():
    assert quantity(150.0, "s", like=30.0) == "150 s"


def test_small_words():
    assert percent(0.97031) == "97.03 %"
    assert percent(Spread((0.9, 0.92)), 1) == "91.0 ± 1.4 %"
    assert percent(None) == "-"
    assert [times(r) for r in (0.5, 2.126, 12.34, 250.0)] == ["0.50×", "2.13×", "12.3×", "250×"]
    assert spread([None, float("nan")]) is None
    assert unit(0.0, "B") == (1.0, "B")
    assert number(None) == "-"
    assert [number(v) for v in (3.21, -0.5, 12345.6, 1.23e-5)] == [
        "3.210",
        "-0.5000",
        "12346",
        "1.23e-05",
    ]
    assert number(Spread((3.0, 3.5))) == "3.250 ± 0.354"
    assert number(Spread((0.001, -0.001, 0.3))) == "0.1000 ± 0.1732"
