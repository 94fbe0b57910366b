"""Blocks of a flax.linen network."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.models import narrow_layers, stand_ins
from fedjax_het.models.block import Block, flax_block
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.cutting import Network, Visit, cut, mode_of, run_part

Array = jax.Array


def linen_block(name: str, module: nn.Module) -> Block:
    """A whole module as one block."""
    return flax_block(name, _Segment(module, 0, None, _nothing))


def linen_blocks(module: nn.Module, samples: Callable[[int], PyTree]) -> list[Block]:
    """The blocks of a single module, input side first.

    Args:
      module: linen module.
      samples: function from a batch size to the shapes of the samples.

    Returns:
      The blocks; their parameters are dictionaries by submodule.

    Raises:
      InputError: if parameters belong to no submodule, or training calls other submodules.
    """
    inside: dict[str, set[str]] = {}

    def trace(variables: PyTree, x: PyTree, train: bool, visit: Visit) -> Any:
        def run(bound: nn.Module, x: PyTree) -> Any:
            return _with_calls(bound, x, train, visit, inside)

        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        # Submodules that are called in training only have no variables yet.
        known = {} if train else variables
        return nn.apply(run, module, mutable=True)(known, x, rngs=rngs)[0]

    def init(x: PyTree) -> PyTree:
        run = nn.init(lambda bound, x: _with_calls(bound, x, False, _call, {}), module)
        return run(jax.random.key(0), x)

    shapes = jax.eval_shape(init, samples(1))
    name = type(module).__name__
    network = Network(shapes, samples, trace)
    called = {call.name for call in network.record(1)}
    params = shapes.get("params", {})
    # A cell has its parameters under its own name, although the call is that of its `nn.RNN`.
    holders = {call for call in called if any(part in params for part in inside[call])}
    if not holders:
        return [linen_block(name, module)]
    own = sorted(set(params).difference(*inside.values()))
    require(
        not own,
        f"parameters {own} of {name}",
        "belong to the module itself, so to none of its blocks",
        "move them into a submodule, or pass the sequence [module] for a single block",
    )
    return [
        flax_block(part.names, _Segment(module, part.start, part.stop, network.stubs))
        for part in cut(network, holders.__contains__)
    ]


def _nothing(batch: int) -> tuple[Any, list[Any]]:
    """The stubs of a block that starts at the module's input: it needs none."""
    return None, []


def _call(index: int, name: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    return call(*args, **kwargs)


class _Segment(nn.Module):
    """A part of `module`, whose submodules keep their names; for the attributes see `run_part`."""

    module: nn.Module
    start: int
    stop: int | None
    stubs: Callable[[int], tuple[PyTree, list[PyTree]]]

    def setup(self) -> None:
        nn.share_scope(self, self.module)

    def __call__(self, z: PyTree, *, train: bool) -> Array:
        """The activation at `stop`, given the activation `z` at `start`."""

        def trace(x: PyTree, visit: Visit) -> Any:
            return _with_calls(self.module, x, train, visit, {}, self.start)

        return run_part(trace, z, self.start, self.stop, self.stubs)


def _with_calls(
    module: nn.Module,
    x: PyTree,
    train: bool,
    visit: Visit,
    inside: dict[str, set[str]],
    start: int = 0,
) -> Any:
    """Runs the bound `module` on `x` in a mode, with `visit` in place of its submodules' calls.

    Args:
      module: bound module.
      x: samples.
      train: whether train mode is on.
      visit: handler of the calls.
      inside: dictionary that gets, for each submodule, the names of those called inside it.
      start: first call that runs; submodules called before it make no variables.

    Returns:
      The outputs.
    """
    root = module.path
    count = 0
    current: str | None = None

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal count, current
        called = context.module
        if isinstance(called, nn.Conv) and called.conv_general_dilated is None:
            # `called` is the copy that flax made for this run; the user's module does not change.
            object.__setattr__(called, "conv_general_dilated", conv_general_dilated)
        if called.path == root:
            return call(*args, **kwargs)
        if context.method_name == "setup":
            # It precedes the call of a submodule directly.
            stubbed = current is None and count < start
            return None if stubbed else call(*args, **kwargs)
        name = called.path[len(root)]
        if current is not None:
            inside[current].add(name)
            return call(*args, **kwargs)
        count, current = count + 1, name
        inside.setdefault(name, set()).add(name)
        try:
            return visit(count - 1, name, call, args, kwargs)
        finally:
            current = None

    with nn.intercept_methods(intercept), stand_ins.innermost(), narrow_layers.innermost():
        return module(x, **mode_of(type(module).__call__, train))
