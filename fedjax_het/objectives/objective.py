"""The objective of a problem: its loss, the meaning of the model's outputs, and its metrics."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.jaxprs import digest
from fedjax_het.data.batches import Batch
from fedjax_het.data.federated import FederatedData
from fedjax_het.objectives.metric import Metric

Array = jax.Array
Outputs = Literal["logits", "log_odds", "values"]


def equal_weights(batch: Batch) -> Array:
    """The weight 1 for every sample, float32[B]."""
    return jnp.ones_like(batch.weight)


def any_shape(data: FederatedData) -> None:
    """The shape of an objective that takes outputs of any shape."""
    del data


@dataclass(frozen=True, eq=False)
class Objective:
    r"""What a model is trained for and how it is judged; methods minimise `mean`.

    The loss of a batch is $\sum_i w_i l_i / \sum_i w_i$ over its real samples. Everything that a
    method computes of it (early exits, both halves of a split, probes of importance) uses the same
    function::

        def pinball(outputs, batch):          # float32[B, 1], labels float32[B]
            error = batch.y - outputs[:, 0]
            return jnp.maximum(0.9 * error, -0.1 * error)

        fh.Problem(model, data, fleet, objective=fh.objectives.Objective("pinball", pinball))

    Attributes:
      name: name in records.
      losses: function `(outputs, batch) -> float32[B]`, the loss of each sample; traced.
      outputs: meaning of the last axis of the model's outputs: "logits" of classes, of which one
        holds (softmax); "log_odds" of labels that hold independently (sigmoid); or "values".
      weight: function `batch -> float32[B]`, the weight of each sample in the loss, from its inputs
        and labels; traced.
      shape: function from the data to the shape of the outputs for one sample; it raises
        `InputError` if the objective cannot use the labels. For logits the last axis may be longer.
        None of it, the default, takes any outputs.
      metrics: metrics of an evaluation, beside the loss; a run's target refers to the first, or to
        the loss if there are none.
      settings: options that made the objective, for the identity of a run.
    """

    name: str
    losses: Callable[[Array, Batch], Array]
    outputs: Outputs = "values"
    weight: Callable[[Batch], Array] = equal_weights
    shape: Callable[[FederatedData], tuple[int, ...] | None] = any_shape
    metrics: tuple[Metric, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_known(self.outputs, ("logits", "log_odds", "values"), "outputs of an objective")
        require(
            callable(self.losses) and callable(self.weight) and callable(self.shape),
            f"objective {self.name!r}",
            "losses, weight and shape must be functions",
            "give losses(outputs, batch) -> float32[B]",
        )
        object.__setattr__(self, "metrics", tuple(self.metrics))
        names = [metric.name for metric in self.metrics]
        require(
            len(set(names)) == len(names) and "loss" not in names,
            f"metrics {names} of objective {self.name!r}",
            "must have different names, none of them 'loss'",
            "rename one",
        )

    def described(self, outputs: jax.ShapeDtypeStruct, batch: Batch) -> dict[str, Any]:
        """Name, options and metrics, and a digest of the loss as it is computed; JSON types.

        Args:
          outputs: shape of the outputs for a batch.
          batch: shapes of the batch.
        """
        return {
            "name": self.name,
            **self.settings,
            "metrics": [metric.name for metric in self.metrics],
            "digest": digest(jax.make_jaxpr(self.mean)(outputs, batch)),
        }

    def total(self, batch: Batch) -> Array:
        """Weight of all real samples of a batch, float32 scalar."""
        return jnp.sum(batch.weight * self.weight(batch))

    def mean(self, outputs: Array, batch: Batch) -> Array:
        """Loss of a batch, float32 scalar; 0 if no sample has a weight.

        Args:
          outputs: outputs of the model for the batch, float32[B, ...].
          batch: batch of samples.
        """
        weight = batch.weight * self.weight(batch)
        total = jnp.sum(weight)
        return jnp.sum(self.losses(outputs, batch) * weight) / jnp.where(total > 0, total, 1.0)
