"""The metric over clients: for all of them at once, the same bits as one by one."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import fleet

from fedjax_het.contract.submodels import GLOBAL
from fedjax_het.data import from_arrays
from fedjax_het.models import build
from fedjax_het.objectives import Metric
from fedjax_het.objectives.class_metrics import perplexity
from fedjax_het.objectives.regression import rmse
from fedjax_het.problem import Problem
from fedjax_het.simulation import evaluation
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.spread import Spread


def nothing(outputs, batch):
    raise AssertionError("measured in this test by hand")


def undefined_below_a_third(mean):
    return float("nan") if mean < 1 / 3 else 1 / float(mean)


METRICS = {
    "mean": Metric("mean", nothing, share=True),
    "perplexity": perplexity()._replace(measure=nothing),
    "rmse": rmse()._replace(measure=nothing),
    "own": Metric("own", nothing, undefined_below_a_third, higher_is_better=False),
    "list": Metric("list", nothing, lambda mean: np.array([mean, 1 - mean])),
    "total": Metric("total", nothing, kind="sum"),
    "most": Metric("most", nothing, lambda a: np.max(a), kind="all"),
}
NUMBERS = [name for name in METRICS if name not in ("total", "most")]


def labelled(seed, clients, *, owned, samples=3, classes=4):
    """Clients with up to `samples` samples of random classes, of which the test set lacks some."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(clients), rng.integers(1, samples + 1, clients))
    n, m = len(owner), int(rng.integers(1, 3 * clients))
    y, test_y = rng.integers(0, classes, n), rng.integers(0, max(classes - 1, 1), m)
    testers = {"test_clients": rng.integers(0, clients + 2, m)} if owned else {}
    x, test_x = rng.random((n, 3), np.float32), rng.random((m, 3), np.float32)
    return from_arrays(x, y, test_x, test_y, clients=owner, num_classes=classes, **testers)


def measurements(rng, m, kind="mean"):
    """Values and weights, some of them 0; numbers for other kinds."""
    value = rng.lognormal(0, 2, m).astype(np.float32)
    value[rng.random(m) < 0.1] = np.nan if rng.random() < 0.2 else 0.25
    return (value, rng.integers(0, 2, m).astype(np.float32)) if kind == "mean" else value


def one_by_one(data, metric, measured):
    """The values of `Spread.values` by a loop over the clients: numbers, lists or None."""
    if data.test_client is not None:
        if metric.kind != "mean":
            own = (measured[data.test_client == k] for k in np.unique(data.test_client))
            return [metric.over(mine) for mine in own]
        value, weight = (np.asarray(a, np.float64) for a in measured)
        _, owner = np.unique(data.test_client, return_inverse=True)
        total = np.bincount(owner, weights=weight)
        sums = np.bincount(owner, weights=value * weight)
        means = sums / np.where(total > 0, total, 1.0)
        return [metric.finished(m) if t > 0 else None for m, t in zip(means, total, strict=True)]
    if metric.kind != "mean":
        return None
    value, weight = (np.asarray(a, np.float64) for a in measured)
    y, classes = data.test_y, data.num_classes
    counts = data.label_counts() * (np.bincount(y, minlength=classes) > 0)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    total = np.bincount(y, weights=weight, minlength=classes)
    sums = np.bincount(y, weights=value * weight, minlength=classes)
    means = shares @ (sums / np.where(total > 0, total, 1.0))
    known = shares.sum(axis=1) > 0
    return [metric.finished(m) if k else None for m, k in zip(means, known, strict=True)]


def as_loop(values):
    """A result of `Spread.values` in the form of `one_by_one`."""
    return None if values is None else [None if np.isnan(v) else v for v in values.tolist()]


