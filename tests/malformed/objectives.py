"""Objectives, labels and metrics, and how a run is judged."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from malformed.case import BASE, Call, Case, changed, problem, ran

from fedjax_het import Problem, algorithms, experiment, objectives, simulate
from fedjax_het.data import from_arrays


def judged(name: str, **options: Any) -> Call:
    """The base problem with another objective."""
    return lambda here: dataclasses.replace(problem(), objective=objectives.build(name, **options))


def classified(**options: Any) -> Call:
    """A classification, made by its function."""
    return lambda here: objectives.classification(**options)


def labelled(objective: Any, y: Any) -> Call:
    """The base model, of ten outputs, on four clients with these labels."""

    def call(here: Path) -> None:
        x = np.zeros((len(y), *problem().data.input_shape), np.float32)
        data = from_arrays(x, y, x, y, clients=np.arange(len(y)) % 4)
        Problem(problem().model, data, problem().fleet, objective=objective)

    return call


def configured(**section: Any) -> Call:
    """A configuration with a section `objective`."""
    return lambda here: experiment.build_problem(
        experiment.plain({**changed(), "objective": section})
    )


def compared(here: Path) -> None:
    one = {**BASE, "objective": {"name": "classification"}}
    experiment.compare([one, {**BASE, "objective": {"name": "next_token"}}], here)


def compared_in_accuracy(here: Path) -> None:
    """Nothing is run before the options of the last method are checked."""
    methods = {"a": {}, "b": {}}
    experiment.compare([{**BASE, "compare": {"methods": methods, "targets": [90]}}], here)


def judged_personally(here: Path) -> None:
    fedavg = algorithms.fedavg(problem(), learning_rate=0.1)
    own = fedavg._replace(evaluated=lambda state, variables: [variables])
    simulate(own, problem(), rounds=1, client_eval="last", personal=True)


EIGHT = np.arange(8)

CASES: list[Case] = [
    (judged("regresion"), "objective 'regresion' | one of classification | 'regression'"),
    (judged("regression"), "int32 | floats for a regression | astype(numpy.float32)"),
    (judged("regression", loss="mae2"), "'mae2' | one of huber, mae, mse | 'mae'"),
    (judged("regression", delta=0.0), "delta = 0.0 | positive | use 1"),
    (judged("multilabel"), "shape [1437] | one column per label | classification()"),
    (judged("multilabel", positive_weight=-1), "positive_weight = -1 | positive | ratio"),
    (judged("next_token"), "shape [1437] | must be [N, T] | classification()"),
    (judged("segmentation"), "shape [1437] | must be [N, H, W] | classification()"),
    (judged("classification", class_weights=[1, 2]), "of 2 classes | all 10 | one weight per"),
    (judged("classification", class_weights=[-1] * 10), "class_weights = | finite number | equal"),
    (judged("classification", label_smoothing=2), "label_smoothing = 2 | [0, 1) | use 0.1"),
    (
        judged("classification", focal=float("nan")),
        "'focal' = nan | must be a finite number | focal = 0.0",
    ),
    (judged("classification", metrics=["f1"]), "metric 'f1' | macro_f1, mean_iou | choose"),
    (judged("classification", metrics="auroc"), "'metrics' = 'auroc' | a list | ('accuracy',)"),
    (classified(metrics="auroc"), "metrics = 'auroc' | a list | ['auroc']"),
    (classified(metrics=[5]), "metric of type int | a name or a Metric | choose"),
    (
        judged("classification", metrics=["accuracy", "accuracy"]),
        "metrics ['accuracy', 'accuracy'] | different names | rename",
    ),
    (labelled("regression", EIGHT / 8), "objective of type str | Objective | objectives.class"),
    (labelled(None, EIGHT / 8), "float32[8] | integer classes | regression()"),
    (labelled(objectives.next_token(), [[0, -2]] * 8), "label -2 | or -1 for | ignore=-1"),
    (labelled(objectives.multilabel(), [[0, 2]] * 8), "labels [2] | 0 or 1 | multi-hot"),
    (labelled(objectives.multilabel(), [[0, 1]] * 8), "10 outputs, data of 2 | equal | =2"),
    (labelled(objectives.regression(), EIGHT / 8), "10 outputs, data of 1 | equal | =1"),
    (configured(name="focal"), "objective 'focal' | one of classification | choose"),
    (configured(name="regression", los="mae"), "'los' | one of delta, loss | 'loss'"),
    (configured(name="regression", delta="1"), "'delta' = '1' | a number | delta = 1.0"),
    (configured(), "config.objective.name = None | given, as text | configs/"),
    (compared, "objective.name: 'classification' -> 'next_token' | must agree | change one"),
    (compared_in_accuracy, "target accuracy 90 | (0, 1] | 97 % as 0.97"),
    (ran(target_metric="f1"), "target_metric 'f1' | one of accuracy, loss | choose"),
    (ran(target=97), "target accuracy 97 | (0, 1] | 97 % as 0.97"),
    (ran(targets=[float("inf")]), "'targets' = [inf] | each a finite number | targets = ()"),
    (ran(patience=0), "patience = 0 | at least 1 | evaluations"),
    (ran(monitor="loss"), "monitor = 'loss' without patience | looks at | set patience"),
    (ran(patience=1, monitor="val_loss"), "monitor 'val_loss' | one of accuracy, loss | 'loss'"),
    (ran(client_eval="all"), "client_eval | always, last, never | choose"),
    (ran(personal=True), "personal = True without | adds columns | client_eval"),
    (judged_personally, "personal = True with fedavg | models of the clients | leave it out"),
]
