"""Fully connected models."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Size
from fedjax_het.common.options import checked
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.norm import Norm, Normalize
from fedjax_het.models.product import dot_general


class Dense(nn.Module):
    """Flattening, optional dropout, linear layer, optional norm, optional ReLU.

    Attributes:
      features: number of outputs.
      relu: whether a ReLU follows.
      dropout: probability of dropping an input.
      norm: name of the norm.
    """

    features: int
    relu: bool = False
    dropout: float = 0.0
    norm: Norm = "none"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool | jax.Array) -> jax.Array:
        """`[batch, ...] -> [batch, features]`."""
        x = x.reshape(x.shape[0], -1)
        if self.dropout > 0.0:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = nn.Dense(self.features, dot_general=dot_general)(x)
        x = Normalize(self.norm)(x, train=train)
        return nn.relu(x) if self.relu else x


@checked
def logistic(input_shape: tuple[int, ...] = (784,), num_classes: Size = 10) -> BlockModel:
    """Multinomial logistic regression, one block."""
    return mlp(input_shape, num_classes, hidden=())


@checked
def mlp(
    input_shape: tuple[int, ...] = (784,),
    num_classes: Size = 10,
    hidden: Sequence[Size] = (200, 200),
    *,
    norm: Norm = "none",
    dropout: float = 0.0,
) -> BlockModel:
    """ReLU network, one block per layer; the default is the 2NN of McMahan et al. (2017).

    With dropout it is the MLP that Gorishniy et al. (2021) recommend for tables.

    Args:
      input_shape: shape of one sample; the network flattens it.
      num_classes: number of outputs.
      hidden: widths of the hidden layers, input side first.
      norm: name of the norm after every hidden linear layer, `"group"`, `"batch"` or `"none"`.
      dropout: probability of dropping a hidden unit in training.

    Returns:
      The model with `len(hidden) + 1` blocks.
    """
    require(
        all(width >= 1 for width in hidden),
        f"hidden = {tuple(hidden)}",
        "widths must be positive",
        "drop the empty layer",
    )
    require_known(norm, ("group", "batch", "none"), "norm")
    require(0.0 <= dropout < 1.0, f"dropout = {dropout}", "must lie in [0, 1)", "use 0.1")
    blocks = [
        flax_block(
            f"fc{i + 1}",
            Dense(width, relu=True, dropout=dropout if i else 0.0, norm=norm),
            # Dropout needs a mode that is known when the program is traced.
            traced_train=i == 0 or dropout == 0.0,
        )
        for i, width in enumerate(hidden)
    ]
    last = Dense(num_classes, dropout=dropout if hidden else 0.0)
    blocks.append(flax_block(f"fc{len(hidden) + 1}", last))
    return BlockModel("mlp" if hidden else "logistic", tuple(blocks), input_shape, num_classes)
