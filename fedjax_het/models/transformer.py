"""A small causal transformer for next-symbol prediction, one block per encoder layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Depth, Size
from fedjax_het.common.options import checked
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Lengths, flax_block
from fedjax_het.models.norm import LayerNorm
from fedjax_het.models.product import dot_general

Array = jax.Array


class Embedding(nn.Module):
    """Vectors of symbols and of their positions.

    Attributes:
      symbols: size of the vocabulary.
      width: length of a vector.
    """

    symbols: int
    width: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """`int32[batch, T] -> float32[batch, T, width]`."""
        scale = nn.initializers.normal(0.02)
        table = self.param("symbol", scale, (self.symbols, self.width))
        place = self.param("position", scale, (tokens.shape[1], self.width))
        x = jnp.take(table, tokens, axis=0, mode="clip")
        return x + jnp.broadcast_to(place[None], x.shape)

    def at_width(self, lengths: Lengths) -> dict[str, int]:
        """Attributes at another width, see `narrow_layers`."""
        return {"width": sum(lengths("symbol")[1])}


class Encoder(nn.Module):
    """Pre-norm layer: masked self-attention and a two-layer network, each with a shortcut.

    Attributes:
      width: length of a vector.
      heads: number of attention heads; must divide `width`.
      hidden: width of the inner layer.
    """

    width: int
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`float32[batch, T, width]` -> same shape; position t attends to positions up to t."""
        batch, length, _ = x.shape
        z = LayerNorm()(x)

        def split(name: str) -> Array:
            parts = nn.Dense(self.width, dot_general=dot_general, name=name)(z)
            return parts.reshape(batch, length, self.heads, self.width // self.heads)

        query, key, value = split("query"), split("key"), split("value")
        scores = jnp.einsum("bthd,bshd->bhts", query, key) / (self.width // self.heads) ** 0.5
        past = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(jnp.broadcast_to(past[None, None], scores.shape), scores, -1e9)
        shares = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bhts,bshd->bthd", shares, value)
        x = x + nn.Dense(self.width, dot_general=dot_general, name="out")(
            mixed.reshape(batch, length, self.width)
        )
        z = nn.Dense(self.hidden, dot_general=dot_general, name="expand")(LayerNorm()(x))
        return x + nn.Dense(self.width, dot_general=dot_general, name="contract")(nn.gelu(z))

    def at_width(self, lengths: Lengths) -> dict[str, int]:
        """Attributes at another width, see `narrow_layers`: `width` is that inside the heads."""
        return {"width": sum(lengths("query", "kernel")[1])}


class Output(nn.Module):
    """Norm and linear layer at every position.

    Attributes:
      symbols: size of the vocabulary.
    """

    symbols: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`float32[batch, T, width] -> float32[batch, T, symbols]`."""
        return nn.Dense(self.symbols, dot_general=dot_general)(LayerNorm()(x))


@checked
def transformer(
    input_shape: tuple[int, ...] = (80,),
    num_classes: Size = 79,
    layers: Depth = 4,
    width: Size = 64,
    heads: Size = 4,
    hidden: Size = 128,
) -> BlockModel:
    """Causal transformer over windows of T symbols.

    Args:
      input_shape: shape of one sample, `(T,)`.
      num_classes: size of the vocabulary.
      layers: number of encoder layers.
      width: length of the vectors inside.
      heads: number of attention heads.
      hidden: inner width of an encoder layer.

    Returns:
      The model with the blocks embedding, encoder1..N, output; logits `[batch, T, num_classes]`. It
      has no exit heads; `with_exits` adds heads that predict at every position.
    """
    require(
        len(input_shape) == 1,
        f"input_shape = {tuple(input_shape)}",
        "must be that of windows of symbols [T]",
        "use tinyshakespeare or shakespeare",
    )
    for name, value in (("layers", layers), ("width", width), ("hidden", hidden)):
        require(value >= 1, f"{name} = {value}", "must be at least 1", "use 4 layers of width 64")
    require(
        heads >= 1 and width % heads == 0,
        f"heads = {heads}",
        f"must divide the width {width}",
        "use 4",
    )
    blocks = [flax_block("embedding", Embedding(num_classes, width))]
    blocks += [flax_block(f"encoder{i + 1}", Encoder(width, heads, hidden)) for i in range(layers)]
    blocks.append(flax_block("output", Output(num_classes)))
    return BlockModel(
        "transformer",
        tuple(blocks),
        tuple(input_shape),
        num_classes,
        input_dtype=jnp.int32,
    )
