"""Losses of the ready-made objectives, against NumPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from fedjax_het.common.errors import InputError
from fedjax_het.data import from_arrays
from fedjax_het.data.batches import Batch
from fedjax_het.objectives import (
    OBJECTIVES,
    Objective,
    build,
    classification,
    multilabel,
    next_token,
    regression,
    segmentation,
)

RNG = np.random.default_rng(0)


def batch(y, weight=None):
    y = np.asarray(y)
    weight = np.ones(len(y)) if weight is None else np.asarray(weight)
    x = np.zeros((len(y), 1), np.float32)
    return Batch(x, jnp.asarray(y), jnp.asarray(weight, jnp.float32), np.arange(len(y)))


def drawn(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def mean(objective, outputs, samples):
    return float(jax.jit(objective.mean)(outputs, samples))


def test_cross_entropy_is_scikit_learns_and_leaves_padding_out():
    z, y = drawn(6, 4), RNG.integers(0, 4, 6).astype(np.int32)
    weight = np.float32([1, 1, 1, 1, 0, 0])
    wanted = log_loss(y[:4], np.exp(log_softmax(z))[:4], labels=range(4))
    assert mean(classification(), z, batch(y, weight)) == pytest.approx(wanted, rel=1e-5)
    assert mean(classification(), z, batch(y, np.zeros(6))) == 0


def test_label_smoothing_class_weights_and_focal():
    z, y = drawn(5, 3), np.int32([0, 1, 2, 2, 0])
    log_p = log_softmax(z)
    target = np.full((5, 3), 0.1 / 3)
    target[range(5), y] += 0.9
    got = classification(label_smoothing=0.1).losses(z, batch(y))
    np.testing.assert_allclose(got, -(target * log_p).sum(axis=1), rtol=1e-5)
    own = np.float32([1.0, 2.0, 0.5])[y]
    entropy = -log_p[range(5), y]
    weighted = classification(class_weights=[1.0, 2.0, 0.5])
    assert mean(weighted, z, batch(y)) == pytest.approx((own * entropy).sum() / own.sum(), 1e-5)
    got = classification(focal=2.0).losses(z, batch(y))
    np.testing.assert_allclose(got, (1 - np.exp(-entropy)) ** 2 * entropy, rtol=1e-5)


def test_ignored_positions_count_nowhere():
    z, y = drawn(3, 4, 5), RNG.integers(0, 5, (3, 4)).astype(np.int32)
    y[0, 2:], y[1] = -1, -1  # the second sample is all padding
    log_p = log_softmax(z)
    counted = y >= 0
    picked = np.take_along_axis(log_p, np.maximum(y, 0)[..., None], -1)[..., 0]
    wanted = -picked[counted].mean()
    assert mean(next_token(), z, batch(y)) == pytest.approx(wanted, rel=1e-5)
    moved = np.where(counted[..., None], z, 7.0 * drawn(3, 4, 5))  # whatever the outputs are there
    assert mean(next_token(), moved, batch(y)) == pytest.approx(wanted, rel=1e-5)
    grad = jax.grad(next_token().mean)(jnp.asarray(z), batch(y))
    assert not np.any(np.asarray(grad)[~counted])
    assert mean(next_token(ignore=None), z, batch(np.abs(y))) > 0


def test_segmentation_is_the_mean_over_pixels():
    z, y = drawn(2, 3, 3, 4), RNG.integers(0, 4, (2, 3, 3)).astype(np.int32)
    picked = np.take_along_axis(log_softmax(z), y[..., None], -1)
    assert mean(segmentation(), z, batch(y)) == pytest.approx(-picked.mean(), rel=1e-5)
    weights = np.float32([1, 2, 3, 4])
    own = weights[y]
    wanted = -(own * picked[..., 0]).sum() / own.sum()
    assert mean(segmentation(class_weights=weights), z, batch(y)) == pytest.approx(wanted, rel=1e-5)


def test_multilabel_is_the_mean_of_binary_cross_entropies():
    z, y = drawn(4, 3), RNG.integers(0, 2, (4, 3)).astype(np.int32)
    p = 1 / (1 + np.exp(-z))
    each = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert mean(multilabel(), z, batch(y)) == pytest.approx(each.mean(), rel=1e-5)
    each = np.where(y == 1, 3 * each, each)
    assert mean(multilabel(positive_weight=3.0), z, batch(y)) == pytest.approx(each.mean(), 1e-5)


@pytest.mark.parametrize("labels", [(5,), (5, 2)])
def test_regression_losses(labels):
    y = 3 * drawn(*labels)
    z = drawn(5, 1) if len(labels) == 1 else drawn(5, 2)
    error = (z.reshape(5, -1) - y.reshape(5, -1)).astype(np.float64)
    huber = np.where(np.abs(error) <= 2, error**2 / 2, 2 * (np.abs(error) - 1))
    for loss, each in (("mse", error**2), ("mae", np.abs(error)), ("huber", huber)):
        objective = regression(loss=loss, delta=2.0)
        assert mean(objective, z, batch(y)) == pytest.approx(each.mean(), rel=1e-5)


def test_an_objective_of_ones_own():
    def pinball(outputs, samples):
        error = samples.y - outputs[:, 0]
        return jnp.maximum(0.9 * error, -0.1 * error)

    own = Objective("pinball", pinball)
    got = mean(own, np.float32([[1.0], [3.0]]), batch(np.float32([2.0, 2.0])))
    assert got == pytest.approx((0.9 + 0.1) / 2)
    assert own.shape(None) is None
    with pytest.raises(InputError, match="outputs of an objective 'probabilities'"):
        Objective("odd", pinball, outputs="probabilities")
    with pytest.raises(InputError, match=r"metrics \['mae', 'mae'\].*different names"):
        Objective("odd", pinball, metrics=regression(metrics=["mae"]).metrics * 2)


def data(y, num_classes=None):
    x = np.zeros((len(y), 2), np.float32)
    return from_arrays(x, y, x, y, clients=[0] * len(y), num_classes=num_classes)


def test_shapes_follow_from_the_labels():
    single, numbers = np.asarray([0, 1, 2]), np.asarray([0.5, 1.0, 2.0])
    assert classification().shape(data(single, 5)) == (5,)
    assert next_token().shape(data(np.asarray([[0, 1, -1]] * 3))) == (3, 2)
    assert segmentation().shape(data(np.zeros((3, 4, 6), int))) == (4, 6, 1)
    assert multilabel().shape(data(np.eye(3))) == (3,)
    assert regression().shape(data(numbers)) == (1,)
    assert regression().shape(data(np.stack([numbers] * 2, 1))) == (2,)


@pytest.mark.parametrize(
    ("make", "y", "words"),
    [
        (classification, [0.0, 1.0], "float32.*must be integer classes.*regression"),
        (classification, [[0, -1], [1, 0]], r"label -1.*0\.\.1.*next_token\(ignore=-1\)"),
        (next_token, [[0, -2], [1, 0]], r"label -2.*0\.\.1, or -1"),
        (next_token, [0, 1], r"shape \[2\].*\[N, T\].*classification"),
        (segmentation, [[0, 1]], r"shape \[1, 2\].*\[N, H, W\]"),
        (multilabel, [0, 1], r"shape \[2\].*one column per label"),
        (multilabel, [[0, 2]], r"labels \[2\].*0 or 1.*multi-hot"),
        (regression, [0, 1], "int32.*floats.*integers are classes"),
    ],
)
def test_labels_that_do_not_fit_are_refused(make, y, words):
    with pytest.raises(InputError, match=words):
        make().shape(data(np.asarray(y)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing = 1\.0.*\[0, 1\)"),
        ({"focal": -1.0}, r"focal = -1\.0.*at least 0"),
        ({"focal": 2.0, "label_smoothing": 0.1}, "two changes of one loss"),
        ({"class_weights": [0.0, 0.0]}, "not all of them 0"),
        ({"metrics": ["acuracy"]}, "did you mean 'accuracy'"),
        ({"metrics": "accuracy"}, "must be a list"),
        ({"smoothing": 0.1}, "option of objective 'classification' 'smoothing'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        build("classification", **options)


def test_class_weights_name_every_class():
    with pytest.raises(InputError, match=r"class_weights of 2 classes.*all 3 classes"):
        classification(class_weights=[1, 1]).shape(data(np.asarray([0, 1, 2])))


def test_every_objective_can_be_named():
    assert {build(name).name for name in OBJECTIVES} == set(OBJECTIVES)
    with pytest.raises(InputError, match=r"objective 'regresion'.*did you mean 'regression'"):
        build("regresion")
