"""A network of `nets` in PyTorch, which reads and writes weights in our layout."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peers.nets import Layer
from benchmarks.peers.torch_text import LAYERS, Last


class Unit(nn.Module):
    """`relu(body(x) + shortcut(x))`; without a shortcut the identity."""

    def __init__(self, body: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as the shortcut's."""
        return torch.relu(self.body(x) + self.shortcut(x))


class Mean(nn.Module):
    """Mean over space."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, channels, height, width] -> [batch, channels]`."""
        return x.mean((2, 3))


class Net(nn.Module):
    """The network; takes channels-first images, vectors or symbols, gives logits.

    Args:
      network: the layers.
      leaves: initial weights in our order and layout; they also say how wide every layer is.
    """

    def __init__(self, network: Sequence[Layer], leaves: Sequence[np.ndarray]):
        super().__init__()
        self._left = [np.asarray(leaf) for leaf in leaves]
        # The module, and the channels by which the rows of its kernel are regrouped: ours are
        # flattened with the channels last, PyTorch's with the channels first.
        self._loaded: list[tuple[Any, int]] = []
        self._channels = 1
        self.layers = self._sequence(network)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[batch, classes]`; `[batch, classes, T]` for a prediction at every position."""
        return torch.movedim(self.layers(x), -1, 1)

    def leaves(self) -> list[np.ndarray]:
        """The weights in our order and layout."""
        return [
            _kernel(tensor.detach().numpy(), channels)
            for module, channels in self._loaded
            for tensor in _tensors(module)
        ]

    def leaf_of(self, parameter: nn.Parameter) -> int:
        """Place of a parameter, or of its first part, among the leaves."""
        owned = [tensor for module, _ in self._loaded for tensor in _tensors(module)]
        return next(i for i, p in enumerate(owned) if p.data_ptr() == parameter.data_ptr())

    def _sequence(self, network: Sequence[Layer]) -> nn.Sequential:
        return nn.Sequential(*(self._make(layer) for layer in network))

    def _make(self, layer: Layer) -> nn.Module:
        kind, *rest = layer
        if kind == "conv":
            _, window, stride, padding, bias = rest
            weight = self._left[1 if bias else 0]
            pad = window // 2 if padding == "same" else 0
            # Of a sub-network, the weights tell the width.
            self._channels = weight.shape[3]
            conv = nn.Conv2d(weight.shape[2], self._channels, window, stride, pad, bias=bias)
            return self._load(conv, 1)
        if kind == "norm":
            return self._load(nn.GroupNorm(rest[0], self._channels), 1)
        if kind == "dense":
            dense = self._load(nn.Linear(*self._left[1].shape), self._channels)
            self._channels = 1
            return dense
        if kind == "unit":
            body = self._sequence(rest[0])
            return Unit(body, self._sequence(rest[1]) if rest[1] else nn.Identity())
        if kind == "mean":
            self._channels = 1
            return Mean()
        if kind == "dropout":
            return nn.Dropout(rest[0])
        if kind == "pool":
            return nn.MaxPool2d(2)
        if kind in LAYERS:
            return self._load(LAYERS[kind](self._left, *rest), 1)
        if kind == "last":
            return Last()
        return nn.ReLU() if kind == "relu" else nn.Flatten()

    @torch.no_grad()
    def _load(self, module: Any, channels: int) -> nn.Module:
        for tensor in _tensors(module):
            value = self._left.pop(0)
            if value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            elif value.ndim == 2:
                rows = value.reshape(-1, channels, value.shape[-1]).swapaxes(0, 1)
                value = rows.reshape(value.shape).T
            tensor.copy_(torch.from_numpy(value.copy()))
        self._loaded.append((module, channels))
        return module


def _tensors(module: Any) -> Sequence[torch.Tensor]:
    """The parameters of a layer in our order, matrices `[outputs, inputs]`."""
    if hasattr(module, "tensors"):
        return module.tensors()
    return [p for p in (module.bias, module.weight) if p is not None]


def _kernel(weight: np.ndarray, channels: int) -> np.ndarray:
    """Our layout of a weight; undoes what `Net` did to it."""
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0).copy()
    if weight.ndim == 2:
        rows = weight.T.reshape(channels, -1, weight.shape[0]).swapaxes(0, 1)
        return rows.reshape(weight.T.shape).copy()
    return weight.copy()


def channels_first(x: np.ndarray) -> torch.Tensor:
    """Inputs in PyTorch's default layout: images with the channels first, others as they are."""
    values = torch.from_numpy(np.array(x))
    return torch.movedim(values, -1, -3).contiguous() if values.ndim > 2 else values


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int = 500) -> float:
    """Share of right predictions."""
    model.eval()
    parts = zip(x.split(batch), y.split(batch), strict=True)
    right = sum(int((model(a).argmax(1) == b).sum()) for a, b in parts)
    model.train()
    return right / y.numel()
