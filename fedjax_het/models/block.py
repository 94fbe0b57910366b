"""A block: two pure functions, usually those of a flax module."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.types import PyTree

Array = jax.Array


class Block(NamedTuple):
    """One block of a model, as two pure functions.

    Attributes:
      name: for tables and plots; carries no meaning.
      init: `(key, x) -> (params, stats)`; `x` is an array or `ShapeDtypeStruct` with a batch axis.
      apply: `(params, stats, x, *, train, key) -> (y, stats)`; in eval mode `stats` is returned as
        it came. `stats` is `{}` for a block without running statistics.
      traced_train: `apply` also takes a traced `bool[]` as `train`. Saves the second forward pass
        that choosing per client between train and eval mode costs otherwise.
    """

    name: str
    init: Callable[[Array, Any], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Array, PyTree]]
    traced_train: bool = False


def flax_block(name: str, module: nn.Module, *, traced_train: bool = False) -> Block:
    """A block from a flax.linen module with 'params' and, if it likes, 'batch_stats'.

    Args:
      name: name of the block.
      module: called as `module(x, train=...)` if its `__call__` takes `train`, else as `module(x)`.
        Its random numbers come from the 'dropout' stream.
      traced_train: see `Block`.

    Returns:
      The block.
    """
    mode = "train" in inspect.signature(type(module).__call__).parameters

    def flags(train: bool | Array) -> dict[str, Any]:
        return {"train": train} if mode else {}

    def init(key: Array, x: Any) -> tuple[PyTree, PyTree]:
        # Lazily: without the forward pass, and without compiling one program per model.
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        variables = dict(module.lazy_init({"params": key}, shape, **flags(False)))
        params, stats = variables.pop("params", {}), variables.pop("batch_stats", {})
        require(
            not variables,
            f"block {name!r} keeps the collections {sorted(variables)}",
            "a block may hold 'params' and 'batch_stats' only",
            "move other state out of the module",
        )
        return params, stats

    def apply(
        params: PyTree, stats: PyTree, x: Array, *, train: bool | Array, key: Array | None
    ) -> tuple[Array, PyTree]:
        rngs = {} if key is None else {"dropout": key}
        variables = {"params": params, "batch_stats": stats}
        # `train is False` and not `not train`: a traced flag has no truth value.
        if train is False or not stats:
            return _checked(name, module.apply, variables, x, rngs=rngs, **flags(train)), stats
        y, updated = _checked(
            name, module.apply, variables, x, rngs=rngs, mutable=["batch_stats"], **flags(train)
        )
        return y, updated["batch_stats"]

    return Block(name, init, apply, traced_train)


def _checked(name: str, apply: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs `apply`, naming the block in the two mistakes that flax reports without it."""
    try:
        return apply(*args, **kwargs)
    except flax.errors.InvalidRngError as error:
        raise InputError(
            f"block {name!r} draws random numbers but key is None: training with dropout needs a "
            "key; pass key=jax.random.key(...) or train=False"
        ) from error
    except (
        flax.errors.ScopeCollectionNotFound,
        flax.errors.ScopeParamNotFoundError,
        flax.errors.ScopeParamShapeError,
    ) as error:
        raise InputError(
            f"parameters of block {name!r} do not fit its module: {error}; "
            "take them from init() of this same model"
        ) from error


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """The floating-point arrays of a pytree in `dtype`; tokens, flags and keys as they are."""

    def one(a: Any) -> Any:
        return a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

    return jax.tree.map(one, tree)
