"""The same clients in PyTorch: a loop over clients with plain SGD, on all cores.

It gets the very batches that the cohort's program draws; `benchmarks.micro.training` prints how far
its averaged model is from ours. Importing this module needs the extra "peers".
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# OpenMP's threads otherwise spin while they wait; with any other work on the machine that costs
# PyTorch a factor of ten. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn

from fedjax_het.algorithm import Variables

PyTree = Any

# Padding of the convolutions of the models that have a twin here; every convolution is followed by
# ReLU and 2x2 max pooling, every dense layer but the last by ReLU.
PADDING = {
    "leaf_cnn": "same",
    "cifar_cnn": "same",
    "adel_cnn2": "valid",
    "mlp": "same",
    "logistic": "same",
}


def all_cores() -> None:
    """Lets PyTorch use every core."""
    torch.set_num_threads(os.cpu_count() or 1)


def gemm(size: int) -> Callable[[], Any]:
    """A float32 product of two square matrices."""
    a = torch.ones(size, size)
    return lambda: a @ a


class Twin:
    """A model of ours as `nn.Sequential`, with its weights.

    Args:
      name: a key of `PADDING`.
      start: the weights.
    """

    def __init__(self, name: str, start: Variables):
        self._names = [next(iter(block)) for block in start.params["blocks"]]
        leaves = [next(iter(block.values())) for block in start.params["blocks"]]
        layers: list[nn.Module] = []
        self._images = False
        self._channels = 1  # of the activation that is flattened
        for leaf in leaves:
            *window, inputs, outputs = leaf["kernel"].shape
            if window:
                conv = nn.Conv2d(inputs, outputs, window[0], padding=PADDING[name])
                layers += [conv, nn.ReLU(), nn.MaxPool2d(2)]
                self._images, self._channels = True, outputs
            else:
                layers += [] if self._first_dense(layers) else [nn.Flatten()]
                layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.model = nn.Sequential(*layers[:-1])
        self._trained = [m for m in self.model if isinstance(m, nn.Conv2d | nn.Linear)]
        with torch.no_grad():
            for layer, leaf in zip(self._trained, leaves, strict=True):
                layer.weight.copy_(self._weight(layer, np.asarray(leaf["kernel"])))
                assert layer.bias is not None
                layer.bias.copy_(torch.from_numpy(np.array(leaf["bias"])))

    @staticmethod
    def _first_dense(layers: list[nn.Module]) -> nn.Module | None:
        return next((layer for layer in layers if isinstance(layer, nn.Linear)), None)

    def _reorder(self, layer: nn.Module) -> int:
        """Channels by which the inputs of `layer` are regrouped; 1 for all but the first dense."""
        return self._channels if layer is self._first_dense(list(self.model)) else 1

    def _weight(self, layer: nn.Module, kernel: np.ndarray) -> torch.Tensor:
        if kernel.ndim == 4:
            return torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
        rows = kernel.reshape(-1, self._reorder(layer), kernel.shape[-1]).swapaxes(0, 1)
        return torch.from_numpy(rows.reshape(kernel.shape).T.copy())

    def _kernel(self, layer: nn.Module, weight: np.ndarray) -> np.ndarray:
        if weight.ndim == 4:
            return weight.transpose(2, 3, 1, 0)
        rows = weight.T.reshape(self._reorder(layer), -1, weight.shape[0]).swapaxes(0, 1)
        return rows.reshape(weight.T.shape)

    def inputs(self, x: jax.Array) -> torch.Tensor:
        """Inputs with channels first, PyTorch's default, if there are convolutions."""
        values = torch.from_numpy(np.array(x))
        return torch.movedim(values, -1, -3).contiguous() if self._images else values

    def params(self) -> PyTree:
        """The weights in our layout."""
        blocks = [
            {
                name: {
                    "bias": layer.state_dict()["bias"].numpy().copy(),
                    "kernel": self._kernel(layer, layer.weight.detach().numpy()).copy(),
                }
            }
            for name, layer in zip(self._names, self._trained, strict=True)
        ]
        return {"blocks": tuple(blocks), "exits": ()}


def torch_loop(
    name: str, start: Variables, x: jax.Array, y: jax.Array, learning_rate: float
) -> Callable[[], PyTree]:
    """Per client: load the model, one SGD step a mini-batch, add to the average.

    Args:
      name: a key of `PADDING`.
      start: the model every client starts from.
      x: float32[clients, steps, batch, ...], as `jax_peers.client_batches` returns them.
      y: int32[clients, steps, batch].
      learning_rate: of plain SGD.

    Returns:
      A function that trains the clients and returns the averaged parameters in our layout.
    """
    all_cores()
    twin = Twin(name, start)
    model, inputs = twin.model, twin.inputs(x)
    labels = torch.from_numpy(np.asarray(y).astype(np.int64))
    initial = {k: v.clone() for k, v in model.state_dict().items()}
    criterion = nn.CrossEntropyLoss()

    def run() -> PyTree:
        total = {k: torch.zeros_like(v) for k, v in initial.items()}
        for client_x, client_y in zip(inputs, labels, strict=True):
            model.load_state_dict(initial)
            optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
            for batch_x, batch_y in zip(client_x, client_y, strict=True):
                optimizer.zero_grad()
                criterion(model(batch_x), batch_y).backward()
                optimizer.step()
            for k, v in model.state_dict().items():
                total[k] += v / len(inputs)
        model.load_state_dict(total)
        return twin.params()

    return run
