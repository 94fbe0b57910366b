"""The recurrent network for characters of the federated literature, one block per layer."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Depth, Size
from fedjax_het.common.options import checked
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Lengths, flax_block
from fedjax_het.models.product import dot_general
from fedjax_het.models.recurrence import recurrence

Array = jax.Array


class Vectors(nn.Module):
    """Vectors of symbols.

    Attributes:
      symbols: size of the vocabulary.
      width: length of a vector.
    """

    symbols: int
    width: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """`int32[batch, T] -> float32[batch, T, width]`."""
        shape = (self.symbols, self.width)
        table = self.param("symbol", nn.initializers.normal(0.05), shape)
        return jnp.take(table, tokens, axis=0, mode="clip")

    def at_width(self, lengths: Lengths) -> dict[str, int]:
        """Attributes at another width, see `narrow_layers`."""
        return {"width": sum(lengths("symbol")[1])}


class Lstm(nn.Module):
    """LSTM layer; Glorot input matrix, orthogonal state matrix, forget gates that start open.

    Attributes:
      units: length of a state.
    """

    units: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[batch, T, channels] -> [batch, T, units]`."""
        gates = nn.Dense(
            4 * self.units,
            kernel_init=nn.initializers.glorot_uniform(),
            bias_init=_open,
            dot_general=dot_general,
            name="inputs",
        )(jnp.swapaxes(x, 0, 1))
        orthogonal = nn.initializers.orthogonal()
        matrix = self.param("states", orthogonal, (self.units, 4 * self.units))
        return jnp.swapaxes(recurrence(gates, matrix), 0, 1)

    def at_width(self, lengths: Lengths) -> dict[str, int]:
        """Attributes at another width, see `narrow_layers`."""
        return {"units": sum(lengths("states")[0])}


def _open(key: Array, shape: tuple[int], dtype: Any = jnp.float32) -> Array:
    """A bias of 1 for the forget gates, the second quarter, and 0 for the others."""
    quarter = jnp.arange(shape[0]) // (shape[0] // 4)
    return (quarter == 1).astype(dtype)


class Symbols(nn.Module):
    """Linear layer at every position, or at the last one.

    Attributes:
      symbols: size of the vocabulary.
      last: whether only the last position is predicted.
    """

    symbols: int
    last: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[batch, T, channels]` to `[batch, T, symbols]`, or `[batch, symbols]`."""
        x = x[:, -1] if self.last else x
        return nn.Dense(self.symbols, dot_general=dot_general)(x)


@checked
def char_lstm(
    input_shape: tuple[int, ...] = (80,),
    num_classes: Size = 80,
    *,
    embedding: Size = 8,
    units: Size = 256,
    layers: Depth = 2,
    predict: Literal["every", "last"] = "every",
) -> BlockModel:
    """The character network of McMahan et al. (2017) and of LEAF: vectors of 8, two LSTMs of 256.

    817,872 parameters for 80 symbols (640 + 271,360 + 525,312 + 20,560).

    Args:
      input_shape: shape of one sample, `(T,)`.
      num_classes: size of the vocabulary.
      embedding: length of a symbol's vector.
      units: length of an LSTM's state.
      layers: number of LSTM layers.
      predict: positions with a prediction of the next symbol: `"every"`, outputs
        `[batch, T, num_classes]`, or `"last"` as in LEAF, outputs `[batch, num_classes]`.

    Returns:
      The model with the blocks embedding, lstm1..N, output.
    """
    require(
        len(input_shape) == 1,
        f"input_shape = {tuple(input_shape)}",
        "must be that of windows of symbols [T]",
        "use tinyshakespeare or shakespeare",
    )
    require_known(predict, ("every", "last"), "predict")
    for name, value in (("embedding", embedding), ("units", units), ("layers", layers)):
        require(value >= 1, f"{name} = {value}", "must be at least 1", "use two layers of 256")
    blocks = [flax_block("embedding", Vectors(num_classes, embedding))]
    blocks += [flax_block(f"lstm{i + 1}", Lstm(units)) for i in range(layers)]
    blocks.append(flax_block("output", Symbols(num_classes, predict == "last")))
    return BlockModel(
        "char_lstm", tuple(blocks), tuple(input_shape), num_classes, input_dtype=jnp.int32
    )
