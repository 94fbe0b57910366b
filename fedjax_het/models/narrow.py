"""Models at a smaller width: the blocks of a model with the parameters of a sub-network by width.

A sub-network is described by a `Layout` and by the number of units of every group
(`contract/widths.py`), and has the parameters of `take`. Its blocks are those of the model, whose
layers run at the width of these parameters; nothing is built again, so that networks of users have
sub-networks like built-in ones::

    native    counts: a = 4                     live: -             smallest program
    padded    counts: a = 8                     live: a = 4         one program for several widths
              [ 4 units ]                       [ 4 units | 0 0 0 0 ]

Both compute the same. In the padded form the number of live units may differ between the clients
of one program, and the coordinates of the other units hold zeros.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import flax.errors
import jax

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.widths import Counts, Layout, take
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block
from fedjax_het.models.narrow_layers import AtWidth
from fedjax_het.models.origin import require_complete

Array = jax.Array


def sub_network(
    model: BlockModel,
    layout: Layout,
    counts: Counts,
    *,
    live: Counts | None = None,
    scale: Any = 1.0,
) -> BlockModel:
    """The model whose blocks and heads run at another width.

    Its `init` gives the first units of new variables of `model`. Every norm is that of the narrower
    network: a group norm forms its groups from the channels that there are.

    Modules of a user's own that divide by their number of channels otherwise than by a norm or in
    the attention of flax do not know of `live`.

    Args:
      model: complete model, of which no part is constant.
      layout: groups of its units.
      counts: number of units of the parameters by group, static.
      live: number of units by group that are not zero, the first ones, static or traced int32[];
        None for all of `counts`.
      scale: factor on the outputs of linear layers that are hidden units, before the norm and in
        train mode only, a float or a traced float32[]: the scaler of HeteroFL (Diao et al., 2021).
        In a block with running statistics it depends on the mode of the block, so
        `stats_policy="frozen"` leaves it out.

    Returns:
      The sub-network.

    Raises:
      InputError: if the counts do not fit the layout; when it runs, if a layer cannot run at
        another width or mixes channels in a way that is not known, with the name of the block.
    """
    require_complete(model, "take its sub-networks")
    for name, given in (("counts", counts), ("live", live)):
        if given is not None:
            _check(name, given, layout.sizes)
    inputs = [model.input_shapes(1), *model.activation_shapes(1)]
    last = model.num_blocks - 1

    def narrowed(kind: str, slot: int, block: Block, b: int) -> Block:
        shapes = inputs[b], inputs[b + 1] if kind == "blocks" else inputs[-1]
        axes = layout.axes.params[kind][slot], layout.axes.stats[kind][slot]
        fixed = kind == "exits" or b == last
        return _narrowed(block, Layout(layout.sizes, axes), counts, live, scale, shapes, fixed)

    blocks = [narrowed("blocks", b, block, b) for b, block in enumerate(model.blocks)]
    exits = [
        narrowed("exits", model.exit_slot(b), head, b + 1) for b, head in enumerate(model.exits)
    ]
    return replace(model, blocks=tuple(blocks), exits=tuple(exits), spec=None)


def _check(name: str, given: Counts, sizes: Counts) -> None:
    require(
        set(given) == set(sizes),
        f"{name} of the groups {sorted(given)}",
        f"must be those of the layout, {sorted(sizes)}",
        "give every group a number of units",
    )
    for group, count in given.items():
        require(
            isinstance(count, jax.core.Tracer) or 1 <= int(count) <= sizes[group],
            f"{name}[{group!r}] = {count}",
            f"must lie in 1..{sizes[group]}",
            "keep at least one unit of every group",
        )


def _narrowed(
    block: Block,
    layout: Layout,
    counts: Counts,
    live: Counts | None,
    scale: Any,
    shapes: tuple[PyTree, Any],
    fixed: bool,
) -> Block:
    """A block at another width.

    Args:
      block: block or head of the complete model.
      layout: groups, and the axes of the block's parameters and statistics.
      counts: number of units, as in `sub_network`.
      live: number of live units, as in `sub_network`.
      scale: factor, as in `sub_network`.
      shapes: shapes of the input and output of the block in the complete model.
      fixed: whether the outputs are those of the model, which have one width.
    """
    own = Layout(layout.sizes, layout.axes[0])

    def init(key: Array, x: Any) -> tuple[PyTree, PyTree]:
        # `x` has the narrow width, and says nothing about the complete block.
        params, stats = take(layout, counts, block.init(key, shapes[0]), None)
        return params, stats

    def apply(
        params: PyTree,
        stats: PyTree,
        x: PyTree,
        *,
        train: bool | Array,
        key: Array | None,
        **options: Any,
    ) -> tuple[Array, PyTree]:
        at = AtWidth(block.name, own, counts, live, scale, train)
        with at.running(), _named(block.name):
            y, stats = block.apply(params, stats, x, train=train, key=key, **options)
        like = shapes[1].shape
        require(
            y.ndim == len(like) and (not fixed or y.shape[1:] == like[1:]),
            f"block {block.name!r} at another width with outputs {list(y.shape)}",
            f"must have the axes of {list(like)}",
            "read widths from the inputs, or give the module a method at_width",
        )
        return y, stats

    return Block(block.name, init, apply, block.traced_train)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Inside, errors of the layers of a block become `InputError`s with its name."""
    try:
        yield
    except (TypeError, ValueError, AssertionError) as error:
        misfit = isinstance(error.__cause__, flax.errors.ScopeParamShapeError)
        if isinstance(error, InputError) and not misfit:
            raise
        reason = str(error.__cause__ if misfit else error).strip().split("\n")[0]
        raise InputError(
            f"block {name!r} cannot run at another width ({reason or type(error).__name__}); take "
            "its parameters with the same counts, and give modules that read a width from an "
            "attribute a method at_width"
        ) from error
