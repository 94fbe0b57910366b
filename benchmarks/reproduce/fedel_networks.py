"""The networks of FedEL's study; see `fedel`."""

import flax.linen as nn
import jax

from benchmarks.reproduce import fedel_table1
from fedjax_het.models import from_flax, with_exits
from fedjax_het.models.base import BlockModel
from fedjax_het.models.cnn import Conv
from fedjax_het.models.norm import GroupNorm

NETS = ("pyramid", "plain6")
# Channels with which the path to block 1 takes 60 % of the slowest device's budget, as in VGG16.
PYRAMID = (5, 10, 20, 28, 28, 28, 28)


class _Layer(nn.Module):
    """3x3 convolution, ReLU, group norm, optional pooling."""

    features: int
    pool: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return GroupNorm(4)(Conv(self.features, 3, pool=self.pool)(x))


class _Pair(nn.Module):
    """Two layers in one block, for the study of granularity."""

    first: nn.Module
    second: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(self.first(x))


class _Head(nn.Module):
    """Mean over space, then linear."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(10)(x.mean(axis=(1, 2)))


def network(name: str = "pyramid", coarse: bool = False) -> BlockModel:
    """One of `NETS`.

    Args:
      name: "pyramid", that of `fedel_table1`, or "plain6", six convolutions (8, 8, 8, pool, 16, 16,
        16) and a head.
      coarse: whether a block of "plain6" has two layers.
    """
    if name == "pyramid":
        return fedel_table1.network((14, 14, 1), PYRAMID)
    layers = [_Layer(8), _Layer(8), _Layer(8, pool=True), _Layer(16), _Layer(16), _Layer(16)]
    blocks: list[nn.Module] = list(layers)
    if coarse:
        blocks = [_Pair(a, b) for a, b in zip(layers[::2], layers[1::2])]
    return with_exits(from_flax([*blocks, _Head()], (14, 14, 1), 10, name="plain6"))
