"""Conversion of a flax.linen network to a `BlockModel`, without changes to its code.

A single module is cut between the submodules that it calls. A block runs from the call of one
submodule to the call of a later one. It runs the module's own `__call__` with these changes: stubs
replace the earlier submodules, the block's input becomes the argument of its first submodule, and
the run stops at the call of the later one. Operations between submodules (activations, pooling,
reshaping) therefore run as the module defines them. The blocks can be frozen, priced, split and
given exit heads like any other block.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Literal as JaxprLiteral

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block, flax_block
from fedjax_het.models.conv import conv_general_dilated

Array = jax.Array

# Keyword arguments that give a module its mode, and their values in training.
_MODES = {"train": True, "training": True, "is_training": True, "deterministic": False}
# Batch sizes of the recorded runs. Two sizes show which axes depend on the batch; odd numbers are
# unlikely to be the size of another axis.
_PROBES = (3, 5)


class _Call(NamedTuple):
    """One call of a submodule by the module that is being cut."""

    name: str
    argument: Any  # ShapeDtypeStruct of the first argument, or None
    result: PyTree  # of ShapeDtypeStruct


class _Reached(Exception):  # noqa: N818 - not an error
    """Stops a run before its end and carries the activation."""

    def __init__(self, value: Array):
        super().__init__()
        self.value = value


def from_flax(
    module: nn.Module | Sequence[nn.Module],
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    name: str | None = None,
    input_dtype: Any = jnp.float32,
    stats_policy: Literal["mean", "frozen"] = "mean",
) -> BlockModel:
    """Makes a model of blocks from one linen module, or from a sequence of them.

    Convolutions without a lowering of their own get that of `fedjax_het.models.conv`. (Pooling is a
    function in flax and cannot be replaced: `fedjax_het.models.pooling.max_pool` is much faster on
    a CPU than `nn.max_pool`.) A module whose `__call__` takes `train`, `training`, `is_training` or
    `deterministic` gets its mode by this argument. For bfloat16, pass the model to
    `with_compute_dtype`, whose error names any module that does not support it.

    Args:
      module: linen module, or a sequence of them, input side first. In a sequence, every module is
        one block and is called on the output of the module before. In a single module, every
        submodule with parameters starts a block, in the order of the calls. Submodules between
        which no cut is possible, because one is used twice or a shortcut passes around them, share
        a block. To get finer blocks, put each residual unit into its own submodule, or pass a
        sequence.
      input_shape: shape of one sample, without a batch axis.
      num_classes: size of the last axis of the logits.
      name: name of the model; default the name of the class.
      input_dtype: dtype of the samples, float32, or int32 for tokens.
      stats_policy: treatment of running statistics, see `BlockModel`.

    Returns:
      The model. Parameters of a block are a dictionary by submodule, as in the original.

    Raises:
      InputError: if the module is not a linen module, has parameters outside of submodules, or does
        not return `[batch, num_classes]`.
    """
    x = functools.partial(_samples, input_shape=tuple(input_shape), dtype=input_dtype)
    if isinstance(module, (list, tuple)):
        modules = [_linen(m) for m in module]
        require(bool(modules), "an empty sequence", "a model needs a block", "pass linen modules")
        blocks = [
            flax_block(f"{type(m).__name__}_{b}", _Segment(m, 0, None, _nothing))
            for b, m in enumerate(modules)
        ]
        default_name = "sequence"
    else:
        blocks = _cut(_linen(module), x)
        default_name = type(module).__name__
    model = BlockModel(
        name or default_name,
        tuple(blocks),
        tuple(input_shape),
        num_classes,
        input_dtype=input_dtype,
        stats_policy=stats_policy,
    )
    logits = model.activation_shapes(_PROBES[0])[-1]
    require(
        logits.shape == (_PROBES[0], num_classes),
        f"output of model {model.name!r} {list(logits.shape)} for {_PROBES[0]} samples",
        f"must be [batch, num_classes] = [{_PROBES[0]}, {num_classes}]",
        "end with nn.Dense(num_classes) on one vector a sample, or correct num_classes",
    )
    return model


def _linen(module: Any) -> nn.Module:
    require(
        isinstance(module, nn.Module),
        f"module of type {type(module).__module__}.{type(module).__qualname__}",
        "must be a flax.linen module; nnx modules and plain functions carry no order of calls that "
        "could be relied on",
        "write it as a linen module, or build a BlockModel from Blocks by hand",
    )
    return module


def _samples(batch: int, input_shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *input_shape), dtype)


def _nothing(batch: int) -> tuple[Any, list[_Call]]:
    """The record for a block that starts at the module's input: it needs no sample and no stub."""
    return None, []


class _Segment(nn.Module):
    """The part of `module` from call number `start` of a submodule up to call number `stop`.

    Attributes:
      module: module that is cut; its submodules keep their names.
      start: first call to run; 0 also runs the operations before it.
      stop: first call not to run, whose argument is the result; None runs to the end.
      record: function from a batch size to (shape of the samples, calls), for the stubs of the
        calls before `start`.
    """

    module: nn.Module
    start: int
    stop: int | None
    record: Callable[[int], tuple[Any, list[_Call]]]

    def setup(self) -> None:
        nn.share_scope(self, self.module)

    def __call__(self, z: Array, *, train: bool) -> Array:
        """The activation at `stop`, given the activation `z` at `start`."""
        if self.start == 0:
            return _run(self.module, z, z, [], 0, self.stop, train)
        sample, calls = self.record(z.shape[0])
        zeros = [_zeros(call.result) for call in calls[: self.start]]
        return _run(self.module, _zeros(sample), z, zeros, self.start, self.stop, train)


