"""Checks of a model's structure and of indices of its blocks."""

import jax

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree


def check_structure(
    name: str, blocks: int, exits: int, stats_policy: str, compute_dtype: str
) -> None:
    """Raises `InputError` unless these are valid fields of a model.

    Args:
      name: name of the model.
      blocks: number of its blocks.
      exits: number of its exit heads.
      stats_policy: rule of running statistics, see `BlockModel`.
      compute_dtype: dtype of the computation, see `BlockModel`.
    """
    require(blocks > 0, f"model {name!r} has no blocks", "needs one", "add one")
    require(
        stats_policy in ("mean", "frozen"),
        f"stats_policy = {stats_policy!r}",
        "must be 'mean' or 'frozen'",
        "use 'mean' unless the statistics were trained elsewhere",
    )
    require_known(compute_dtype, ("float32", "bfloat16"), "compute_dtype")
    require(
        exits in (0, blocks - 1),
        f"model {name!r} has {exits} exit heads",
        f"must have one after each of the first {blocks - 1} blocks, or none",
        "use with_exits(model)",
    )


def check_head(name: str, stats: PyTree) -> None:
    """Raises `InputError` if the exit head called `name` has running statistics."""
    require(
        not jax.tree.leaves(stats),
        f"exit head {name!r} has running statistics",
        "heads must not, or clients that leave elsewhere would change them",
        "use GroupNorm in exit heads",
    )


def check_has_exits(exit: int, name: str, num_blocks: int, exits: int) -> None:
    """Raises `InputError` unless the model has heads to leave by after block `exit`."""
    require(
        exits > 0,
        f"exit = {exit}",
        f"model {name!r} has no exit heads but its own after block {num_blocks - 1}",
        "use with_exits(model)",
    )


def check_block(what: str, block: int, name: str, num_blocks: int, remedy: str) -> None:
    """Raises `InputError` unless `block`, named `what` in the message, is in the model."""
    require(
        0 <= block < num_blocks,
        f"{what} = {block}",
        f"must be a block of {name!r}, 0..{num_blocks - 1}",
        remedy,
    )


def check_boundary(block: int, name: str, num_blocks: int) -> None:
    """Raises `InputError` unless the model has a block after `block`."""
    require(
        0 <= block < num_blocks - 1,
        f"block = {block}",
        f"a boundary of {name!r} lies after one of the blocks 0..{num_blocks - 2}",
        "use apply() to run the whole model",
    )
