"""Residual networks for small images (He et al., 2016), by residual unit or by module."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Depth, Size
from fedjax_het.common.options import checked
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block, flax_block
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.norm import Norm, Normalize
from fedjax_het.models.product import dot_general

Array = jax.Array

_EXPANSION = 4


class ConvNorm(nn.Module):
    """Convolution and norm, without activation.

    Attributes:
      features: number of output channels.
      kernel: side of the square window.
      stride: stride of the convolution.
      norm: name of the norm: `"group"`, `"batch"` or `"none"` (the convolution then has a bias).
    """

    features: int
    kernel: int
    stride: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Array, *, train: bool | Array) -> Array:
        """`[batch, height, width, channels] -> [batch, height', width', features]`."""
        x = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            (self.stride, self.stride),
            # Not "SAME", which with a stride would pad on the far side only.
            padding=self.kernel // 2,
            use_bias=self.norm == "none",
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            conv_general_dilated=conv_general_dilated,
        )(x)
        return Normalize(self.norm)(x, train=train)


class Stem(nn.Module):
    """3x3 convolution, norm, ReLU.

    Attributes:
      features: number of output channels.
      norm: name of the norm, see `ConvNorm`.
    """

    features: int
    norm: Norm

    @nn.compact
    def __call__(self, x: Array, *, train: bool | Array) -> Array:
        """`[batch, height, width, channels] -> [batch, height, width, features]`."""
        return nn.relu(ConvNorm(self.features, 3, 1, self.norm)(x, train=train))


class Unit(nn.Module):
    """Residual unit: two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1 with 4x the channels.

    The shortcut is a strided 1x1 convolution with norm if the shape changes, else the identity.

    Attributes:
      planes: channels of the 3x3 convolutions.
      stride: stride of the (first) 3x3 convolution.
      bottleneck: whether the unit is a bottleneck.
      norm: name of the norm, see `ConvNorm`.
    """

    planes: int
    stride: int
    bottleneck: bool
    norm: Norm

    @nn.compact
    def __call__(self, x: Array, *, train: bool | Array) -> Array:
        """`[batch, height, width, channels] -> [batch, height', width', channels']`."""
        layer = functools.partial(ConvNorm, norm=self.norm)
        if self.bottleneck:
            y = nn.relu(layer(self.planes, 1, 1)(x, train=train))
            y = nn.relu(layer(self.planes, 3, self.stride)(y, train=train))
            y = layer(_EXPANSION * self.planes, 1, 1)(y, train=train)
        else:
            y = nn.relu(layer(self.planes, 3, self.stride)(x, train=train))
            y = layer(self.planes, 3, 1)(y, train=train)
        # At another width the shapes of two stages may agree by chance.
        if x.shape != y.shape or self.has_variable("params", "shortcut"):
            x = layer(y.shape[-1], 1, self.stride, name="shortcut")(x, train=train)
        return nn.relu(x + y)


class Group(nn.Module):
    """Residual units, one after the other.

    Attributes:
      units: residual units, input side first.
    """

    units: tuple[Unit, ...]

    @nn.compact
    def __call__(self, x: Array, *, train: bool | Array) -> Array:
        """`[batch, height, width, channels] -> [batch, height', width', channels']`."""
        for unit in self.units:
            x = unit(x, train=train)
        return x


class Head(nn.Module):
    """Mean over space and one linear layer.

    Attributes:
      num_classes: number of outputs.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[batch, height, width, channels] -> [batch, num_classes]`."""
        return nn.Dense(self.num_classes, dot_general=dot_general)(jnp.mean(x, axis=(1, 2)))


@checked
def resnet(
    input_shape: tuple[int, ...] = (32, 32, 3),
    num_classes: Size = 10,
    *,
    units_per_group: Depth,
    bottleneck: bool,
    norm: Norm = "group",
    granularity: Literal["unit", "module"] = "unit",
    stats_policy: Literal["mean", "frozen"] = "mean",
    width: Size = 16,
) -> BlockModel:
    """ResNet for small images.

    Basic units form three groups of `width`, 2 and 4 times `width` planes. Bottlenecks form six
    groups (each width twice, the second time without a stride), as in DTFL, whose eight modules
    md1..md8 are the stem, the six groups and the head.

    Args:
      input_shape: shape of one image.
      num_classes: number of outputs.
      units_per_group: number of residual units in a group.
      bottleneck: whether the units are bottlenecks.
      norm: name of the norm, `"group"` by default; DTFL's tables are for `"batch"`.
      granularity: size of a block. `"unit"`: stem, every residual unit, head (FedEL, FedPMT);
        `"module"`: stem, every group, head (DTFL).
      stats_policy: treatment of running statistics, see `BlockModel`; matters for `norm="batch"`
        only.
      width: planes of the first group.

    Returns:
      The model.
    """
    require_known(norm, ("group", "batch", "none"), "norm")
    require_known(granularity, ("unit", "module"), "granularity")
    require(len(input_shape) == 3, f"input_shape = {input_shape}", "takes images", "use an mlp")
    for name, value in (("units_per_group", units_per_group), ("width", width)):
        require(value >= 1, f"{name} = {value}", "must be positive", "use 3 units of width 16")
    repeats = 2 if bottleneck else 1
    groups = [
        [
            Unit(
                planes=width * 2**stage,
                stride=2 if stage > 0 and repeat == 0 and unit == 0 else 1,
                bottleneck=bottleneck,
                norm=norm,
            )
            for unit in range(units_per_group)
        ]
        for stage in range(3)
        for repeat in range(repeats)
    ]
    block = functools.partial(flax_block, traced_train=True)
    blocks: list[Block] = [block("stem", Stem(width, norm))]
    for g, units in enumerate(groups):
        if granularity == "module":
            blocks.append(block(f"group{g + 1}", Group(tuple(units))))
        else:
            blocks += [block(f"group{g + 1}.{u + 1}", unit) for u, unit in enumerate(units)]
    blocks.append(flax_block("head", Head(num_classes)))
    depth = len(groups) * units_per_group * (3 if bottleneck else 2) + 2
    return BlockModel(
        f"resnet{depth}", tuple(blocks), input_shape, num_classes, stats_policy=stats_policy
    )


resnet20 = functools.partial(resnet, units_per_group=3, bottleneck=False)
resnet56 = functools.partial(resnet, units_per_group=3, bottleneck=True)
resnet110 = functools.partial(resnet, units_per_group=6, bottleneck=True)
