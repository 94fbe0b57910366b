"""What a run is judged by: any metric in its direction, patience, validation, client by client."""

import dataclasses

import jax
import numpy as np
import pytest
from problems import SIZES, TEST_SAMPLES, digits, digits_problem, fleet
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score

from fedjax_het.algorithms import fedavg
from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Variables
from fedjax_het.data import Batch, from_arrays
from fedjax_het.models import build
from fedjax_het.objectives import Metric, classification, regression
from fedjax_het.problem import Problem
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4}


@pytest.fixture(scope="module")
def numbers():
    """A regression: the digit as a number."""
    x, y = load_digits(return_X_y=True)
    x, y = (x[:120] / 16).astype(np.float32), y[:120] / 10
    n = sum(SIZES)
    owner = np.repeat(np.arange(len(SIZES)), SIZES)
    data = from_arrays(x[:n], y[:n], x[n:], y[n:], clients=owner, validation_fraction=0.3)
    model = build("mlp", (64,), 1, hidden=(8,))
    return Problem(model, data, fleet(len(SIZES)), objective=regression())


@pytest.fixture(scope="module")
def method(numbers):
    return fedavg(numbers, **TRAINING)


def test_lower_is_better_for_targets_and_the_best(numbers, method):
    run = simulate(method, numbers, rounds=6, targets=[1e-9, 0.2], target_metric="mae")
    values = [row["mae"] for row in run.record.metrics]
    summary = run.record.summary
    assert summary["metric"] == {"name": "mae", "higher_is_better": False, "share": False}
    assert (summary["final_mae"], summary["best_mae"]) == (values[-1], min(values))
    reached, missed = summary["targets"]
    assert (reached["mae"], missed["step"]) == (0.2, None)
    hit = next((i for i, v in enumerate(values) if v <= 0.2), None)
    assert reached["step"] == hit
    goal = min(values[1:4])
    early = simulate(method, numbers, rounds=6, target=goal, target_metric="mae")
    assert len(early.record.metrics) == 1 + 1 + values[1:].index(goal)


def test_the_validation_set_has_columns_and_patience_looks_at_it(numbers, method):
    # A hopeless step size: no evaluation is better than the first.
    wild = fedavg(numbers, learning_rate=5.0, batch_size=4)
    run = simulate(wild, numbers, rounds=9, patience=2)
    rows = run.record.metrics
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert {"val_mse", "val_loss", "val_r2"} <= set(rows[0])
    evaluator = Evaluator(numbers)
    assert evaluator(run.best)["val_mse"] == pytest.approx(rows[0]["val_mse"])
    assert simulate(method, numbers, rounds=1).best is None
    watched = simulate(method, numbers, rounds=3, patience=1, monitor="r2")
    best = max(row["r2"] for row in watched.record.metrics)
    assert evaluator(watched.best)["r2"] == pytest.approx(best)


