r"""One class per label: classification of samples, of tokens, and of pixels.

The loss of a label y with logits z is $-\log p_y$ with $p = \mathrm{softmax}(z)$; a sample with
several labels (a sequence, an image) has the mean over those that are not ignored, and a weight in
proportion to their number, so that the loss of a batch is the mean over its labels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.common.arrays import require_unmasked
from fedjax_het.common.errors import InputError, require
from fedjax_het.common.numbers import Count
from fedjax_het.common.options import checked
from fedjax_het.data.batches import Batch
from fedjax_het.data.federated import FederatedData
from fedjax_het.objectives.class_metrics import METRICS, Labels, named_metrics
from fedjax_het.objectives.metric import Metric, over_positions
from fedjax_het.objectives.objective import Objective

Array = jax.Array
Metrics = Sequence[str | Metric]


@checked
def classification(
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    focal: float = 0.0,
    metrics: Metrics = ("accuracy",),
) -> Objective:
    r"""One class per sample, or per position; the default of a `Problem`.

    Args:
      label_smoothing: share e of the target that is spread over all C classes: the target of the
        label's class is 1 - e + e / C (Szegedy et al. 2016).
      class_weights: weight of each class in the loss, C numbers >= 0; the loss of a batch is the
        weighted mean, as in PyTorch's `CrossEntropyLoss`. None for equal weights.
      focal: exponent gamma of the focal loss $-(1 - p_y)^\gamma \log p_y$ (Lin et al. 2017); 0 is
        cross-entropy.
      metrics: names of metrics (`METRICS`: "accuracy", "top_<k>", "macro_f1", "auroc",
        "per_class_accuracy", "confusion_matrix", "mean_iou", "perplexity"), or `Metric`s.
    """
    return _categorical(
        "classification",
        metrics,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        focal=focal,
    )


@checked
def next_token(
    *,
    ignore: Count | None = -1,
    label_smoothing: float = 0.0,
    metrics: Metrics = ("accuracy", "perplexity"),
) -> Objective:
    """One class per position of a sequence, labels int32[N, T]: language models, tagging.

    Loss, accuracy and perplexity are means over the labels that are not ignored, so they do not
    depend on the padding.

    Args:
      ignore: label of the positions that do not count (padding); None counts all.
      label_smoothing: share of the target that is spread over all classes; see `classification`.
      metrics: metrics; see `classification`.
    """
    return _categorical(
        "next_token", metrics, ignore=ignore, label_smoothing=label_smoothing, axes="[N, T]"
    )


@checked
def segmentation(
    *,
    ignore: Count | None = -1,
    class_weights: Sequence[float] | None = None,
    focal: float = 0.0,
    metrics: Metrics = ("mean_iou", "accuracy"),
) -> Objective:
    """One class per pixel, labels int32[N, H, W], outputs [batch, H, W, C].

    Args:
      ignore: label of the pixels that do not count; None counts all.
      class_weights: weight of each class in the loss; see `classification`.
      focal: exponent of the focal loss; see `classification`.
      metrics: metrics; see `classification`.
    """
    return _categorical(
        "segmentation",
        metrics,
        ignore=ignore,
        class_weights=class_weights,
        focal=focal,
        axes="[N, H, W]",
    )


def _are_weights(weights: np.ndarray) -> bool:
    usable = weights.ndim == 1 and bool(np.isfinite(weights).all()) and bool((weights >= 0).all())
    return usable and float(weights.sum()) > 0


def _categorical(
    name: str,
    metrics: Metrics,
    *,
    ignore: Count | None = None,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    focal: float = 0.0,
    axes: str = "",
) -> Objective:
    require(
        0 <= label_smoothing < 1,
        f"label_smoothing = {label_smoothing}",
        "must lie in [0, 1)",
        "use 0.1",
    )
    require(
        np.isfinite(focal) and focal >= 0, f"focal = {focal}", "must be at least 0", "use 0, or 2"
    )
    require(
        not (focal and label_smoothing),
        f"focal = {focal} with label_smoothing = {label_smoothing}",
        "are two changes of one loss",
        "leave one of them out",
    )
    require_unmasked(class_weights, "class_weights")
    weights = None if class_weights is None else np.asarray(class_weights, np.float32)
    require(
        weights is None or _are_weights(weights),
        f"class_weights = {class_weights}",
        "must be one finite number >= 0 per class, not all of them 0",
        "leave it out for equal weights",
    )
    labels = Labels(ignore)

    def each(logits: Array, y: Array) -> Array:
        """Loss of every label, the shape of `y`."""
        if label_smoothing:
            classes = logits.shape[-1]
            target = jax.nn.one_hot(y, classes)
            return optax.softmax_cross_entropy(logits, optax.smooth_labels(target, label_smoothing))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses * (1.0 - jnp.exp(-losses)) ** jnp.float32(focal) if focal else losses

    plain = ignore is None and weights is None

    def of_labels(y: Array) -> Array:
        """Weight of every label, float32, the shape of `y`."""
        weight = labels.valid(y)
        return weight if weights is None else weight * jnp.asarray(weights)[labels.known(y)]

    def losses(logits: Array, batch: Batch) -> Array:
        loss = each(logits, labels.known(batch.y))
        if plain:
            return loss.reshape(loss.shape[0], -1).mean(axis=1)
        return over_positions(loss, of_labels(batch.y))[0]

    def weight(batch: Batch) -> Array:
        if plain:
            return jnp.ones_like(batch.weight)
        own = of_labels(batch.y)
        return own.reshape(own.shape[0], -1).mean(axis=1)

    def shape(data: FederatedData) -> tuple[int, ...]:
        if not data.num_classes:
            raise InputError(
                f"labels of {data.name!r}, {data.y.dtype}{list(data.y.shape)}: must be integer "
                f"classes for the objective {name!r}; convert them with .astype(numpy.int32), or "
                "use objectives.regression() or multilabel()"
            )
        require(
            not axes or data.y.ndim == axes.count(",") + 1,
            f"labels of {data.name!r} of shape {list(data.y.shape)}",
            f"must be {axes} for the objective {name!r}",
            "use objectives.classification() for one label per sample",
        )
        require(
            weights is None or len(weights) == data.num_classes,
            f"class_weights of {0 if weights is None else len(weights)} classes",
            f"must name all {data.num_classes} classes of {data.name!r}",
            "give one weight per class",
        )
        for part in ("y", "test_y", "val_y"):
            y = getattr(data, part)
            low = 0 if y is None else int(np.min(y, where=y != ignore, initial=0))
            require(
                low >= 0,
                f"{part} has the label {low}",
                f"must be a class in 0..{data.num_classes - 1}"
                + ("" if ignore is None else f", or {ignore} for positions that do not count"),
                "number the classes from 0, and mark padding with the ignored label: "
                "objectives.next_token(ignore=-1)",
            )
        return (*data.y.shape[1:], data.num_classes)

    settings = {
        "ignore": ignore,
        "label_smoothing": label_smoothing,
        "class_weights": None if weights is None else weights.tolist(),
        "focal": focal,
    }
    found = named_metrics(metrics, METRICS, labels)
    return Objective(name, losses, "logits", weight, shape, found, settings)
