"""Labels of which any number hold for a sample: sigmoid cross-entropy and its metrics."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.common.errors import require
from fedjax_het.common.options import checked
from fedjax_het.data.batches import Batch
from fedjax_het.data.federated import FederatedData
from fedjax_het.objectives.class_metrics import areas, f1_scores, named_metrics
from fedjax_het.objectives.metric import Metric
from fedjax_het.objectives.objective import Objective, equal_weights

Array = jax.Array


@checked
def multilabel(
    *,
    positive_weight: float = 1.0,
    metrics: Sequence[str | Metric] = ("macro_f1", "label_accuracy"),
) -> Objective:
    r"""Labels that hold independently, y in {0, 1}, [N, C]; the outputs are log-odds [batch, C].

    The loss of a sample is the mean over labels of $-p y \log s - (1 - y) \log(1 - s)$, with
    $s = \mathrm{sigmoid}(z)$ and p the positive weight.

    Args:
      positive_weight: weight p of the labels that hold; above 1 for rare labels.
      metrics: names of metrics ("macro_f1", "label_accuracy", "exact_match", "auroc"), or
        `Metric`s. A label is predicted if its log-odds are positive.
    """
    require(
        np.isfinite(positive_weight) and positive_weight > 0,
        f"positive_weight = {positive_weight}",
        "must be positive",
        "use the ratio of absent to present labels",
    )

    def losses(log_odds: Array, batch: Batch) -> Array:
        y = batch.y.astype(jnp.float32)
        loss = optax.sigmoid_binary_cross_entropy(log_odds, y)
        loss = loss * (1.0 + (positive_weight - 1.0) * y)
        return loss.reshape(loss.shape[0], -1).mean(axis=1)

    def shape(data: FederatedData) -> tuple[int, ...]:
        require(
            data.y.ndim >= 2,
            f"labels of {data.name!r} of shape {list(data.y.shape)}",
            "must be [N, C] with one column per label",
            "use objectives.classification() for one class per sample",
        )
        for part in ("y", "test_y", "val_y"):
            y = getattr(data, part)
            odd = np.setdiff1d([] if y is None else y, [0, 1])[:1].tolist()
            require(
                not odd,
                f"{part} has the labels {odd}",
                "must be 0 or 1: whether the label of the column holds",
                "make a column per label (multi-hot), e.g. with numpy.eye(C)[labels].max(axis=1)",
            )
        return data.y.shape[1:]

    found = named_metrics(metrics, METRICS)
    settings = {"positive_weight": positive_weight}
    return Objective("multilabel", losses, "log_odds", equal_weights, shape, found, settings)


def _right(log_odds: Array, batch: Batch) -> Array:
    return (log_odds > 0) == (batch.y > 0)


def label_accuracy() -> Metric:
    """Share of labels, present or absent, that are predicted."""

    def measure(log_odds: Array, batch: Batch) -> tuple[Array, Array]:
        right = _right(log_odds, batch).astype(jnp.float32)
        return right.reshape(right.shape[0], -1).mean(axis=1), jnp.ones(right.shape[0])

    return Metric("label_accuracy", measure, share=True)


def exact_match() -> Metric:
    """Share of samples all of whose labels are predicted."""

    def measure(log_odds: Array, batch: Batch) -> tuple[Array, Array]:
        right = _right(log_odds, batch)
        every = right.reshape(right.shape[0], -1).all(axis=1)
        return every.astype(jnp.float32), jnp.ones(right.shape[0])

    return Metric("exact_match", measure, share=True)


def macro_f1() -> Metric:
    """Mean F1 over the labels that occur or are predicted."""

    def measure(log_odds: Array, batch: Batch) -> Array:
        said, true = log_odds > 0, batch.y > 0
        counts = jnp.stack([said & true, said, true], axis=1).astype(jnp.float32)
        return counts.reshape(*counts.shape[:2], -1, counts.shape[-1]).sum(axis=2)

    def finish(counts: np.ndarray) -> float:
        scores = f1_scores(counts)
        known = scores[~np.isnan(scores)]
        return float(np.mean(known)) if known.size else float("nan")

    return Metric("macro_f1", measure, finish, kind="sum", share=True)


def auroc() -> Metric:
    """Mean area under the ROC curve over the labels of which both values occur."""

    def finish(measured: tuple[np.ndarray, np.ndarray]) -> float:
        scores, y = (a.reshape(-1, a.shape[-1]) for a in measured)
        return areas(scores, y > 0)

    return Metric("auroc", lambda z, batch: (z, batch.y), finish, kind="all", share=True)


# Makers of metrics by name.
METRICS: Mapping[str, Callable[[], Metric]] = {
    f.__name__: f for f in (auroc, exact_match, label_accuracy, macro_f1)
}
