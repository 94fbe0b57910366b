"""Conversion of a flax network, linen or nnx, to a `BlockModel`, without changes to its code.

A single module is cut between the submodules that it calls (`cutting`), and the blocks can be
frozen, priced, split and given exit heads like any other block.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.models.adapt_linen import linen_block, linen_blocks
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block
from fedjax_het.models.cutting import PROBES
from fedjax_het.models.inputs import as_shapes, batch_of


def from_flax(
    module: Any | Sequence[Any],
    input_shape: Any,
    num_classes: int | None = None,
    *,
    name: str | None = None,
    input_dtype: Any = jnp.float32,
    stats_policy: Literal["mean", "frozen"] = "mean",
) -> BlockModel:
    """Makes a model of blocks from one flax module, or from a sequence of them.

    Convolutions without a lowering of their own get that of `fedjax_het.models.conv`. (Pooling is a
    function in flax and cannot be replaced: `fedjax_het.models.pooling.max_pool` is much faster on
    a CPU than `nn.max_pool`.) A module whose `__call__` takes `train`, `training`, `is_training`,
    `deterministic` or `use_running_average` gets its mode by this argument; any other nnx module by
    its methods `train()` and `eval()`. For bfloat16, pass the model to `with_compute_dtype`, whose
    error names any module that does not support it.

    An nnx module is used as it is: `init` returns its present values for every key, and the module
    itself is never changed. Give a function `lambda rngs: Net(rngs=rngs)`, or the class, for new
    values from every key. Its `nnx.Param`s are the parameters and its `nnx.BatchStat`s the running
    statistics; its random streams get the key of the call.

    Args:
      module: linen or nnx module, a function of `rngs` that makes an nnx module, or a sequence of
        these, input side first. In a sequence, every module is one block and is called on the
        output of the module before. In a single module, every submodule with parameters starts a
        block, in the order of the calls. Submodules between which no cut is possible, because one
        is used twice or a shortcut passes around them, share a block. To get finer blocks, put each
        residual unit into its own submodule, or pass a sequence.
      input_shape: shape of one sample, without a batch axis. With a dictionary or tuple of shapes
        the module is called on a dictionary or tuple of arrays.
      num_classes: size of the last axis of the outputs; default as the module returns.
      name: name of the model; default the name of the class.
      input_dtype: dtype of the samples, float32, int32 for tokens or bool for masks, in the
        structure of `input_shape`.
      stats_policy: treatment of running statistics, see `BlockModel`.

    Returns:
      The model. Parameters of a block are a dictionary by submodule, as in the original.

    Raises:
      InputError: if a module is none of flax, holds variables of another kind, has (linen)
        parameters outside of submodules, or does not return one array `[batch, ..., num_classes]`.
    """
    shape = as_shapes(input_shape)
    samples = functools.partial(batch_of, shape, input_dtype)
    if isinstance(module, (list, tuple)):
        require(bool(module), "an empty sequence", "a model needs a block", "pass flax modules")
        blocks = [_whole(part, b) for b, part in enumerate(module)]
        default_name = "sequence"
    else:
        blocks, default_name = _blocks(module, samples)
    model = BlockModel(
        name or default_name,
        tuple(blocks),
        shape,
        num_classes or 1,
        input_dtype=input_dtype,
        stats_policy=stats_policy,
    )
    outputs = model.activation_shapes(PROBES[0])[-1]
    returned = jax.tree.map(lambda a: list(a.shape), outputs)
    require(
        isinstance(outputs, jax.ShapeDtypeStruct)
        and len(outputs.shape) > 1
        and outputs.shape[0] == PROBES[0]
        and num_classes in (None, outputs.shape[-1]),
        f"output of model {model.name!r} {returned} for {PROBES[0]} samples",
        f"must be one array [{PROBES[0]}, ..., {num_classes or 'num_classes'}]",
        "keep a last axis, also for one value a sample, and correct num_classes or leave it out",
    )
    return replace(model, num_classes=outputs.shape[-1])


def _blocks(module: Any, samples: Any) -> tuple[list[Block], str]:
    """The blocks of a single module, and its name."""
    if isinstance(module, nn.Module):
        return linen_blocks(module, samples), type(module).__name__
    # Imported only if it is used: nnx takes a fifth of a second.
    from fedjax_het.models.adapt_nnx import nnx_source

    source = nnx_source(module)
    return source.blocks(samples), source.name


def _whole(module: Any, place: int) -> Block:
    """A module of a sequence as one block."""
    if isinstance(module, nn.Module):
        return linen_block(f"{type(module).__name__}_{place}", module)
    from fedjax_het.models.adapt_nnx import nnx_source

    source = nnx_source(module)
    return source.block(f"{source.name}_{place}")
