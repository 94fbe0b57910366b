"""VGG for small images (Simonyan & Zisserman, 2015): every convolution is one block."""

import functools
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Size
from fedjax_het.common.options import checked
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.mlp import Dense
from fedjax_het.models.norm import Norm, Normalize
from fedjax_het.models.pooling import max_pool

# Channels of the convolutions of each stage; a stage ends in 2x2 pooling.
# Largest factor on the channels.
_MOST_WIDTH = 100

_STAGES = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
}


class ConvNorm(nn.Module):
    """3x3 convolution, norm, ReLU, optional 2x2 max pooling.

    Attributes:
      features: number of output channels.
      norm: name of the norm, `"group"`, `"batch"` or `"none"`.
      pool: whether to pool.
    """

    features: int
    norm: Norm
    pool: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool | jax.Array) -> jax.Array:
        """`[batch, height, width, channels] -> [batch, height', width', features]`."""
        x = nn.Conv(
            self.features,
            (3, 3),
            kernel_init=nn.initializers.he_normal(),
            conv_general_dilated=conv_general_dilated,
        )(x)
        x = nn.relu(Normalize(self.norm)(x, train=train))
        return max_pool(x, 2) if self.pool else x


@checked
def vgg(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: Size = 10,
    *,
    depth: Literal[11, 13, 16] = 11,
    norm: Norm = "group",
    hidden: Sequence[Size] = (),
    stats_policy: Literal["mean", "frozen"] = "mean",
    width: float = 1.0,
) -> BlockModel:
    """VGG with five pooling stages.

    Args:
      input_shape: shape of one image, at least 32x32.
      num_classes: number of outputs.
      depth: depth of the network, 11, 13 or 16 (8, 10 or 13 convolutions).
      norm: name of the norm after every convolution; `"none"` as in PR-FL, `"batch"` as in ADEL-FL.
      hidden: widths of ReLU layers before the last layer. `()` is the usual CIFAR head; PR-FL uses
        `(512, 512)`, which gives 9,747,136 weights and 3,786 biases at depth 11 without norm.
      stats_policy: treatment of running statistics, see `BlockModel`; matters for `norm="batch"`
        only.
      width: factor on the channels of the convolutions.

    Returns:
      The model with the blocks conv1..convN, fc1..fcM.
    """
    require(depth in _STAGES, f"depth = {depth}", "must be 11, 13 or 16", "use 11")
    require_known(norm, ("group", "batch", "none"), "norm")
    require(
        len(input_shape) == 3 and min(input_shape[:2]) >= 32,
        f"input_shape = {input_shape}",
        "five poolings need images of at least 32x32",
        "pad or resize the images, or use leaf_cnn",
    )
    require(
        0 < width <= _MOST_WIDTH,
        f"width = {width}",
        f"must be positive and at most {_MOST_WIDTH}",
        "use 1.0 for the published network",
    )
    modules: list[nn.Module] = [
        ConvNorm(max(1, round(channels * width)), norm, pool=i == len(stage) - 1)
        for stage in _STAGES[depth]
        for i, channels in enumerate(stage)
    ]
    blocks = [
        flax_block(f"conv{i + 1}", module, traced_train=True) for i, module in enumerate(modules)
    ]
    layers = [Dense(features, relu=True) for features in hidden] + [Dense(num_classes)]
    blocks += [flax_block(f"fc{i + 1}", layer) for i, layer in enumerate(layers)]
    return BlockModel(
        f"vgg{depth}", tuple(blocks), input_shape, num_classes, stats_policy=stats_policy
    )


vgg11 = functools.partial(vgg, depth=11)
vgg13 = functools.partial(vgg, depth=13)
vgg16 = functools.partial(vgg, depth=16)
