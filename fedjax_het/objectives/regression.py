"""Numbers as labels: squared, absolute and Huber loss, and their metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import checked
from fedjax_het.data.batches import Batch
from fedjax_het.data.federated import FederatedData
from fedjax_het.objectives.class_metrics import named_metrics
from fedjax_het.objectives.metric import Metric
from fedjax_het.objectives.objective import Objective, equal_weights

Array = jax.Array


@checked
def regression(
    *,
    loss: Literal["mse", "mae", "huber"] = "mse",
    delta: float = 1.0,
    metrics: Sequence[str | Metric] = ("mse", "mae", "rmse", "r2"),
) -> Objective:
    r"""Numbers as labels, [N] or [N, ...]; outputs [batch, 1] for [N], else of the labels' shape.

    Args:
      loss: loss of an error e, mean over the numbers of a sample: "mse" $e^2$, "mae" $|e|$, or
        "huber" $e^2 / 2$ up to `delta` and $\delta (|e| - \delta / 2)$ beyond (Huber 1964).
      delta: error from which the Huber loss grows linearly.
      metrics: names of metrics ("mse", "mae", "rmse", "r2"), or `Metric`s.
    """
    require_known(loss, ("mse", "mae", "huber"), "loss of a regression")
    require(np.isfinite(delta) and delta > 0, f"delta = {delta}", "must be positive", "use 1 for 1")

    def losses(values: Array, batch: Batch) -> Array:
        error = errors(values, batch)
        if loss == "mse":
            each = jnp.square(error)
        elif loss == "mae":
            each = jnp.abs(error)
        else:
            each = optax.huber_loss(error, delta=delta)
        return each.mean(axis=1)

    def shape(data: FederatedData) -> tuple[int, ...]:
        require(
            data.num_classes == 0,
            f"labels of {data.name!r}, {data.y.dtype}{list(data.y.shape)}",
            "must be floats for a regression; integers are classes",
            "convert them with .astype(numpy.float32), also in test_y",
        )
        return data.y.shape[1:] or (1,)

    settings = {"loss": loss, "delta": delta}
    found = named_metrics(metrics, METRICS)
    return Objective("regression", losses, "values", equal_weights, shape, found, settings)


def errors(values: Array, batch: Batch) -> Array:
    """Outputs minus labels, float32[B, numbers of a sample]."""
    count = batch.y.shape[0]
    return values.reshape(count, -1) - batch.y.reshape(count, -1)


def _averaged(name: str, each: Callable[[Array], Array], finish: Callable = float) -> Metric:
    def measure(values: Array, batch: Batch) -> tuple[Array, Array]:
        return each(errors(values, batch)).mean(axis=1), jnp.ones(batch.y.shape[0])

    return Metric(name, measure, finish, higher_is_better=False, elementwise=True)


def mse() -> Metric:
    """Mean squared error."""
    return _averaged("mse", jnp.square)


def mae() -> Metric:
    """Mean absolute error."""
    return _averaged("mae", jnp.abs)


def rmse() -> Metric:
    """Root of the mean squared error."""
    return _averaged("rmse", jnp.square, np.sqrt)


def r2() -> Metric:
    r"""Coefficient of determination, $1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2$.

    The mean over the outputs, as scikit-learn's `r2_score`; not defined where labels do not vary.
    """

    def measure(values: Array, batch: Batch) -> tuple[Array, Array]:
        y = batch.y.reshape(batch.y.shape[0], -1)
        return errors(values, batch), y

    def finish(measured: tuple[np.ndarray, np.ndarray]) -> float:
        error, y = (a.astype(np.float64) for a in measured)
        spread = np.sum(np.square(y - np.mean(y, axis=0)), axis=0)
        varies = spread > 0
        if not varies.any():
            return float("nan")
        return float(np.mean(1.0 - np.sum(np.square(error), axis=0)[varies] / spread[varies]))

    return Metric("r2", measure, finish, kind="all")


# Makers of metrics by name.
METRICS: Mapping[str, Callable[[], Metric]] = {f.__name__: f for f in (mse, mae, rmse, r2)}
