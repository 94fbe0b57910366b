"""A check that a network of a user's own runs alike in both forms of a sub-network.

Programs of several widths hold zeros behind the units of narrower clients (`models.narrow`). A
module that divides by the number of its channels, as attention does, would divide by another number
there, and nothing in its operations tells this constant from others. So it is tried.
"""

import weakref

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.widths import Counts, Layout, live, take
from fedjax_het.models.base import BlockModel
from fedjax_het.models.narrow import sub_network

# Largest difference of outputs that is rounding, over the largest output.
_ROUNDING = 1e-3

# The counts with which each model has been tried.
_TRIED: "weakref.WeakKeyDictionary[BlockModel, list[Counts]]" = weakref.WeakKeyDictionary()


def require_agreement(model: BlockModel, layout: Layout, counts: Counts) -> None:
    """Raises `InputError` if a sub-network computes something else with zeros behind its units.

    Models of the library are known to agree, and a model is tried once with each sub-network.

    Args:
      model: complete model.
      layout: groups of its units.
      counts: number of units of the sub-network by group.
    """
    tried = _TRIED.setdefault(model, [])
    if model.spec is not None or counts in tried:
        return
    key = jax.random.key(0)
    # Parameters that are zero at first (biases) hide differences.
    variables = jax.tree.map(lambda a: a + jnp.asarray(0.1, a.dtype), model.init(key))
    x = jax.tree.map(lambda s: _samples(s.shape, s.dtype), model.input_shapes(2))
    own = take(layout, counts, variables, None)
    held = live(layout, layout.sizes, counts)
    padded = jax.tree.map(
        lambda keep, a: jnp.where(jnp.broadcast_to(keep, a.shape), a, jnp.zeros_like(a)),
        held,
        variables,
    )
    native = _outputs(sub_network(model, layout, counts), own, x)
    wide = _outputs(sub_network(model, layout, layout.sizes, live=counts), Variables(*padded), x)
    scale = max(float(np.max(np.abs(native))), 1e-6)
    require(
        bool(np.max(np.abs(native - wide)) <= _ROUNDING * scale),
        f"model {model.name!r} with a part of its hidden units",
        "computes something else if the other units are zero, so one of its modules depends on the "
        "number of its channels (attention that divides by its length, a norm of its own)",
        "use norms of flax and models.build('transformer'), or a method without sub-networks",
    )
    tried.append(counts)


def require_scalable(model: BlockModel, layout: Layout, counts: Counts) -> None:
    """Raises `InputError` if a layer's outputs cannot be scaled in training; nothing is computed.

    Args:
      model: complete model.
      layout: groups of its units.
      counts: number of units of a sub-network by group.
    """
    own = sub_network(model, layout, counts, scale=2.0)
    variables = jax.eval_shape(lambda v: take(layout, counts, v, None), model.shapes)

    def step(variables: Variables, x: PyTree, key: jax.Array) -> jax.Array:
        apply = own.apply_exits if own.exits else own.apply
        return apply(variables, x, train=True, key=key)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    jax.eval_shape(step, variables, model.input_shapes(2), key)


def _outputs(model: BlockModel, variables: Variables, x: PyTree) -> np.ndarray:
    apply = model.apply_exits if model.exits else model.apply
    return np.asarray(apply(variables, x)[0], np.float64)


def _samples(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.zeros(shape, dtype)
    return jax.random.normal(jax.random.key(1), shape, dtype)
