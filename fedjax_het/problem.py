"""The problem that all methods of a comparison share: a model, federated data and a fleet."""

import functools
from dataclasses import dataclass

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.data.federated import FederatedData
from fedjax_het.fleet.cost import CostTable, cost_table
from fedjax_het.fleet.device import Fleet
from fedjax_het.models.base import BlockModel

_MAKERS = {
    "model": "models.build, or models.from_flax for a flax module",
    "data": "data.from_arrays or data.load_federated",
    "fleet": "fleet.Fleet or fleet.build",
}


@dataclass(frozen=True)
class Problem:
    """Model, data and fleet; checked against each other before anything is compiled.

    Attributes:
      model: model to train.
      data: samples of the clients and the test set.
      fleet: devices of the clients; device k belongs to client k.
      cost_override: prices that replace the analytic ones, e.g. a measured profile, or None.
    """

    model: BlockModel
    data: FederatedData
    fleet: Fleet
    cost_override: CostTable | None = None

    def __post_init__(self) -> None:
        for name, kind in (("model", BlockModel), ("data", FederatedData), ("fleet", Fleet)):
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
        require(
            tuple(self.model.input_shape) == tuple(self.data.input_shape),
            f"model input {tuple(self.model.input_shape)}, data {tuple(self.data.input_shape)}",
            "must have the same shape (no batch axis)",
            "build the model with input_shape=data.input_shape",
        )
        require(
            self.model.num_classes >= self.data.num_classes,
            f"model of {self.model.num_classes} outputs, data of {self.data.num_classes} classes",
            "needs an output per class",
            "build the model with num_classes=data.num_classes",
        )
        tokens = self.data.x.dtype == np.int32
        require(
            tokens == bool(np.issubdtype(self.model.input_dtype, np.integer)),
            f"model of {np.dtype(self.model.input_dtype)} inputs, data of {self.data.x.dtype}",
            "a model of tokens needs tokens, any other model numbers",
            "choose a model with input_dtype=int32 for tokens, float32 for all else",
        )
        out = self.model.activation_shapes(1)[-1].shape
        require(
            out[:-1] == (1, *self.data.y.shape[1:]),
            f"model output {list(out)} for one sample, labels {list(self.data.y.shape[1:])}",
            "must be logits for every label of a sample",
            "use a model of sequences for sequences of labels, and of vectors for single ones",
        )

    @functools.cached_property
    def cost(self) -> CostTable:
        """Prices of the model's blocks: FLOPs and bytes per sample."""
        return self.cost_override or cost_table(self.model)

    @property
    def num_clients(self) -> int:
        """Number of clients, n."""
        return self.data.num_clients
