"""Masks, which define the parameters that a client trains, and routes, which permit to skip work.

A *mask* has the structure of the parameters; its boolean leaves broadcast against them: shape `()`
for a whole tensor (suffix, window), a channel vector (width), or the full shape (density). Only
masks define the result. A *route* is a small hashable value that lets the compiler skip work. It
must cover the mask, and all covering routes give the same numbers; but draws in the shape of
activations (dropout) are others at another width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.common.types import PyTree


class Route(NamedTuple):
    """The static part of a client's work, which decides what the compiler may leave out.

    Attributes:
      first: shallowest block that may train; blocks before it run forward only.
      exit: block after which the loss is taken; deeper blocks are not run. None runs the whole
        model with all its exits, and every client uses its own exit (`Task.exit`).
      cut: block after which no gradient flows back (split training with local losses): the blocks
        up to it learn from the head after it, the deeper blocks from the loss at `exit`. None for
        training from end to end, and if `exit` is None, because then every client has its own exit.
      width: level of the method's `Widths`, whose sub-network is computed at its size; 0 is the
        complete network.
      padded: whether clients of narrower levels also run on this route: their units come first, and
        the parameters of the others are zero and do not train.
      heads: blocks before `exit` whose exit heads also train, for losses at several depths.
    """

    first: int
    exit: int | None
    cut: int | None = None
    width: int = 0
    padded: bool = False
    heads: tuple[int, ...] = ()

    def covers(self, other: "Route") -> bool:
        """Whether work planned for `other` may run on this route with the same result."""
        same = (self.exit, self.cut, self.heads) == (other.exit, other.cut, other.heads)
        wide = self.width == other.width and (self.padded or not other.padded)
        wide = wide or (self.padded and self.width < other.width)
        return wide and self.first <= other.first and (self.exit is None or same)

    @property
    def code(self) -> tuple[int, ...]:
        """The route as six integers, for tables and checkpoints; inverse of `decoded`."""
        places = (-1 if place is None else place for place in (self.exit, self.cut))
        heads = sum(1 << block for block in self.heads)
        return (self.first, *places, self.width, int(self.padded), heads)


def decoded(code: Sequence[int]) -> Route:
    """The route of a `Route.code`."""
    first, exit, cut, width, padded, heads = (int(number) for number in code)
    last, after = (None if place < 0 else place for place in (exit, cut))
    blocks = tuple(block for block in range(heads.bit_length()) if heads >> block & 1)
    return Route(first, last, after, width, bool(padded), blocks)


def full_route(num_blocks: int, has_exits: bool) -> Route:
    """The route that covers every other: all blocks train, all exits (if any) are computed."""
    return Route(0, None if has_exits else num_blocks - 1)


def suffix(params: PyTree, first: jax.Array, exit: jax.Array | None = None) -> PyTree:
    """Mask of the blocks `first..exit` and of the exit head after them.

    Args:
      params: parameters, `Variables.params`, or their shapes; only the structure is used.
      first: shallowest trained block (0 = input side), int32 scalar.
      exit: block whose head gives the loss, int32 scalar; None or L-1 for the model's own head.

    Returns:
      A pytree of `bool[]`, one per tensor.
    """
    last = jnp.int32(len(params["blocks"]) - 1)
    exit = last if exit is None else exit

    def of(part: PyTree, keep: Any) -> PyTree:
        return jax.tree.map(lambda _: keep, part)

    return {
        "blocks": tuple(
            of(block, (b >= first) & (b <= exit)) for b, block in enumerate(params["blocks"])
        ),
        # A single head serves every block except the last (`BlockModel.shared_exit`).
        "exits": tuple(
            of(head, exit < last if len(params["exits"]) == 1 else b == exit)
            for b, head in enumerate(params["exits"])
        ),
    }


def everything(params: PyTree) -> PyTree:
    """Mask of ones, `bool[]` per tensor."""
    return jax.tree.map(lambda _: jnp.asarray(True), params)


def split(tree: PyTree, route: Route) -> tuple[PyTree, PyTree]:
    """Splits a tree of the parameters' structure into the trained and the frozen part.

    Args:
      tree: parameters, a mask or an update.
      route: route that decides which leaves are trained.

    Returns:
      The pair `(trained, frozen)`, each with the outer structure of `tree` and None at the leaves
      of the other.
    """
    blocks, exits = tree["blocks"], tree["exits"]
    last = len(blocks) - 1
    deepest = last if route.exit is None else route.exit
    heads = [block for block in (route.exit, route.cut, *route.heads) if block is not None]

    def part(keep: bool) -> PyTree:
        def of(value: PyTree, trained: bool) -> PyTree:
            return value if trained == keep else jax.tree.map(lambda _: None, value)

        return {
            "blocks": tuple(of(v, route.first <= b <= deepest) for b, v in enumerate(blocks)),
            "exits": tuple(
                of(v, route.exit is None or b in heads or (len(exits) == 1 and min(heads) < last))
                for b, v in enumerate(exits)
            ),
        }

    return part(True), part(False)


def join(trained: PyTree, frozen: PyTree) -> PyTree:
    """Inverse of `split`: takes every leaf from the tree that has it."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda leaf: leaf is None
    )


def apply(mask: PyTree, tree: PyTree) -> PyTree:
    """`mask * tree`; None leaves of `tree` stay None.

    Args:
      mask: pytree of boolean leaves that broadcast against those of `tree` from the right, or None
        for a mask of ones.
      tree: pytree of float leaves, some of which may be None.
    """
    if mask is None:
        return tree

    def of(value: jax.Array | None, keep: jax.Array | None) -> jax.Array | None:
        if value is None or keep is None:
            return value
        keep = keep.reshape((1,) * (value.ndim - keep.ndim) + keep.shape)
        return jnp.where(jnp.broadcast_to(keep, value.shape), value, jnp.zeros_like(value))

    return jax.tree.map(of, tree, mask, is_leaf=lambda leaf: leaf is None)


def live_blocks(mask: PyTree) -> jax.Array:
    """Whether `mask` trains any parameter of each block, bool[L]."""
    any_leaf = [
        jnp.any(jnp.stack([jnp.any(leaf) for leaf in jax.tree.leaves(block)]))
        if jax.tree.leaves(block)
        else jnp.asarray(False)
        for block in mask["blocks"]
    ]
    return jnp.stack(any_leaf)
