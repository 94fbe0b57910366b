"""Early exits: a small head after every block, whose outputs a loss can use."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.models import checks
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block, flax_block
from fedjax_het.models.origin import require_complete
from fedjax_het.models.product import dot_general


class ExitHead(nn.Module):
    """Mean over the axes that the outputs lack, then one linear layer (methods/fedel.md 2.4).

    Attributes:
      num_classes: size of the last axis of the outputs.
      positions: sizes of the axes between batch and last axis of the outputs: `()` for one vector a
        sample, `(T,)` for a prediction per symbol, `(H, W)` for one per pixel.
    """

    num_classes: int
    positions: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Outputs `[batch, *positions, num_classes]` of an activation `[batch, ..., channels]`.

        An activation at another resolution gives outputs there, which are interpolated linearly.
        """
        kept = len(self.positions)
        x = jnp.mean(x, axis=tuple(range(1 + kept, x.ndim - 1)))
        y = nn.Dense(self.num_classes, dot_general=dot_general)(x)
        places = y.shape[1:-1] + (1,) * (kept - (y.ndim - 2))
        y = y.reshape(y.shape[0], *places, y.shape[-1])
        if places == self.positions:
            return y
        return jax.image.resize(y, (y.shape[0], *self.positions, y.shape[-1]), "linear")


def with_exits(model: BlockModel, *, shared: bool = False) -> BlockModel:
    """`model` with a head after every block but the last: mean over space or time, then linear.

    A model that predicts at every position of a sequence or an image gets heads that also do.

    Args:
      model: model whose existing heads, if any, are replaced.
      shared: whether all depths share one head, for transformers, whose blocks have activations of
        one shape.

    Returns:
      The model with `exits`; its blocks are initialised as before.

    Raises:
      InputError: if a shared head would have activations of different shapes, or the model has
        constant values already.
    """
    require_complete(model, "give it exit heads")
    shapes = model.activation_shapes(1)
    widths = sorted({z.shape for z in shapes[:-1]})
    require(
        not shared or len(widths) < 2,
        f"a shared exit head for model {model.name!r}",
        f"its blocks give activations of shapes {widths}",
        "give every block a head of its own (exits = True)",
    )
    head = ExitHead(model.num_classes, shapes[-1].shape[1:-1])
    exits = tuple(flax_block(f"exit_{block.name}", head) for block in model.blocks[:-1])
    spec = model.spec and {**model.spec, "exits": "shared" if shared else True}
    return replace(model, exits=exits, shared_exit=shared, spec=spec)


def truncated(model: BlockModel, block: int) -> tuple[BlockModel, Callable[[Variables], Variables]]:
    """The network that ends after a block, with the head there as its last block.

    Args:
      model: model with exit heads.
      block: last block to keep; L-1 keeps all, and the network's own head.

    Returns:
      The smaller network, without exits, and the function from variables of `model` to its own. In
      eval mode it computes `model.apply(..., exit=block)`.
    """
    last = model.num_blocks - 1
    checks.check_block("block", block, model.name, last + 1, "name the last block to keep")
    if block < last:
        checks.check_has_exits(block, model.name, last + 1, len(model.exits))
    head = slice(block, block + 1) if block < last else slice(0)
    slots = [model.exit_slot(b) for b in range(last)[head]]
    smaller = replace(
        model,
        name=f"{model.name}[:{block + 1}]",
        blocks=(*model.blocks[: block + 1], *model.exits[head]),
        exits=(),
        shared_exit=False,
        spec=None,
        origin=None,
    )

    def own(variables: Variables) -> Variables:
        def of(tree: PyTree) -> PyTree:
            heads = (tree["exits"][slot] for slot in slots)
            return {"blocks": (*tree["blocks"][: block + 1], *heads), "exits": ()}

        return Variables(of(variables.params), of(variables.stats))

    return smaller, own


def ensemble(
    model: BlockModel, exits: Sequence[int]
) -> tuple[BlockModel, Callable[[Variables], Variables]]:
    """The network whose outputs are the mean of those of several heads, as a model of one block.

    Args:
      model: model with exit heads.
      exits: blocks whose heads count; L-1 is the network's own head.

    Returns:
      The network, and the function from variables of `model` to its own.
    """
    exits = tuple(exits)

    def init(key: jax.Array, x: Any) -> tuple[PyTree, PyTree]:
        del x
        return tuple(model.init(key))

    def apply(
        params: PyTree, stats: PyTree, x: PyTree, *, train: bool, key: Any, weight: Any = None
    ) -> tuple[jax.Array, PyTree]:
        variables = Variables(params, stats)
        outputs, stats = model.apply_exits(
            variables, x, train=train, key=key, weight=weight, exits=exits
        )
        return jnp.mean(outputs, axis=0), stats

    whole = BlockModel(
        f"{model.name}_ensemble",
        (Block("ensemble", init, apply),),
        model.input_shape,
        model.num_classes,
        input_dtype=model.input_dtype,
        stats_policy=model.stats_policy,
    )

    def own(variables: Variables) -> Variables:
        params, stats = ({"blocks": (tree,), "exits": ()} for tree in variables)
        return Variables(params, stats)

    return whole, own
