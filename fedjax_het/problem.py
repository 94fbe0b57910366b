"""The problem that all methods of a comparison share: model, data, fleet and objective."""

import functools
from dataclasses import dataclass

import jax
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.data.federated import FederatedData
from fedjax_het.fleet.cost import CostTable, cost_table
from fedjax_het.fleet.device import Fleet
from fedjax_het.models.base import BlockModel
from fedjax_het.objectives import Objective, classification

# Largest number of trained parameters: 40 GB, of which a round holds several copies.
_MOST_PARAMETERS = 10**10

_MAKERS = {
    "model": "models.build, or models.from_flax for a flax module",
    "data": "data.from_arrays or data.load_federated",
    "fleet": "fleet.Fleet or fleet.build",
    "objective": "objectives.classification, regression, ..., or objectives.Objective",
}


@dataclass(frozen=True)
class Problem:
    """Model, data, fleet and objective; checked against each other before anything is compiled.

    Attributes:
      model: model to train.
      data: samples of the clients and the test set.
      fleet: devices of the clients; device k belongs to client k.
      cost_override: prices that replace the analytic ones, e.g. a measured profile, or None.
      objective: loss and metrics; None for `objectives.classification()`, whose metrics include the
        perplexity if the samples are sequences of labels.
    """

    model: BlockModel
    data: FederatedData
    fleet: Fleet
    cost_override: CostTable | None = None
    objective: Objective = None  # type: ignore[assignment]  # `__post_init__` fills it in

    def __post_init__(self) -> None:
        if self.objective is None:
            object.__setattr__(self, "objective", default_objective(self.data))
        kinds = {"model": BlockModel, "data": FederatedData, "fleet": Fleet, "objective": Objective}
        for name, kind in kinds.items():
            part = getattr(self, name)
            require(
                isinstance(part, kind),
                f"{name} of type {type(part).__name__}",
                f"must be a {kind.__name__}",
                f"make it with {_MAKERS[name]}",
            )
        require(
            self.data.num_clients == self.fleet.num_devices,
            f"data of {self.data.num_clients} clients, fleet of {self.fleet.num_devices} devices",
            "must be equal in number: device k belongs to client k",
            "build the fleet with num_clients devices",
        )
        model, data = self.model, self.data
        require(
            model.input_shape == data.input_shape,
            f"model input {model.input_shape}, data {data.input_shape}",
            "must have the same shape (no batch axis)",
            "build the model with input_shape=data.input_shape",
        )
        wanted, held = (
            jax.tree.map(lambda dtype: np.dtype(dtype).name, part.input_dtype)
            for part in (model, data)
        )
        require(
            wanted == held,
            f"model of {wanted} inputs, data of {held}",
            "a model of tokens needs tokens, any other model numbers",
            "choose a model with input_dtype=int32 for tokens, float32 for all else",
        )
        parameters = sum(leaf.size for leaf in jax.tree.leaves(model.shapes.params))
        require(
            parameters <= _MOST_PARAMETERS,
            f"model {model.name!r} of {parameters:.4g} parameters",
            f"must have at most {_MOST_PARAMETERS:.4g}",
            "use fewer or narrower layers",
        )
        self._check_outputs(model.activation_shapes(1)[-1].shape[1:])

    def _check_outputs(self, outputs: tuple[int, ...]) -> None:
        """Raises `InputError` unless the objective can use the model's outputs and the labels."""
        shape = self.objective.shape(self.data)
        if shape is None:
            return
        logits = self.objective.outputs == "logits"
        require(
            outputs[:-1] == shape[:-1],
            f"model output {list(outputs)} for one sample, labels {list(self.data.y.shape[1:])}",
            f"must be {list(shape)} for the objective {self.objective.name!r}",
            "use a model of sequences for sequences of labels, of vectors for single ones, or "
            "objectives.multilabel() for labels of which several hold",
        )
        require(
            outputs[-1] == shape[-1] or (logits and outputs[-1] > shape[-1]),
            f"model of {outputs[-1]} outputs, data of {shape[-1]} "
            + ("classes" if logits else "numbers per sample"),
            "needs an output per class" if logits else "must be equal",
            f"build the model with num_classes={shape[-1]}",
        )

    @functools.cached_property
    def cost(self) -> CostTable:
        """Prices of the model's blocks, FLOPs and bytes per sample."""
        return self.cost_override or cost_table(self.model)

    @property
    def num_clients(self) -> int:
        """Number of clients, n."""
        return self.data.num_clients


def default_objective(data: FederatedData) -> Objective:
    """The objective of a `Problem` that states none, see `Problem`."""
    if isinstance(data, FederatedData) and data.y.ndim == 2:
        return classification(metrics=("accuracy", "perplexity"))
    return classification()
