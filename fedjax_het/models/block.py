"""A block: two pure functions, usually those of a flax module."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.types import PyTree
from fedjax_het.models import norm

Array = jax.Array
# Lengths of the spans along every axis of a parameter, by its path; see `narrow_layers`.
Lengths = Callable[..., tuple[tuple[int, ...], ...]]


class Block(NamedTuple):
    """One block of a model, as two pure functions.

    Attributes:
      name: name in tables and plots; it has no other use.
      init: function `(key, x) -> (params, stats)`; `x` is an array or `ShapeDtypeStruct` with a
        batch axis, or a pytree of them in the first block.
      apply: function `(params, stats, x, *, train, key) -> (y, stats)`; in eval mode it returns
        `stats` unchanged. `stats` is `{}` for a block without running statistics. A block with
        statistics also takes `weight`, float32[batch] or None: in train mode its moments are those
        of the samples of weight 1, and padding has weight 0.
      traced_train: whether `apply` also takes a traced `bool[]` as `train`. Without it, choosing
        between train and eval mode per client needs two forward passes.
    """

    name: str
    init: Callable[[Array, Any], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Array, PyTree]]
    traced_train: bool = False


def flax_block(name: str, module: nn.Module, *, traced_train: bool = False) -> Block:
    """Makes a block from a flax.linen module with 'params' and, optionally, 'batch_stats'.

    Args:
      name: name of the block.
      module: linen module, called as `module(x, train=...)` if its `__call__` takes `train`, else
        as `module(x)`. Its random numbers come from the 'dropout' stream.
      traced_train: whether `train` may be traced, see `Block`.

    Returns:
      The block.
    """
    mode = "train" in inspect.signature(type(module).__call__).parameters

    def init(key: Array, x: Any) -> tuple[PyTree, PyTree]:
        # `lazy_init` needs no forward pass and does not compile a program.
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x)
        flags: dict[str, Any] = {"train": False} if mode else {}
        variables = dict(module.lazy_init({"params": key}, shapes, **flags))
        params, stats = variables.pop("params", {}), variables.pop("batch_stats", {})
        require(
            not variables,
            f"block {name!r} keeps the collections {sorted(variables)}",
            "a block may hold 'params' and 'batch_stats' only",
            "move other state out of the module",
        )
        return params, stats

    return Block(name, init, _Apply(module, mode, name), traced_train)


@dataclass(frozen=True)
class _Apply:
    """`Block.apply` of a linen module; equal for equal modules, so that these are priced once."""

    module: nn.Module
    mode: bool
    name: str = field(compare=False)

    def __call__(
        self,
        params: PyTree,
        stats: PyTree,
        x: PyTree,
        *,
        train: bool | Array,
        key: Array | None,
        weight: Array | None = None,
    ) -> tuple[Array, PyTree]:
        rngs = {} if key is None else {"dropout": key}
        flags = {"train": train} if self.mode else {}
        variables = {"params": params, "batch_stats": stats}
        run = functools.partial(
            _checked, self.name, self.module.apply, variables, x, rngs=rngs, **flags
        )
        # `train is False` instead of `not train`, because a traced flag has no truth value.
        if train is False or not stats:
            return run(), stats
        with norm.over_real(weight):
            y, updated = run(mutable=["batch_stats"])
        return y, norm.updated(stats, updated["batch_stats"], weight)


def in_mode(
    block: Block,
    params: PyTree,
    stats: PyTree,
    x: PyTree,
    *,
    train: bool,
    updates: bool | Array,
    key: Array | None,
    weight: Array | None,
) -> tuple[Array, PyTree]:
    """Runs a block of a model; without running statistics, in the mode `train`.

    Args:
      block: block to run.
      params: its parameters.
      stats: its running statistics.
      x: its input, `[batch, ...]`.
      train: whether train mode is on (static).
      updates: whether a block with running statistics uses and takes those of the batch; a traced
        `bool[]` decides per client. Otherwise it runs in eval mode.
      key: typed PRNG key for dropout.
      weight: weight of each sample, float32[batch], see `Block`; None if all are real.

    Returns:
      `(y, stats)`.
    """
    run = functools.partial(block.apply, params, stats, x, key=key)
    if not jax.tree.leaves(stats):
        return run(train=train)[0], stats
    if updates is False:
        return run(train=False)[0], stats
    if weight is not None:
        run = functools.partial(run, weight=weight)
    if updates is True or block.traced_train:
        return run(train=updates)
    return jax.lax.cond(
        updates, functools.partial(run, train=True), functools.partial(run, train=False)
    )


def _checked(name: str, apply: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs `apply`; adds the block's name to two kinds of flax errors that lack it."""
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
    """Converts the floating-point arrays of a pytree to `dtype`; others stay unchanged."""

    def one(a: Any) -> Any:
        return a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a

    return jax.tree.map(one, tree)
