"""Small convolutional networks of the federated literature, one block per layer."""

from typing import Literal

import flax.linen as nn
import jax

from fedjax_het.common.errors import require
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.mlp import Dense
from fedjax_het.models.pooling import max_pool


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


def _require_images(input_shape: tuple[int, ...]) -> None:
    require(
        len(input_shape) == 3,
        f"input_shape = {tuple(input_shape)}",
        "must be that of images [height, width, channels]",
        "reshape the samples, or use an mlp",
    )


def leaf_cnn(
    input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10, hidden: int = 512
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
    blocks = (
        flax_block("conv1", Conv(32, 5, pool=True)),
        flax_block("conv2", Conv(64, 5, pool=True)),
        flax_block("fc1", Dense(hidden, relu=True)),
        flax_block("fc2", Dense(num_classes)),
    )
    return BlockModel("leaf_cnn", blocks, input_shape, num_classes)


def pfl_cnn(input_shape: tuple[int, ...] = (32, 32, 3), num_classes: int = 10) -> BlockModel:
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


def cifar_cnn(input_shape: tuple[int, ...] = (32, 32, 3), num_classes: int = 10) -> BlockModel:
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


def adel_cnn2(input_shape: tuple[int, ...] = (28, 28, 1), num_classes: int = 10) -> BlockModel:
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
