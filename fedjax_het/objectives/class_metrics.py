"""Metrics of classes, from logits: hits, counts per class, areas under curves."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.data.batches import Batch
from fedjax_het.objectives.metric import Metric, over_positions

Array = jax.Array


class Labels(NamedTuple):
    """Integer labels, of which some positions may not count.

    Attributes:
      ignore: label of the positions that do not count; None if all do.
    """

    ignore: int | None = None

    def valid(self, y: Array) -> Array:
        """1 for every label that counts, float32, the shape of `y`."""
        return jnp.ones(y.shape) if self.ignore is None else (y != self.ignore).astype(jnp.float32)

    def known(self, y: Array) -> Array:
        """The labels, with 0 in place of ignored ones."""
        return y if self.ignore is None else jnp.where(y != self.ignore, y, 0)


EVERY = Labels()


def _hits(right: Array, y: Array, labels: Labels) -> tuple[Array, Array]:
    if labels.ignore is None:
        return right.reshape(right.shape[0], -1).mean(axis=1), jnp.ones(right.shape[0])
    return over_positions(right, labels.valid(y))


def accuracy(labels: Labels = EVERY) -> Metric:
    """Share of labels whose logit is the largest."""

    def measure(logits: Array, batch: Batch) -> tuple[Array, Array]:
        right = (jnp.argmax(logits, axis=-1).astype(batch.y.dtype) == batch.y).astype(jnp.float32)
        return _hits(right, batch.y, labels)

    return Metric("accuracy", measure, share=True)


def top(k: int, labels: Labels = EVERY) -> Metric:
    """Share of labels whose logit is among the k largest; ties count for the label."""

    def measure(logits: Array, batch: Batch) -> tuple[Array, Array]:
        own = jnp.take_along_axis(logits, labels.known(batch.y)[..., None], axis=-1)
        above = jnp.sum((logits > own).astype(jnp.int32), axis=-1)
        return _hits((above < k).astype(jnp.float32), batch.y, labels)

    return Metric(f"top_{k}", measure, share=True)


def perplexity(labels: Labels = EVERY) -> Metric:
    """Exp of the mean cross-entropy per label."""

    def measure(logits: Array, batch: Batch) -> tuple[Array, Array]:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels.known(batch.y))
        return _hits(losses, batch.y, labels)

    def finish(mean: Any) -> Any:
        with np.errstate(over="ignore"):  # of a model that diverged
            return np.exp(mean)

    return Metric("perplexity", measure, finish, higher_is_better=False, elementwise=True)


def _per_class(logits: Array, batch: Batch, labels: Labels) -> Array:
    """Counts of hits, predictions and labels of each class in each sample, float32[B, 3, C]."""
    classes = logits.shape[-1]
    valid = labels.valid(batch.y)[..., None]
    said = jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes) * valid
    true = jax.nn.one_hot(labels.known(batch.y), classes) * valid
    counts = jnp.stack([said * true, said, true], axis=1)
    return counts.reshape(*counts.shape[:2], -1, classes).sum(axis=2)


def _counted(
    name: str, finish: Callable[[Any], Any], labels: Labels, *, share: bool = True
) -> Metric:
    measure = functools.partial(_per_class, labels=labels)
    return Metric(name, measure, finish, kind="sum", share=share)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Quotients, NaN where the denominator is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if known.size else float("nan")


def f1_scores(counts: np.ndarray) -> np.ndarray:
    """F1 of each class from counts [3, C] of hits, predictions and labels; NaN if it never occurs.

    $2 tp / (2 tp + fp + fn)$.
    """
    return _ratio(2 * counts[0], counts[1] + counts[2])


def macro_f1(labels: Labels = EVERY) -> Metric:
    """Mean F1 over the classes that occur as a label or a prediction, as in scikit-learn."""
    return _counted("macro_f1", lambda counts: _mean(f1_scores(counts)), labels)


def per_class_accuracy(labels: Labels = EVERY) -> Metric:
    """Share of each class's labels that are predicted (recall), a list of C."""
    return _counted("per_class_accuracy", lambda counts: _ratio(counts[0], counts[2]), labels)


