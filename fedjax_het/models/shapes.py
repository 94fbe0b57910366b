"""New variables of blocks, and the shapes between blocks; no block is computed."""

import functools
from collections.abc import Sequence
from typing import Any

import jax

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.models import checks
from fedjax_het.models.block import Block

Array = jax.Array

# Offset of the keys of exit heads, so that they differ from those of the blocks.
EXIT_KEY = 10_000


def output_of(block: Block, params: PyTree, stats: PyTree, x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a block's output in eval mode, from shapes or arrays."""
    apply = functools.partial(block.apply, train=False, key=None)
    return jax.eval_shape(apply, params, stats, x)[0]


def new_variables(
    blocks: Sequence[Block], heads: Sequence[Block], key: Array, samples: PyTree
) -> Variables:
    """New variables of blocks and of the exit heads after the first of them.

    Args:
      blocks: blocks, input side first; block b draws from `fold_in(key, b)`.
      heads: heads with variables of their own, after the blocks 0, 1, ...
      key: typed PRNG key.
      samples: shapes of a batch of samples.

    Returns:
      The variables, see `BlockModel`.

    Raises:
      InputError: if a head has running statistics.
    """
    x, made, exits = samples, [], []
    for b, block in enumerate(blocks):
        made.append(block.init(jax.random.fold_in(key, b), x))
        x = output_of(block, *made[-1], x)
        if b < len(heads):
            exits.append(heads[b].init(jax.random.fold_in(key, EXIT_KEY + b), x))
            checks.check_head(heads[b].name, exits[-1][1])
    return Variables(
        {"blocks": tuple(p for p, _ in made), "exits": tuple(p for p, _ in exits)},
        {"blocks": tuple(s for _, s in made), "exits": tuple(s for _, s in exits)},
    )
