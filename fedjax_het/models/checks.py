"""Checks of a model's structure, of its samples and of indices of its blocks."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require, require_known


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


def check_samples(x: jax.Array, name: str, input_shape: tuple[int, ...], input_dtype: Any) -> None:
    """Raises `InputError` unless `x` is a batch of samples of this shape and kind of dtype."""
    kind = jnp.integer if jnp.issubdtype(input_dtype, jnp.integer) else jnp.floating
    require(
        x.ndim > 0 and x.shape[1:] == tuple(input_shape) and jnp.issubdtype(x.dtype, kind),
        f"x = {x.dtype}{list(x.shape)}",
        f"model {name!r} takes {jnp.dtype(input_dtype)}[batch, {', '.join(map(str, input_shape))}]",
        "reshape or convert the samples, or build the model for this input_shape",
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