@pytest.mark.parametrize("owned", [True, False], ids=["own samples", "classes"])
@pytest.mark.parametrize("name", METRICS)
@given(seed=st.integers(0, 2**32), clients=st.integers(1, 40))
def test_all_clients_at_once_have_the_bits_of_one_by_one(name, owned, seed, clients):
    data, metric = labelled(seed, clients, owned=owned), METRICS[name]
    measured = measurements(np.random.default_rng(seed), len(data.test_y), metric.kind)
    wanted = one_by_one(data, metric, measured)
    spread = Spread(data)
    found = spread.values(metric, measured)
    if name == "list" and any(value is not None for value in wanted):
        assert found is None
        return
    assert as_loop(found) == wanted
    if found is not None:
        assert found.dtype == np.float64
        assert found.shape == spread.ids.shape
    column = evaluation._spread_columns(metric, found)
    known = np.sort([value for value in wanted or [] if value is not None])
    worst = known if metric.higher_is_better else known[::-1]
    worst = worst[: max(1, len(known) // 10)]
    assert list(column.values()) == (
        [np.mean(known), np.mean(worst)] if len(known) else [None, None]
    )


def evaluator_of(data, name, by_model):
    """An evaluator with the metric `name`, whose models measure what `by_model` says."""
    problem = Problem(
        build("mlp", (3,), data.num_classes, hidden=(2,)), data, fleet(data.num_clients)
    )
    evaluator = Evaluator(problem)
    evaluator.metrics = {name: METRICS[name]}
    evaluator.measured = lambda variables, prefix="", model=None: {name: by_model[variables]}
    return evaluator


@pytest.mark.parametrize("owned", [True, False], ids=["own samples", "classes"])
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("models", [1, 2, 9])
def test_scores_and_rows_are_means_over_the_models(name, owned, models):
    for seed in range(5):
        rng, data = np.random.default_rng(seed), labelled(seed, 12, owned=owned)
        by_model = {f"m{i}": measurements(rng, len(data.test_y)) for i in range(models)}
        evaluator = evaluator_of(data, name, by_model)
        several = [one_by_one(data, METRICS[name], measured) for measured in by_model.values()]
        ids = range(12) if data.test_client is None else np.unique(data.test_client)
        means = {
            int(client): None if None in of or name == "list" else float(np.mean(of))
            for client, of in zip(ids, zip(*several, strict=True), strict=True)
        }
        rows = evaluator.clients(list(by_model))
        if name == "list":
            assert rows == []
        else:
            assert {row["client"]: row[name] for row in rows} == means
            assert all(type(row[name]) in (float, type(None)) for row in rows)
        sign = 1 if METRICS[name].higher_is_better else -1
        scores = [means.get(client) for client in range(12)]
        wanted = [np.nan if score is None else sign * score for score in scores]
        np.testing.assert_array_equal(evaluator.scores(list(by_model), name), wanted)


@pytest.mark.parametrize("owned", [True, False], ids=["own samples", "classes"])
@pytest.mark.parametrize("name", ["mean", "own"])
def test_the_local_metric_is_the_mean_over_the_clients_own_kinds(name, owned):
    for seed in range(5):
        rng, data = np.random.default_rng(seed), labelled(seed, 12, owned=owned)
        kinds = ("wide", "narrow", GLOBAL)
        by_model = {kind: measurements(rng, len(data.test_y)) for kind in kinds}
        of_client = [kinds[k] for k in rng.integers(0, 3, 12)]
        evaluator = evaluator_of(data, name, by_model)
        values = {k: one_by_one(data, METRICS[name], m) for k, m in by_model.items()}
        ids = range(12) if data.test_client is None else np.unique(data.test_client).tolist()
        known = [values[of_client[c]][i] for i, c in enumerate(ids) if c < 12]
        known = [value for value in known if value is not None]
        models = {kind: (None, kind) for kind in kinds[:2]}
        for _ in range(2):
            row = evaluator.submodels(models, of_client, GLOBAL, name)
            assert row[f"local_{name}"] == (float(np.mean(known)) if known else None)
        assert f"local_{name}" not in evaluator.submodels(models, None, GLOBAL, name)


def test_the_number_of_calls_does_not_grow_with_the_clients(monkeypatch):
    """One call of an elementwise metric, and none of Python's for the default one."""
    calls = []

    def halved(mean):
        calls.append(np.shape(mean))
        return mean / 2

    data = labelled(0, 5000, owned=False)
    spread = Spread(data)
    measured = measurements(np.random.default_rng(0), len(data.test_y))
    halves = spread.values(Metric("half", nothing, halved, elementwise=True), measured)
    assert calls == [(np.count_nonzero(~np.isnan(halves)),)]
    monkeypatch.setattr(Metric, "finished", nothing)
    whole = spread.values(METRICS["mean"], measured)
    np.testing.assert_array_equal(whole / 2, halves)
    spread.values(METRICS["perplexity"], measured)
    spread.values(METRICS["rmse"], measured)


def test_a_metric_of_the_library_is_one_for_arrays_too():
    """The bits of an array are those of its numbers, tails of vectors included."""
    means = np.random.default_rng(0).lognormal(0, 3, 1001)
    for metric in (METRICS["mean"], METRICS["perplexity"], METRICS["rmse"]):
        wanted = [metric.finished(mean) for mean in means]
        for length in (1, 2, 7, 8, 1001):
            assert jax.tree.leaves(metric.of_each(means[:length]).tolist()) == wanted[:length]
