"""The target metric in words and numbers, in either direction."""

import numpy as np
import pytest

from fedjax_het.cli import programs
from fedjax_het.common.errors import InputError
from fedjax_het.report.metric import MetricInfo

ACCURACY = MetricInfo()
MAE = MetricInfo("mae", higher_is_better=False, share=False)
ERROR = MetricInfo("error", higher_is_better=False, share=True)
R2 = MetricInfo("r2", higher_is_better=True, share=False)


@pytest.mark.parametrize(
    ("name", "label", "title"),
    [
        ("accuracy", "accuracy", "Accuracy"),
        ("top5_accuracy", "top-5 accuracy", "Top-5 accuracy"),
        ("top_3_accuracy", "top-3 accuracy", "Top-3 accuracy"),
        ("macro_f1", "macro F1", "Macro F1"),
        ("auroc", "AUROC", "AUROC"),
        ("r2", "R²", "R²"),
        ("mean_iou", "mean IoU", "Mean IoU"),
        ("perplexity", "perplexity", "Perplexity"),
        ("my_score", "my_score", "My_score"),
    ],
)
def test_names_for_readers(name, label, title):
    assert (MetricInfo(name).label, MetricInfo(name).title) == (label, title)


def test_values_and_targets_in_words():
    assert [ACCURACY.short(t) for t in (0.9, 0.58, 0.995)] == ["90 %", "58 %", "99.5 %"]
    assert (ACCURACY.target(0.9), MAE.target(3.2)) == ("90 %", "MAE 3.2")
    assert ACCURACY.phrase("90 %") == "90 % test accuracy"
    assert MAE.phrase("3.2") == "a test MAE of 3.2"
    assert (ACCURACY.text(0.97031), MAE.text(3.21)) == ("97.03 %", "3.210")
    assert ACCURACY.text(None) == MAE.text(None) == "-"


@pytest.mark.parametrize(
    ("metric", "value", "target", "expected"),
    [
        (ACCURACY, 0.89999, 0.9, "89.99 %"),
        (ACCURACY, 0.86616, 0.9, "86.62 %"),
        (ACCURACY, 0.57, 0.58, "57.00 %"),
        (ERROR, 0.10001, 0.1, "10.01 %"),
        (ERROR, 0.2, 0.1, "20.00 %"),
        (MAE, 3.20001, 3.2, "3.201"),
        (MAE, 3.5, 3.2, "3.500"),
        (MAE, 0.00100001, 0.001, "0.001001"),
        (R2, 0.499999, 0.5, "0.4999"),
        (R2, -0.3, 0.5, "-0.3000"),
    ],
)
def test_a_missed_target_is_not_shown_as_reached(metric, value, target, expected):
    assert metric.missed(value, target) == expected


def test_directions():
    values = np.array([3.0, 1.0, 2.0])
    assert ACCURACY.reached(values, 2.0).tolist() == [True, False, True]
    assert MAE.reached(values, 2.0).tolist() == [False, True, True]
    assert (ACCURACY.best(values), MAE.best(values)) == (3.0, 1.0)
    assert ACCURACY.rising([0.9, 0.8, 0.9]) == (0.8, 0.9)
    assert MAE.rising([2, 3.5, 2.0]) == (3.5, 2.0)
    assert R2.rising([0, -1]) == (-1.0, 0.0)


def test_the_worst_decile_is_the_mean_of_the_worst_tenth():
    values = np.random.default_rng(0).permutation(np.arange(25.0))
    assert ACCURACY.worst_decile(values) == np.mean([0, 1])
    assert MAE.worst_decile(values) == np.mean([24, 23])
    assert MAE.worst_decile(np.array([4.0, 5.0])) == 5.0


def test_targets_that_are_no_values_are_refused():
    with pytest.raises(InputError, match=r"error = 30: must be in \(0, 1\]; write 90 % as 0.9"):
        ERROR.rising([30])
    with pytest.raises(InputError, match="mae = inf: must be finite"):
        MAE.check_target(float("inf"))


def test_the_command_line_names_the_metric(make_run, two_regressions):
    lines = programs.outcome(make_run("FedAvg", steps=3, every=3), "runs/a").split("\n")
    assert lines[1:] == [
        "test accuracy 0.6018 (best 0.6018)",
        "  80 %: not reached",
        "  90 %: not reached",
        "report: runs/a/report.html",
    ]
    record = two_regressions["FedAvg"][0]
    lines = programs.outcome(record, "runs/a").split("\n")
    assert lines[1] == f"test MAE {record.final:.3f} (best {record.best:.3f})"
    assert lines[2] == "  MAE 3: not reached"
