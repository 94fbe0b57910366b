"""Metrics: per sample on the device, combined over any set of samples on the host."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.data.batches import Batch

Array = jax.Array


class Metric(NamedTuple):
    """A metric of an evaluation.

    The device measures every sample; the host combines the measurements over the test set, and over
    the samples of each client.

    Attributes:
      name: name of its column in records.
      measure: function `(outputs, batch) -> pytree`, leading axis B, traced. For kind "mean" it is
        the pair (value, weight), both float32[B].
      finish: function from the combined measurements to the metric, a float (NaN if it is not
        defined) or an array; on the host, float64. It gets the weighted mean of the values for kind
        "mean", the sums over the samples for "sum", and the stacked measurements for "all".
      kind: way in which samples are combined. "all" keeps every measurement, as AUROC needs.
      higher_is_better: direction of the metric.
      share: whether the metric lies in [0, 1] and is shown in percent.
      elementwise: whether `finish` of a kind "mean" also takes an array of means, float64[n], and
        returns the metric of each, float64[n]. Without it, it is called for every client by itself,
        which takes seconds for a million of them; the default `finish` needs no such promise.
    """

    name: str
    measure: Callable[[Array, Batch], PyTree]
    finish: Callable[[Any], Any] = float
    kind: Literal["mean", "sum", "all"] = "mean"
    higher_is_better: bool = True
    share: bool = False
    elementwise: bool = False

    def over(self, measured: PyTree) -> Any:
        """The metric over a set of samples; None if it is not defined on them.

        Args:
          measured: measurements of the samples, NumPy arrays with a leading axis.
        """
        if self.kind == "all":
            return self.finished(measured)
        if self.kind == "sum":
            sums = jax.tree.map(lambda a: np.sum(a, axis=0, dtype=np.float64), measured)
            return self.finished(sums)
        value, weight = (np.asarray(a, np.float64) for a in measured)
        total = np.sum(weight)
        return self.finished(np.sum(value * weight) / total) if total > 0 else None

    def finished(self, combined: Any) -> Any:
        """The result of `finish` as Python numbers and lists, None where it is not a number."""
        return _plain(self.finish(combined))

    def of_each(self, means: np.ndarray) -> np.ndarray | None:
        """The metric of several clients, for the kind "mean".

        Args:
          means: weighted mean of the values of each client's samples, float64[k].

        Returns:
          `finished` of each mean, float64[k], NaN where it is not defined; None if the metric is
          not a number.
        """
        if self.finish is float:
            return means
        if self.elementwise:
            return np.asarray(self.finish(means), np.float64)
        return as_column([self.finished(mean) for mean in means])


def as_column(values: Sequence[Any]) -> np.ndarray | None:
    """Results of `finished` or `over` as float64[n], NaN for None; None if one is a list."""
    if any(isinstance(value, list) for value in values):
        return None
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _plain(value: Any) -> Any:
    if np.ndim(value):
        return [_plain(one) for one in value]
    return None if np.isnan(value) else float(value)


def over_positions(values: Array, valid: Array) -> tuple[Array, Array]:
    """Mean of values over the valid positions of each sample, and their share, both float32[B].

    Args:
      values: value of each position, [B, ...].
      valid: weight of each position, float32 [B, ...] of the same shape.
    """
    axes = tuple(range(1, values.ndim))
    count = jnp.sum(valid, axes)
    mean = jnp.sum(values * valid, axes) / jnp.where(count > 0, count, 1.0)
    return mean, count / max(values.size // values.shape[0], 1)
