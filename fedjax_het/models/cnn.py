"""Small convolutional networks of the federated literature, one block per layer."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Size
from fedjax_het.common.options import checked
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.mlp import Dense
from fedjax_het.models.norm import Norm, Normalize
from fedjax_het.models.pooling import max_pool
from fedjax_het.models.product import dot_general


class Conv(nn.Module):
    """Convolution, ReLU, optional 2x2 max pooling.

    Attributes:
      features: number of output channels.
      kernel: side of the square window.
      padding: kind of padding, `"SAME"` or `"VALID"`.
      pool: whether to pool.
    """

    features: int
    kernel: int
    padding: Literal["SAME", "VALID"] = "SAME"
    pool: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, height, width, channels] -> [batch, height', width', features]`."""
        window = (self.kernel, self.kernel)
        x = nn.Conv(
            self.features,
            window,
            padding=self.padding,
            conv_general_dilated=conv_general_dilated,
        )(x)
        x = nn.relu(x)
        return max_pool(x, 2) if self.pool else x


class ConvNorm(nn.Module):
    """3x3 convolution with bias, norm, ReLU, then 2x2 max pooling or the mean over space.

    Attributes:
      features: number of output channels.
      norm: name of the norm.
      last: whether the mean over space follows in place of the pooling.
    """

    features: int
    norm: Norm
    last: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool | jax.Array) -> jax.Array:
        """`[batch, H, W, channels]` to `[batch, H / 2, W / 2, features]` or `[batch, features]`."""
        x = nn.Conv(
            self.features,
            (3, 3),
            kernel_init=nn.initializers.he_normal(),
            conv_general_dilated=conv_general_dilated,
        )(x)
        x = nn.relu(Normalize(self.norm)(x, train=train))
        return jnp.mean(x, axis=(1, 2)) if self.last else max_pool(x, 2)


def _require_images(input_shape: tuple[int, ...]) -> None:
    require(
        len(input_shape) == 3,
        f"input_shape = {tuple(input_shape)}",
        "must be that of images [height, width, channels]",
        "reshape the samples, or use an mlp",
    )


@checked
def leaf_cnn(
    input_shape: tuple[int, ...] = (28, 28, 1), num_classes: Size = 10, hidden: Size = 512
) -> BlockModel:
    """The CNN of McMahan et al. (2017) and of LEAF: conv 5x5 32, pool, conv 5x5 64, pool, 512.

    1,663,370 parameters for 28x28x1 and 10 classes (832 + 51,264 + 1,606,144 + 5,130).

    Args:
      input_shape: shape of one image.
      num_classes: number of outputs.
      hidden: width of the fully connected layer; 2048 in LEAF's own code.

    Returns:
      The model with the blocks conv1, conv2, fc1, fc2.
    """
    _require_images(input_shape)
    require(hidden >= 1, f"hidden = {hidden}", "must be positive", "use 512")
    blocks = (
        flax_block("conv1", Conv(32, 5, pool=True)),
        flax_block("conv2", Conv(64, 5, pool=True)),
        flax_block("fc1", Dense(hidden, relu=True)),
        flax_block("fc2", Dense(num_classes)),
    )
    return BlockModel("leaf_cnn", blocks, input_shape, num_classes)


@checked
def pfl_cnn(input_shape: tuple[int, ...] = (32, 32, 3), num_classes: Size = 10) -> BlockModel:
    """The simple CNN of the pfl-research benchmarks: two 3x3 convolutions, dropout, 128.

    Args:
      input_shape: shape of one image.
      num_classes: number of outputs.

    Returns:
      The model with the blocks conv1, conv2, fc1, fc2; dropout 0.25 before fc1 and 0.5 before fc2.
    """
    _require_images(input_shape)
    blocks = (
        flax_block("conv1", Conv(32, 3, padding="VALID")),
        flax_block("conv2", Conv(64, 3, padding="VALID", pool=True)),
        flax_block("fc1", Dense(128, relu=True, dropout=0.25)),
        flax_block("fc2", Dense(num_classes, dropout=0.5)),
    )
    return BlockModel("pfl_cnn", blocks, input_shape, num_classes)


@checked
def cifar_cnn(input_shape: tuple[int, ...] = (32, 32, 3), num_classes: Size = 10) -> BlockModel:
    """Four layers for CIFAR-10 as used with FedPMT: conv 3x3 32, pool, conv 3x3 64, pool, 256.

    Args:
      input_shape: shape of one image.
      num_classes: number of outputs.

    Returns:
      The model with the blocks conv1, conv2, fc1, fc2.
    """
    _require_images(input_shape)
    blocks = (
        flax_block("conv1", Conv(32, 3, pool=True)),
        flax_block("conv2", Conv(64, 3, pool=True)),
        flax_block("fc1", Dense(256, relu=True)),
        flax_block("fc2", Dense(num_classes)),
    )
    return BlockModel("cifar_cnn", blocks, input_shape, num_classes)


@checked
def adel_cnn2(input_shape: tuple[int, ...] = (28, 28, 1), num_classes: Size = 10) -> BlockModel:
    """The CNN of ADEL-FL's MNIST experiments: two 5x5 convolutions of 6 channels, then 50.

    6,422 parameters for 28x28x1 and 10 classes (156 + 906 + 4,850 + 510), without padding.

    Args:
      input_shape: shape of one image.
      num_classes: number of outputs.

    Returns:
      The model with the blocks conv1, conv2, fc1, fc2.
    """
    _require_images(input_shape)
    blocks = (
        flax_block("conv1", Conv(6, 5, padding="VALID", pool=True)),
        flax_block("conv2", Conv(6, 5, padding="VALID", pool=True)),
        flax_block("fc1", Dense(50, relu=True)),
        flax_block("fc2", Dense(num_classes)),
    )
    return BlockModel("adel_cnn2", blocks, input_shape, num_classes)


@checked
def heterofl_cnn(
    input_shape: tuple[int, ...] = (28, 28, 1),
    num_classes: Size = 10,
    *,
    channels: Sequence[Size] = (64, 128, 256, 512),
    norm: Norm = "group",
) -> BlockModel:
    """The CNN of HeteroFL (Diao et al., 2021): 3x3 convolutions with norm, mean, linear layer.

    1,556,874 parameters for 28x28x1 and 10 classes (768 + 74,112 + 295,680 + 1,181,184 + 5,130).

    Args:
      input_shape: shape of one image; every convolution but the last halves its sides.
      num_classes: number of outputs.
      channels: channels of the convolutions.
      norm: name of the norm after every convolution, `"group"` or `"batch"` as in the paper.

    Returns:
      The model with the blocks conv1..N, fc.
    """
    _require_images(input_shape)
    require_known(norm, ("group", "batch", "none"), "norm")
    require(
        len(channels) >= 1 and min(channels) >= 1,
        f"channels = {tuple(channels)}",
        "must be positive",
        "use (64, 128, 256, 512)",
    )
    require(
        min(input_shape[:2]) >= 2 ** (len(channels) - 1),
        f"input_shape = {tuple(input_shape)}",
        f"{len(channels) - 1} poolings need sides of at least {2 ** (len(channels) - 1)}",
        "enlarge the images, or give fewer channels",
    )
    last = len(channels) - 1
    blocks = [
        flax_block(f"conv{i + 1}", ConvNorm(width, norm, i == last), traced_train=True)
        for i, width in enumerate(channels)
    ]
    blocks.append(flax_block("fc", nn.Dense(num_classes, dot_general=dot_general)))
    return BlockModel("heterofl_cnn", tuple(blocks), tuple(input_shape), num_classes)
