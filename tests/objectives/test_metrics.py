"""Metrics against scikit-learn, over all samples and over any part of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as reference

from fedjax_het.data.batches import Batch
from fedjax_het.objectives import classification, multilabel, next_token, regression, segmentation

RNG = np.random.default_rng(1)


def measured(metric, outputs, y):
    count = len(y)
    samples = Batch(None, jnp.asarray(y), jnp.ones(count), jnp.arange(count))
    return jax.device_get(jax.jit(metric.measure)(jnp.asarray(outputs), samples))


def value(objective, name, outputs, y, part=slice(None)):
    metric = next(m for m in objective.metrics if m.name == name)
    return metric.over(jax.tree.map(lambda a: a[part], measured(metric, outputs, y)))


CLASSES = 4
Z = RNG.standard_normal((60, CLASSES)).astype(np.float32)
Y = RNG.integers(0, CLASSES, 60).astype(np.int32)
SAID = Z.argmax(axis=1)
P = np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)
OF_CLASSES = {
    "accuracy": lambda i: reference.accuracy_score(Y[i], SAID[i]),
    "top_2": lambda i: reference.top_k_accuracy_score(Y[i], Z[i], k=2, labels=range(CLASSES)),
    "macro_f1": lambda i: reference.f1_score(Y[i], SAID[i], average="macro"),
    "auroc": lambda i: reference.roc_auc_score(Y[i], P[i], multi_class="ovr"),
    "per_class_accuracy": lambda i: reference.recall_score(Y[i], SAID[i], average=None),
    "confusion_matrix": lambda i: reference.confusion_matrix(Y[i], SAID[i]),
    "mean_iou": lambda i: reference.jaccard_score(Y[i], SAID[i], average="macro"),
    "perplexity": lambda i: np.exp(reference.log_loss(Y[i], P[i], labels=range(CLASSES))),
}


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("part", [slice(None), slice(5, 35)])
def test_metrics_of_classes(name, part):
    objective = classification(metrics=[name])
    np.testing.assert_allclose(
        value(objective, name, Z, Y, part), OF_CLASSES[name](part), rtol=1e-5
    )


def test_metrics_of_labels():
    z = RNG.standard_normal((50, 3)).astype(np.float32)
    y = RNG.integers(0, 2, (50, 3)).astype(np.int32)
    said = z > 0
    wanted = {
        "macro_f1": reference.f1_score(y, said, average="macro"),
        "label_accuracy": np.mean(said == y),
        "exact_match": reference.accuracy_score(y, said),
        "auroc": reference.roc_auc_score(y, z, average="macro"),
    }
    objective = multilabel(metrics=list(wanted))
    for name, score in wanted.items():
        assert value(objective, name, z, y) == pytest.approx(score, rel=1e-5), name


@pytest.mark.parametrize("width", [1, 3])
def test_metrics_of_numbers(width):
    y = RNG.standard_normal((40, width)).astype(np.float32)
    z = (y + 0.5 * RNG.standard_normal((40, width))).astype(np.float32)
    mse = reference.mean_squared_error(y, z)
    wanted = {
        "mse": mse,
        "rmse": np.sqrt(mse),
        "mae": reference.mean_absolute_error(y, z),
        "r2": reference.r2_score(y, z),
    }
    labels = y[:, 0] if width == 1 else y
    for name, score in wanted.items():
        assert value(regression(), name, z, labels) == pytest.approx(score, rel=1e-5), name


def test_ignored_labels_are_in_no_metric():
    z = RNG.standard_normal((6, 5, 3)).astype(np.float32)
    y = RNG.integers(0, 3, (6, 5)).astype(np.int32)
    y[RNG.random((6, 5)) < 0.4] = -1
    kept = y >= 0
    flat_y, flat_z = y[kept], z[kept]
    said = flat_z.argmax(axis=1)
    shares = np.exp(flat_z) / np.exp(flat_z).sum(axis=1, keepdims=True)
    names = ["accuracy", "perplexity", "macro_f1", "confusion_matrix", "auroc", "top_2"]
    wanted = [
        reference.accuracy_score(flat_y, said),
        np.exp(reference.log_loss(flat_y, shares, labels=range(3))),
        reference.f1_score(flat_y, said, average="macro"),
        reference.confusion_matrix(flat_y, said),
        reference.roc_auc_score(flat_y, shares, multi_class="ovr"),
        reference.top_k_accuracy_score(flat_y, flat_z, k=2),
    ]
    for name, score in zip(names, wanted, strict=True):
        got = value(next_token(metrics=[name]), name, z, y)
        np.testing.assert_allclose(got, score, rtol=1e-5, err_msg=name)


def test_mean_iou_of_images():
    z = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
    y = RNG.integers(0, 3, (4, 3, 3)).astype(np.int32)
    wanted = reference.jaccard_score(y.ravel(), z.argmax(-1).ravel(), average="macro")
    assert value(segmentation(), "mean_iou", z, y) == pytest.approx(wanted, rel=1e-6)


def test_what_is_not_defined_is_none():
    one_class = np.zeros(4, np.int32)
    z = RNG.standard_normal((4, 3)).astype(np.float32)
    assert value(classification(metrics=["auroc"]), "auroc", z, one_class) is None
    ignored = np.full((4, 1), -1, np.int32)
    assert value(next_token(), "accuracy", z[:, None], ignored) is None
    assert value(regression(), "r2", z[:, :1], np.ones(4, np.float32)) is None
