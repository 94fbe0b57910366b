"""Mixed precision: a model computes in bfloat16, while its parameters stay float32.

Blocks get a bfloat16 copy of their parameters and of their input, so that activations and matrix
products are bfloat16 (sums inside a product are float32). Parameters, their gradients and updates,
losses, the statistics of norms, and the output of a model are float32.
"""

from dataclasses import replace
from typing import Any, Literal

import jax

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.types import PyTree
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block, cast
from fedjax_het.models.origin import require_complete


def with_compute_dtype(
    model: BlockModel, compute_dtype: Literal["float32", "bfloat16"]
) -> BlockModel:
    """`model` with its arithmetic in another precision; parameters and prices do not change.

    A block that sets its own dtype (`nn.Dense(..., dtype=jnp.float32)`) keeps it.

    Args:
      model: model to convert.
      compute_dtype: dtype of the arithmetic, "float32" or "bfloat16".

    Returns:
      The converted model.

    Raises:
      InputError: for an unknown dtype, a block that cannot compute in it, or a model that has
        constant values already.
    """
    require_complete(model, "choose its precision")
    spec = model.spec and {**model.spec, "compute_dtype": compute_dtype}
    model = replace(model, compute_dtype=compute_dtype, spec=spec)
    if compute_dtype == "float32":
        return model
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, stats = model.shapes
    x: Any = model.input_shapes(1)
    for b, block in enumerate(model.blocks):
        x = _output(block, params["blocks"][b], stats["blocks"][b], x, key, compute_dtype)
        if b < len(model.exits):
            slot = model.exit_slot(b)
            head = (model.exits[b], params["exits"][slot], stats["exits"][slot])
            _output(*head, x, key, compute_dtype)
    return model


def _output(block: Block, params: PyTree, stats: PyTree, x: Any, key: Any, dtype: str) -> Any:
    """Shape of the block's output in training; raises `InputError` if it cannot use `dtype`."""

    def run(params: PyTree, stats: PyTree, x: Any, key: Any) -> tuple[PyTree, PyTree]:
        params, x = cast((params, x), dtype)
        return block.apply(params, stats, x, train=True, key=key)

    limit = f"cannot compute in {dtype}"
    remedy = "use compute_dtype = 'float32', or a module that takes its dtype from its input"
    try:
        y, new = jax.eval_shape(run, params, stats, x, key)
    except (TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"block {block.name!r}: {limit} ({reason}); {remedy}") from error
    kept = [s.dtype for s in jax.tree.leaves(stats)]
    require(
        [s.dtype for s in jax.tree.leaves(new)] == kept,
        f"block {block.name!r} with statistics {[str(s.dtype) for s in jax.tree.leaves(new)]}",
        f"{limit}: running statistics must stay {[str(each) for each in kept]}",
        remedy,
    )
    return y