def test_patience_survives_a_resume(numbers, method, tmp_path):
    whole = simulate(method, numbers, rounds=4, patience=4, checkpoint_every=2)
    simulate(method, numbers, rounds=2, patience=4, workdir=tmp_path, checkpoint_every=2)
    resumed = simulate(method, numbers, rounds=4, patience=4, workdir=tmp_path, checkpoint_every=2)
    for a, b in zip(*(jax.tree.leaves(run.best) for run in (whole, resumed)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_client_is_judged_by_its_own_samples():
    """Three of four owners train; every owner of test samples gets a row."""
    base = digits()
    owner = np.resize(np.asarray(["b", "c", "only tests"]), TEST_SAMPLES)
    x, y = np.asarray(base.x)[base.order], np.asarray(base.y)[base.order]
    data = from_arrays(
        x, y, base.test_x, base.test_y, clients=np.resize(list("abc"), len(y)), test_clients=owner
    )
    objective = classification(metrics=["macro_f1", "accuracy", "confusion_matrix"])
    model = build("mlp", (64,), 10, hidden=(8,))
    problem = Problem(model, data, fleet(3), objective=objective)
    run = simulate(fedavg(problem, **TRAINING), problem, rounds=2, client_eval="last")
    rows = run.record.client_evaluations
    assert [row["client"] for row in rows] == [1, 2, 3]
    assert {row["step"] for row in rows} == {2}
    assert [row["train_samples"] for row in rows] == [*data.sizes[1:], 0]
    assert [row["device_group"] for row in rows][-1] is None
    assert all(row["own"] and "confusion_matrix" not in row for row in rows)
    logits, _ = problem.model.apply(run.variables, data.test_x)
    said = np.argmax(logits, axis=-1)
    for row in rows:
        mine = data.test_client == row["client"]
        assert row["samples"] == mine.sum()
        wanted = f1_score(data.test_y[mine], said[mine], average="macro")
        assert row["macro_f1"] == pytest.approx(wanted)
    values = [row["macro_f1"] for row in rows]
    last = run.record.metrics[-1]
    assert last["client_macro_f1_mean"] == pytest.approx(np.mean(values))
    assert last["client_macro_f1_worst_decile"] == pytest.approx(min(values))
    assert np.shape(last["confusion_matrix"]) == (10, 10)


def test_class_accuracies_are_reweighted_where_no_sample_has_an_owner(tmp_path):
    problem = digits_problem()
    run = simulate(
        fedavg(problem, **TRAINING), problem, rounds=2, client_eval="always", workdir=tmp_path
    )
    rows = run.record.client_evaluations
    assert rows == RunRecord.load(tmp_path).client_evaluations
    assert [row["step"] for row in rows] == [s for s in range(3) for _ in range(8)]
    logits, _ = problem.model.apply(run.variables, problem.data.test_x)
    right = np.argmax(np.asarray(logits), axis=-1) == problem.data.test_y
    of_class = [right[problem.data.test_y == c] for c in range(10)]
    for row in rows[-8:]:
        assert row["own"] is False
        counts = problem.data.label_counts()[row["client"]]
        held = [(n, np.mean(hits)) for n, hits in zip(counts, of_class, strict=True) if hits.size]
        wanted = sum(n * share for n, share in held) / sum(n for n, _ in held)
        assert row["accuracy"] == pytest.approx(wanted)


def owned():
    """Digits whose test samples have owners; client 3 only tests."""
    base = digits()
    x, y = np.asarray(base.x), np.asarray(base.y)
    data = from_arrays(
        x,
        y,
        base.test_x,
        base.test_y,
        clients=np.resize(np.arange(3), len(y)),
        test_clients=[*np.resize(np.arange(4), TEST_SAMPLES - 1).tolist(), 0],
    )
    return Problem(build("mlp", (64,), 10, hidden=(8,)), data, fleet(3))


@pytest.mark.parametrize("make_problem", [owned, digits_problem])
def test_personal_models_are_the_global_one_after_one_local_training(make_problem):
    """A mini-batch of all samples and one epoch: one step of gradient descent."""
    problem = make_problem()
    method = fedavg(problem, learning_rate=0.3, batch_size=20)
    run = simulate(method, problem, rounds=2, client_eval="last", personal=True)
    data, evaluator = problem.data, Evaluator(problem)

    def loss(params, samples):
        outputs, _ = problem.model.apply(Variables(params, run.variables.stats), samples.x)
        return problem.objective.mean(outputs, samples)

    def metrics(variables, client):
        measured = evaluator.measured(variables)["loss"]
        if data.test_client is not None:
            return np.mean(measured[0][data.test_client == client])
        of_class = [np.mean(measured[0][data.test_y == c]) for c in np.unique(data.test_y)]
        counts = data.label_counts()[client][np.unique(data.test_y)]
        return np.dot(counts, of_class) / counts.sum()

    rows = run.record.client_evaluations
    for row in rows:
        assert row["loss"] == pytest.approx(metrics(run.variables, row["client"]), rel=1e-5)
        if not row["train_samples"]:
            assert "personal_loss" not in row
            continue
        ids = data.client_samples(row["client"])
        samples = Batch(data.x[ids], data.y[ids], np.ones(len(ids), np.float32), ids)
        grads = jax.jit(jax.grad(loss))(run.variables.params, samples)
        own = jax.tree.map(lambda w, g: w - 0.3 * g, run.variables.params, grads)
        wanted = metrics(Variables(own, run.variables.stats), row["client"])
        assert row["personal_loss"] == pytest.approx(wanted, rel=1e-4)
        assert "personal_accuracy" in row


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_metric": "accuracy"}, "target_metric 'accuracy'.*mse"),
        ({"target": float("nan")}, "'target' = nan: must be a finite number"),
        ({"monitor": "mse"}, "monitor = 'mse' without patience"),
        ({"patience": 1, "monitor": "val_f1"}, "monitor 'val_f1'"),
        ({"patience": 0}, "patience = 0.*at least 1.*evaluations"),
        ({"client_eval": "last"}, "client_eval = 'last' with test samples of no client.*owners"),
        ({"client_eval": "often"}, "client_eval.*never"),
        ({"personal": True}, "personal = True without rows.*client_eval = 'last'"),
    ],
)
def test_what_cannot_be_judged_is_refused(numbers, method, options, words):
    with pytest.raises(InputError, match=words):
        simulate(method, numbers, rounds=1, **options)


def test_shares_are_given_as_shares():
    problem = digits_problem()
    with pytest.raises(InputError, match=r"target accuracy 97.*\(0, 1\].*0\.97"):
        simulate(fedavg(problem, **TRAINING), problem, rounds=1, targets=[97])


def test_a_metric_of_ones_own_is_a_column_and_a_target():
    """Confidence, a mean; and the count of each predicted class, a list."""

    def confidence(outputs, samples):
        return jax.nn.softmax(outputs).max(axis=-1), samples.weight

    own = Metric("confidence", confidence, share=True)
    said = Metric(
        "said",
        lambda z, samples: jax.nn.one_hot(z.argmax(-1), 10),
        kind="sum",
        finish=lambda counts: counts,
    )
    problem = digits_problem()
    objective = dataclasses.replace(problem.objective, metrics=(own, said))
    problem = dataclasses.replace(problem, objective=objective)
    run = simulate(fedavg(problem, **TRAINING), problem, rounds=1, targets=[0.11])
    last = run.record.metrics[-1]
    outputs, _ = problem.model.apply(run.variables, problem.data.test_x)
    shares = np.asarray(jax.nn.softmax(outputs))
    assert last["confidence"] == pytest.approx(shares.max(axis=-1).mean(), rel=1e-6)
    assert last["said"] == np.bincount(shares.argmax(axis=-1), minlength=10).tolist()
    assert run.record.summary["targets"][0]["confidence"] == 0.11
    assert run.record.metric.label == "confidence"


def test_a_problem_without_metrics_is_judged_by_its_loss():
    problem = digits_problem()
    plain = dataclasses.replace(problem.objective, metrics=())
    problem = dataclasses.replace(problem, objective=plain)
    run = simulate(fedavg(problem, **TRAINING), problem, rounds=2)
    assert run.record.metric.name == "loss"
    assert run.record.summary["best_loss"] == min(row["loss"] for row in run.record.metrics)