def _shapes(arrays: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _run(
    module: nn.Module,
    x: Array,
    z: Array,
    stubs: list[PyTree],
    start: int,
    stop: int | None,
    train: bool,
) -> Array:
    """Runs the bound `module` on `x`; `stubs` are the results of the calls before `start`."""

    def visit(index: int, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if index < start:
            return stubs[index]
        if index == stop:
            raise _Reached(args[0])
        if index == start > 0:
            args = (z, *args[1:])
        return call(*args, **kwargs)

    try:
        return _with_calls(module, x, train, lambda index, name, *call: visit(index, *call))
    except _Reached as reached:
        return reached.value


def _with_calls(module: nn.Module, x: Array, train: bool, visit: Callable[..., Any]) -> Any:
    """Runs the bound `module`; calls of its submodules become `visit(index, name, call, ...)`."""
    root = module.path
    count, inside = 0, False

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal count, inside
        called = context.module
        if isinstance(called, nn.Conv) and called.conv_general_dilated is None:
            # `called` is the copy that flax made for this run; the user's module does not change.
            object.__setattr__(called, "conv_general_dilated", conv_general_dilated)
        if inside or context.method_name == "setup" or called.path == root:
            return call(*args, **kwargs)
        count, inside = count + 1, True
        try:
            return visit(count - 1, called.path[len(root)], call, args, kwargs)
        finally:
            inside = False

    with nn.intercept_methods(intercept):
        return module(x, **_mode(module, train))


def _mode(module: nn.Module, train: bool) -> dict[str, bool]:
    names = inspect.signature(type(module).__call__).parameters
    return {name: train == value for name, value in _MODES.items() if name in names}


def _record(
    module: nn.Module, sample: jax.ShapeDtypeStruct, train: bool
) -> tuple[list[_Call], PyTree]:
    """The calls that `module` makes on a batch, and the shapes of its variables."""
    calls: list[_Call] = []

    def visit(index: int, name: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        first = args[0] if args and isinstance(args[0], jax.Array) else None
        calls.append(_Call(name, _shapes(first), _shapes(result)))
        return result

    init = nn.init(lambda bound, x: _with_calls(bound, x, train, visit), module)
    variables = jax.eval_shape(lambda x: init(jax.random.key(0), x), sample)
    return calls, variables


def _cut(module: nn.Module, samples: Callable[[int], jax.ShapeDtypeStruct]) -> list[Block]:
    """The blocks of a single module, input side first."""
    calls, variables = _record(module, samples(_PROBES[0]), train=False)
    params = variables.get("params", {})
    trainable = [i for i, call in enumerate(calls) if call.name in params]
    if not trainable:
        return [flax_block(type(module).__name__, _Segment(module, 0, None, _nothing))]
    own = sorted(set(params) - {call.name for call in calls})
    require(
        not own,
        f"parameters {own} of {type(module).__name__}",
        "belong to the module itself, so to none of its blocks",
        "move them into a submodule, or pass the sequence [module] for a single block",
    )
    in_training = _record(module, samples(_PROBES[0]), train=True)[0]
    require(
        [c.name for c in in_training] == [c.name for c in calls],
        f"submodules called in training {[c.name for c in in_training]}, "
        f"in evaluation {[c.name for c in calls]}",
        "must be the same",
        "switch inside the submodules, or pass the sequence [module] for a single block",
    )

    @functools.cache
    def record(batch: int) -> tuple[Any, list[_Call]]:
        return samples(batch), _record(module, samples(batch), train=False)[0]

    cuts = [i for i in trainable[1:] if _may_start(module, variables, i, record)]
    blocks = []
    for start, stop in zip([0, *cuts], [*cuts, None]):
        inside = {calls[i].name: None for i in trainable if start <= i < (stop or len(calls))}
        blocks.append(flax_block("+".join(inside), _Segment(module, start, stop, record)))
    return blocks


def _may_start(
    module: nn.Module,
    variables: PyTree,
    index: int,
    record: Callable[[int], tuple[Any, list[_Call]]],
) -> bool:
    """Whether the rest of the run depends only on the first argument of call `index`."""
    (sample, calls), (_, other) = record(_PROBES[0]), record(_PROBES[1])
    z = calls[index].argument
    before, after = (
        {call.name for call in part} & set(variables["params"])
        for part in (calls[:index], calls[index:])
    )
    if before & after or z is None or not z.shape:
        return False
    if (z.shape[0], other[index].argument.shape[0]) != _PROBES:
        return False

    def rest(hidden: Any, z: Array, variables: PyTree) -> Array:
        x, stubs = hidden
        run = nn.apply(lambda bound: _run(bound, x, z, stubs, index, None, False), module)
        return run(variables)

    hidden = (sample, [call.result for call in calls[:index]])
    jaxpr = jax.make_jaxpr(rest)(hidden, z, variables).jaxpr
    return not _depends(jaxpr, jaxpr.invars[: len(jax.tree.leaves(hidden))])


def _depends(jaxpr: Any, inputs: Sequence[Any]) -> bool:
    """Whether any output depends on any of `inputs`."""
    reached = set(inputs)

    def touched(variables: Sequence[Any]) -> Iterator[bool]:
        return (not isinstance(v, JaxprLiteral) and v in reached for v in variables)

    for equation in jaxpr.eqns:
        if any(touched(equation.invars)):
            reached.update(equation.outvars)
    return any(touched(jaxpr.outvars))
