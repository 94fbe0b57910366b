"""The structure of a model in a few words, by which two models can be told apart."""

import functools
from collections import Counter
from typing import Any

import jax

from fedjax_het.common.jaxprs import digest, operations
from fedjax_het.models.base import BlockModel
from fedjax_het.models.lowering import lowering


@functools.lru_cache(maxsize=32)
def structure(model: BlockModel) -> dict[str, Any]:
    """The structure of a model as JSON types; nothing is compiled or run.

    It does not depend on the machine: convolutions are traced as XLA's own.

    Args:
      model: model to describe.

    Returns:
      Names of the blocks; heads; rule of running statistics; number of operations of each kind in a
      forward pass in train mode; and a digest of these operations with their shapes and constants,
      and of the paths, shapes and dtypes of the variables.
    """
    x = model.input_shapes(2)
    key = jax.eval_shape(lambda: jax.random.key(0))
    forward = model.apply_exits if model.exits else model.apply

    def run(variables: Any, x: Any, key: Any) -> Any:
        return forward(variables, x, train=True, key=key)

    with lowering("lax"):
        traced = jax.make_jaxpr(run)(model.shapes, x, key)
    work = operations(traced.jaxpr)
    shapes = jax.tree_util.tree_flatten_with_path(model.shapes)[0]
    names = [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype.name) for path, leaf in shapes]
    return {
        "blocks": [block.name for block in model.blocks],
        "exits": len(model.exits),
        "shared_exit": model.shared_exit,
        "stats_policy": model.stats_policy,
        "operations": dict(sorted(Counter(each.primitive.name for each in work).items())),
        "digest": digest(traced, names),
    }
