"""Layers over symbols in PyTorch, as wide as the arrays that they will be given.

`tensors()` are the parameters in our order, matrices with the outputs first as in PyTorch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

Arrays = Sequence[np.ndarray]


class Vectors(nn.Embedding):
    """Vectors of symbols."""

    def __init__(self, leaves: Arrays):
        super().__init__(*leaves[0].shape)

    def tensors(self) -> list[torch.Tensor]:
        """The table."""
        return [self.weight.T]


class Places(nn.Module):
    """Vectors of symbols and of their positions."""

    def __init__(self, leaves: Arrays):
        super().__init__()
        self.position = nn.Parameter(torch.empty(*leaves[0].shape))
        self.symbol = nn.Embedding(*leaves[1].shape)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[batch, T] -> [batch, T, width]`."""
        return self.symbol(tokens) + self.position

    def tensors(self) -> list[torch.Tensor]:
        """Both tables."""
        return [self.position.T, self.symbol.weight.T]


class Lstm(nn.LSTM):
    """PyTorch's LSTM with one bias in place of two, whose sum would learn twice as fast."""

    def __init__(self, leaves: Arrays):
        super().__init__(leaves[1].shape[0], leaves[2].shape[0], batch_first=True)
        self.bias_hh_l0.requires_grad_(False).zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, T, channels] -> [batch, T, units]`."""
        return super().forward(x)[0]

    def tensors(self) -> list[torch.Tensor]:
        """Bias, matrix of the inputs, matrix of the states; gates i, f, g, o."""
        return [self.bias_ih_l0, self.weight_ih_l0, self.weight_hh_l0]


class Last(nn.Module):
    """The last position."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, T, channels] -> [batch, channels]`."""
        return x[:, -1]


class Encoder(nn.TransformerEncoderLayer):
    """PyTorch's pre-norm layer, causal."""

    def __init__(self, leaves: Arrays, heads: int):
        hidden, width = leaves[5].shape
        super().__init__(
            width,
            heads,
            hidden,
            dropout=0.0,
            activation=functools.partial(nn.functional.gelu, approximate="tanh"),
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, T, width]` -> same shape."""
        past = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return super().forward(x, past, is_causal=True)

    def tensors(self) -> list[torch.Tensor]:
        """Both norms, both linear layers from the last, then keys, outputs, queries, values."""
        attention = self.self_attn
        layers = [self.norm1, self.norm2, self.linear2, self.linear1]
        found = [p for layer in layers for p in (layer.bias, layer.weight)]
        queries, keys, values = zip(
            attention.in_proj_bias.chunk(3), attention.in_proj_weight.chunk(3), strict=True
        )
        outputs = attention.out_proj.bias, attention.out_proj.weight
        return [*found, *keys, *outputs, *queries, *values]


class Symbols(nn.Sequential):
    """Norm and linear layer at every position."""

    def __init__(self, leaves: Arrays):
        width, symbols = leaves[1].shape
        super().__init__(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, symbols))

    def tensors(self) -> list[torch.Tensor]:
        """The linear layer's, then the norm's."""
        return [p for layer in reversed(self) for p in (layer.bias, layer.weight)]


LAYERS: dict[str, Any] = {
    "vectors": Vectors,
    "places": Places,
    "lstm": Lstm,
    "encoder": Encoder,
    "symbols": Symbols,
}
