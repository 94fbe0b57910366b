"""A small network for segmentation with connections from encoder to decoder.

Blocks pass one array, and the connections cross several blocks. They travel as further channels:
the encoder halves the resolution of what it keeps by moving the pixels of a 2x2 square into
channels, and the decoder moves them back. The model can therefore be cut after every block, and an
activation's bytes include what the connections hold.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Depth, Size
from fedjax_het.common.options import checked
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block, Lengths, flax_block
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.norm import Norm, Normalize
from fedjax_het.models.pooling import max_pool
from fedjax_het.models.product import dot_general

Array = jax.Array

# The kernel that reads all channels of a block.
_FIRST = ("Twice_0", "Conv_0", "kernel")


def fold(x: Array) -> Array:
    """Pixels of 2x2 squares as channels: `[batch, H, W, c] -> [batch, H / 2, W / 2, 4 c]`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // 2, width // 2, 4 * channels)


def unfold(x: Array) -> Array:
    """Inverse of `fold`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels // 4)


def enlarge(x: Array) -> Array:
    """Every pixel as a 2x2 square: `[batch, H, W, c] -> [batch, 2 H, 2 W, c]`."""
    return unfold(jnp.concatenate([x] * 4, axis=-1))


class Twice(nn.Module):
    """Two 3x3 convolutions with norm and ReLU.

    Attributes:
      features: number of output channels.
      norm: name of the norm.
    """

    features: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Array, *, train: bool | Array) -> Array:
        """`[batch, H, W, channels] -> [batch, H, W, features]`."""
        for _ in range(2):
            x = nn.Conv(
                self.features,
                (3, 3),
                kernel_init=nn.initializers.he_normal(),
                use_bias=self.norm == "none",
                conv_general_dilated=conv_general_dilated,
            )(x)
            x = nn.relu(Normalize(self.norm)(x, train=train))
        return x


class Down(nn.Module):
    """Two convolutions, whose result is kept, and its maxima over 2x2 squares.

    Attributes:
      channels: channels of the input that are not kept ones.
      features: number of output channels.
      norm: name of the norm.
    """

    channels: int
    features: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Array, *, train: bool | Array) -> Array:
        """`[batch, H, W, channels + k] -> [batch, H / 2, W / 2, features + 4 (features + k)]`."""
        y = Twice(self.features, self.norm)(x[..., : self.channels], train=train)
        kept = fold(jnp.concatenate([y, x[..., self.channels :]], axis=-1))
        return jnp.concatenate([max_pool(y), kept], axis=-1)

    def at_width(self, lengths: Lengths) -> dict[str, int]:
        """Attributes at another width, see `narrow_layers`."""
        return {"channels": sum(lengths(*_FIRST)[2])}


class Middle(nn.Module):
    """Two convolutions at the lowest resolution; the attributes are those of `Down`."""

    channels: int
    features: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Array, *, train: bool | Array) -> Array:
        """`[batch, H, W, channels + k] -> [batch, H, W, features + k]`."""
        y = Twice(self.features, self.norm)(x[..., : self.channels], train=train)
        return jnp.concatenate([y, x[..., self.channels :]], axis=-1)

    def at_width(self, lengths: Lengths) -> dict[str, int]:
        """Attributes at another width, see `narrow_layers`."""
        return {"channels": sum(lengths(*_FIRST)[2])}


class Up(nn.Module):
    """Two convolutions of the enlarged input and of what was kept last.

    The attributes are those of `Down`; as many channels as `features` were kept last.
    """

    channels: int
    features: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Array, *, train: bool | Array) -> Array:
        """`[batch, H, W, channels + 4 (features + k)] -> [batch, 2 H, 2 W, features + k]`."""
        kept = unfold(x[..., self.channels :])
        inputs = [enlarge(x[..., : self.channels]), kept[..., : self.features]]
        y = Twice(self.features, self.norm)(jnp.concatenate(inputs, axis=-1), train=train)
        return jnp.concatenate([y, kept[..., self.features :]], axis=-1)

    def at_width(self, lengths: Lengths) -> dict[str, int]:
        """Attributes at another width, see `narrow_layers`: `features` is that of what was kept."""
        channels, features = lengths(*_FIRST)[2]
        return {"channels": channels, "features": features}


@checked
def unet(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: Size = 2,
    *,
    width: Size = 16,
    depth: Depth = 2,
    norm: Norm = "group",
) -> BlockModel:
    """U-Net (Ronneberger et al., 2015) for small images, with padding and fewer channels.

    Pixels are enlarged without weights, in place of the paper's transposed convolution.

    Args:
      input_shape: shape of one image; height and width are multiples of `2 ** depth`.
      num_classes: number of outputs of each pixel.
      width: channels at full resolution; every halving doubles them.
      depth: number of halvings.
      norm: name of the norm, `"group"`, `"batch"` or `"none"`.

    Returns:
      The model with the blocks down1..N, middle, upN..1, output; outputs `[batch, H, W,
      num_classes]`.
    """
    require_known(norm, ("group", "batch", "none"), "norm")
    for name, value in (("width", width), ("depth", depth)):
        require(value >= 1, f"{name} = {value}", "must be positive", "use width 16 and depth 2")
    sides = input_shape[:2]
    require(
        len(input_shape) == 3 and all(side % 2**depth == 0 for side in sides),
        f"input_shape = {tuple(input_shape)}",
        f"must be that of images [H, W, channels] with sides that are multiples of {2**depth}",
        "pad or resize the images, or use a smaller depth",
    )

    def block(name: str, module: nn.Module) -> Block:
        return flax_block(name, module, traced_train=True)

    widths = [width * 2**level for level in range(depth + 1)]
    blocks = [
        block(f"down{level + 1}", Down(channels, features, norm))
        for level, (channels, features) in enumerate(zip([input_shape[2], *widths], widths[:-1]))
    ]
    blocks.append(block("middle", Middle(widths[-2], widths[-1], norm)))
    blocks += [
        block(f"up{level + 1}", Up(widths[level + 1], widths[level], norm))
        for level in reversed(range(depth))
    ]
    blocks.append(flax_block("output", nn.Dense(num_classes, dot_general=dot_general)))
    return BlockModel("unet", tuple(blocks), tuple(input_shape), num_classes)