def mean_iou(labels: Labels = EVERY) -> Metric:
    """Mean over the classes that occur of intersection over union of label and prediction."""

    def finish(counts: np.ndarray) -> float:
        hits, said, true = counts
        return _mean(_ratio(hits, said + true - hits))

    return _counted("mean_iou", finish, labels)


def confusion_matrix(labels: Labels = EVERY) -> Metric:
    """Counts of labels (rows) by prediction (columns), a list of C lists."""

    def measure(logits: Array, batch: Batch) -> Array:
        classes = logits.shape[-1]
        pair = labels.known(batch.y) * classes + jnp.argmax(logits, axis=-1).astype(batch.y.dtype)
        flat = pair.reshape(pair.shape[0], -1)
        weight = labels.valid(batch.y).reshape(flat.shape)
        count = jax.vmap(lambda p, w: jnp.zeros(classes**2).at[p].add(w))(flat, weight)
        return count.reshape(-1, classes, classes)

    return Metric("confusion_matrix", measure, lambda counts: counts, kind="sum")


def auroc(labels: Labels = EVERY) -> Metric:
    """Area under the ROC curve of each class against the rest, mean over the classes that occur.

    Not defined where a single class occurs. scikit-learn's `roc_auc_score(average="macro",
    multi_class="ovr")` if every class occurs.
    """

    def measure(logits: Array, batch: Batch) -> tuple[Array, Array]:
        shares = jax.nn.softmax(logits)
        return shares, jnp.where(labels.valid(batch.y) > 0, batch.y, -1)

    def finish(measured: tuple[np.ndarray, np.ndarray]) -> float:
        scores, y = (a.reshape(-1, *a.shape[measured[1].ndim :]) for a in measured)
        scores, y = scores[y >= 0], y[y >= 0]
        return areas(scores, y[:, None] == np.arange(scores.shape[1]))

    return Metric("auroc", measure, finish, kind="all", share=True)


def areas(scores: np.ndarray, true: np.ndarray) -> float:
    """Mean area under the ROC curve over the columns in which both values occur; else NaN.

    Args:
      scores: score of each label, float[N, C].
      true: whether each label holds, bool[N, C].
    """
    from sklearn.metrics import roc_auc_score  # takes a second to import

    defined = np.flatnonzero(true.any(axis=0) & ~true.all(axis=0))
    found = [roc_auc_score(true[:, c], scores[:, c]) for c in defined]
    return float(np.mean(found)) if found else float("nan")


# Makers of metrics by name; `top_<k>` is understood for every k.
METRICS: Mapping[str, Callable[[Labels], Metric]] = {
    "accuracy": accuracy,
    "auroc": auroc,
    "confusion_matrix": confusion_matrix,
    "macro_f1": macro_f1,
    "mean_iou": mean_iou,
    "per_class_accuracy": per_class_accuracy,
    "perplexity": perplexity,
    "top_5": functools.partial(top, 5),
}


def named_metrics(
    metrics: Sequence[str | Metric], known: Mapping[str, Callable[..., Metric]], *arguments: Any
) -> tuple[Metric, ...]:
    """The metrics with these names, or as given.

    Args:
      metrics: names, keys of `known`, or metrics.
      known: makers of metrics by name.
      *arguments: arguments of the makers.

    Raises:
      InputError: for an unknown name.
    """
    require(
        not isinstance(metrics, str),
        f"metrics = {metrics!r}",
        "must be a list of metrics",
        f"write [{metrics!r}]",
    )
    found = []
    for metric in metrics:
        if isinstance(metric, Metric):
            found.append(metric)
            continue
        ranked = re.fullmatch(r"top_([1-9]\d*)", str(metric))
        if ranked and "top_5" in known:
            found.append(top(int(ranked[1]), *arguments))
            continue
        if not isinstance(metric, str):
            raise InputError(
                f"metric of type {type(metric).__name__}: must be a name or a Metric; "
                f"choose from {', '.join(sorted(known))}"
            )
        require_known(metric, known, "metric")
        found.append(known[metric](*arguments))
    return tuple(found)
