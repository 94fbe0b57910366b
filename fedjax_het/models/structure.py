"""The structure of a model in a few words, by which two models can be told apart."""

import functools
import hashlib
from collections import Counter
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from fedjax_het.common.jaxprs import equations, inner_jaxprs
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
    x = jax.ShapeDtypeStruct((2, *model.input_shape), model.input_dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    forward = model.apply_exits if model.exits else model.apply

    def run(variables: Any, x: Any, key: Any) -> Any:
        return forward(variables, x, train=True, key=key)

    with lowering("lax"):
        traced = jax.make_jaxpr(run)(model.shapes, x, key)
    every = list(equations(traced.jaxpr))
    # Calls (jit, custom rules) have no work of their own, and their names change with JAX.
    work = [each for each in every if next(inner_jaxprs(each), None) is None]
    shapes = jax.tree_util.tree_flatten_with_path(model.shapes)[0]
    content = [
        *((jax.tree_util.keystr(path), leaf.shape, leaf.dtype.name) for path, leaf in shapes),
        *(_words(each) for each in work),
        *(np.asarray(v.val).tolist() for e in every for v in e.invars if isinstance(v, Literal)),
        *(hashlib.sha256(np.asarray(constant).tobytes()).hexdigest() for constant in traced.consts),
    ]
    return {
        "blocks": [block.name for block in model.blocks],
        "exits": len(model.exits),
        "shared_exit": model.shared_exit,
        "stats_policy": model.stats_policy,
        "operations": dict(sorted(Counter(each.primitive.name for each in work).items())),
        "digest": hashlib.sha256(repr(content).encode()).hexdigest()[:12],
    }


def _words(equation: JaxprEqn) -> Any:
    """Name of an operation, its plain parameters, and the shapes that it takes and returns."""
    plain = {k: v for k, v in equation.params.items() if isinstance(v, bool | int | float | str)}
    shapes = [str(value.aval) for value in (*equation.invars, *equation.outvars)]
    return equation.primitive.name, sorted(plain.items()), shapes
