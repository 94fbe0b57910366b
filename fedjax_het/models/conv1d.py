"""A convolutional network for windows of sensor readings, one block per stage."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Size
from fedjax_het.common.options import checked
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.norm import Norm, Normalize
from fedjax_het.models.pooling import max_pool
from fedjax_het.models.product import dot_general

Array = jax.Array


class Stage(nn.Module):
    """Convolution over time, norm, ReLU, maximum of two neighbours.

    Attributes:
      features: number of output channels.
      kernel: length of the window.
      norm: name of the norm.
    """

    features: int
    kernel: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Array, *, train: bool | Array) -> Array:
        """`[batch, T, channels] -> [batch, T // 2, features]`."""
        x = nn.Conv(
            self.features,
            (self.kernel,),
            kernel_init=nn.initializers.he_normal(),
            use_bias=self.norm == "none",
            conv_general_dilated=conv_general_dilated,
        )(x)
        return max_pool(nn.relu(Normalize(self.norm)(x, train=train)))


class Pooled(nn.Module):
    """Mean over time, dropout, linear layer.

    Attributes:
      num_classes: number of outputs.
      dropout: probability of dropping an input.
    """

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[batch, T, channels] -> [batch, num_classes]`."""
        x = jnp.mean(x, axis=1)
        if self.dropout > 0.0:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dot_general=dot_general)(x)


@checked
def conv1d(
    input_shape: tuple[int, ...] = (128, 9),
    num_classes: Size = 6,
    *,
    channels: Sequence[Size] = (32, 64, 128),
    kernel: Size = 5,
    norm: Norm = "group",
    dropout: float = 0.0,
) -> BlockModel:
    """Network for windows of sensors; the defaults fit the 2.56 s windows of UCI HAR.

    Args:
      input_shape: shape of one window, `(T, channels)`.
      num_classes: number of outputs.
      channels: channels of each stage; every stage halves the time.
      kernel: length of the window of the convolutions.
      norm: name of the norm, `"group"`, `"batch"` or `"none"`.
      dropout: probability of dropping an input of the last layer in training.

    Returns:
      The model with the blocks conv1..N, fc.
    """
    require_known(norm, ("group", "batch", "none"), "norm")
    require(
        len(input_shape) == 2 and input_shape[0] >= 2 ** len(channels),
        f"input_shape = {tuple(input_shape)}",
        f"must be that of windows [T, channels] with T of at least {2 ** len(channels)}",
        "cut longer windows, or give fewer channels",
    )
    require(
        min(channels, default=0) >= 1 and kernel >= 1,
        f"channels = {tuple(channels)}, kernel = {kernel}",
        "must be positive",
        "use (32, 64, 128) and 5",
    )
    require(0.0 <= dropout < 1.0, f"dropout = {dropout}", "must lie in [0, 1)", "use 0.5")
    blocks = [
        flax_block(f"conv{i + 1}", Stage(width, kernel, norm), traced_train=True)
        for i, width in enumerate(channels)
    ]
    blocks.append(flax_block("fc", Pooled(num_classes, dropout)))
    return BlockModel("conv1d", tuple(blocks), tuple(input_shape), num_classes)
