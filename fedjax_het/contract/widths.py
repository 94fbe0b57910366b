"""Sub-networks by width: the units that a client holds, gathered into smaller tensors and put back.

Hidden units (channels, units of a layer) form *groups*: the tensors that share a group, such as
those of a residual stage, select the same units of it. A `Layout` says which positions along the
axes of a tensor belong to which group. A *level* of `Widths` keeps a number of units of every
group, and an *order* says which: its first units. Orders are data, levels are static::

    full kernel [49 * 64, 512]  --take(level, order)-->  kernel [49 * 16, 128]
    axes: Span("conv2", outer=49), Span("fc1")           counts: conv2 16, fc1 128

Wider levels of the same client hold the units of its narrower ones, first and in the same order.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.types import PyTree

Array = jax.Array
# Number of units by group: static integers, or traced ones.
Counts = Mapping[str, Any]
# Permutation of the units of every group, int32[K] each; the first units are held.
Orders = Mapping[str, Array]


class Span(NamedTuple):
    """Adjacent positions along an axis: `outer` times all units of a group, `inner` positions each.

    Attributes:
      group: name of the group, or None for positions that every sub-network holds.
      outer: repetitions of the group; for `group=None`, the number of positions.
      inner: adjacent positions of one unit.
    """

    group: str | None
    outer: int = 1
    inner: int = 1


@dataclass(frozen=True)
class Axes:
    """The axes of one tensor; a leaf of `Layout.axes`.

    Attributes:
      spans: spans of every axis of the tensor, which together cover it.
    """

    spans: tuple[tuple[Span, ...], ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """The groups of hidden units of a model, and where they lie in its tensors.

    Attributes:
      sizes: number of units of every group.
      axes: `Axes` of every tensor, in the structure of the model's `Variables`.
    """

    sizes: Mapping[str, int]
    axes: PyTree

    @property
    def params(self) -> "Layout":
        """The layout of the parameters alone."""
        return Layout(self.sizes, self.axes.params)


class Widths(NamedTuple):
    """The sub-networks by width of a method.

    Attributes:
      layout: groups of the model.
      counts: units that each level holds, by group. Level 0 is the complete network, and every
        level holds at most as many units of a group as the level before.
      shares: FLOPs of a training step of each level relative to the complete network.
      order: function `(row, shared) -> Orders`, traced, for one client; None if all sub-networks
        hold the first units. A client of level 0 holds everything in its natural order.
    """

    layout: Layout
    counts: tuple[Counts, ...]
    shares: tuple[float, ...]
    order: Callable[[PyTree, PyTree], Orders] | None = None

    def orders(self, level: Array | int, row: PyTree, shared: PyTree) -> Orders | None:
        """The orders of one client, or None for the natural ones; the level may be traced."""
        if self.order is None or (isinstance(level, int) and level == 0):
            return None
        if isinstance(level, int):
            return self.order(row, shared)
        given = self.order(row, shared)
        return {
            group: jnp.where(level == 0, jnp.arange(size, dtype=jnp.int32), given[group])
            for group, size in self.layout.sizes.items()
        }

    def counts_of(self, level: Array) -> Counts:
        """The numbers of units of a traced level, int32[] by group."""
        return {
            group: jnp.asarray([each[group] for each in self.counts], jnp.int32)[level]
            for group in self.layout.sizes
        }


def complete(layout: Layout, groups: Collection[str]) -> Layout:
    """The layout of sub-networks that hold all units of these groups: they are no groups of it."""

    def of(axes: Axes) -> Axes:
        return Axes(tuple(tuple(map(whole, spans)) for spans in axes.spans))

    def whole(span: Span) -> Span:
        return Span(None, size_of((span,), layout.sizes)) if span.group in groups else span

    sizes = {group: size for group, size in layout.sizes.items() if group not in groups}
    return Layout(sizes, jax.tree.map(of, layout.axes))


def take(layout: Layout, counts: Counts, tree: PyTree, orders: Orders | None) -> PyTree:
    """The tensors of a sub-network, traced or NumPy.

    Args:
      layout: groups of the model.
      counts: number of units to hold, by group, static.
      tree: tensors of the model, or arrays of as many axes that broadcast against them, in the
        structure of the layout's axes; None leaves stay None.
      orders: orders of the units; None for the first ones.
    """

    def of(axes: Axes, value: Any) -> Any:
        if value is None:
            return None
        for axis, spans in enumerate(axes.spans):
            if value.shape[axis] == 1 < size_of(spans, layout.sizes):
                continue  # a mask that holds for the whole axis
            value = along(axis, spans, layout.sizes, value, functools.partial(held, counts, orders))
        return value

    return mapped(layout, of, tree)


def held(
    counts: Counts, orders: Orders | None, group: str, size: int, value: Any, axis: int
) -> Any:
    """The held units of a group along an axis with one position per unit."""
    count = counts[group]
    if count == size and orders is None:
        return value
    if orders is None:
        return jax.lax.slice_in_dim(value, 0, count, axis=axis)
    return jnp.take(value, orders[group][:count], axis=axis, mode="clip")


def put(layout: Layout, counts: Counts, tree: PyTree, orders: Orders | None) -> PyTree:
    """The tensors of the model with those of a sub-network in their places and zero elsewhere.

    The arguments are those of `take`, and `tree` has the tensors of the sub-network.
    """

    def placed(group: str, size: int, value: Any, axis: int) -> Any:
        missing = size - counts[group]
        if missing == 0 and orders is None:
            return value
        if orders is None:
            return jnp.pad(value, [(0, missing if a == axis else 0) for a in range(value.ndim)])
        rank = jnp.argsort(orders[group])
        # Units that are not held read the zero behind the last one.
        value = jnp.pad(value, [(0, 1 if a == axis else 0) for a in range(value.ndim)])
        return jnp.take(value, jnp.minimum(rank, counts[group]), axis=axis, mode="clip")

    def of(axes: Axes, value: Any) -> Any:
        if value is None:
            return None
        for axis, spans in enumerate(axes.spans):
            value = along(axis, spans, counts, value, placed, layout.sizes)
        return value

    return mapped(layout, of, tree)


def members(layout: Layout, counts: Counts, orders: Orders | None) -> PyTree:
    """Whether a sub-network holds each coordinate, in the structure of `Variables`.

    Args:
      layout: groups of the model.
      counts: number of units that it holds by group, static or traced.
      orders: orders of the units; None for the first ones.

    Returns:
      A pytree of bools that broadcast against the tensors.
    """
    ranks = {
        group: jnp.arange(size, dtype=jnp.int32) if orders is None else jnp.argsort(orders[group])
        for group, size in layout.sizes.items()
    }
    return _inside(layout, {g: ranks[g] < counts[g] for g in ranks})


def live(layout: Layout, level: Counts, counts: Counts) -> PyTree:
    """Which coordinates of a level's tensors a client of fewer units trains; bools as `members`.

    Args:
      layout: groups of the model.
      level: number of units of the level by group, static.
      counts: number of units of the client by group, static or traced.
    """
    ranks = {group: jnp.arange(size, dtype=jnp.int32) for group, size in level.items()}
    return _inside(layout, {g: ranks[g] < counts[g] for g in layout.sizes})


def size_of(spans: tuple[Span, ...], counts: Counts) -> int:
    """Number of positions along an axis whose groups have these numbers of units."""
    return sum(s.outer * s.inner * (1 if s.group is None else counts[s.group]) for s in spans)


def mapped(layout: Layout, of: Callable[..., Any], *trees: PyTree) -> PyTree:
    """`of(axes, *leaves)` over trees that have the structure of the layout; leaves may be None."""
    return jax.tree.map(of, layout.axes, *trees)


def along(
    axis: int,
    spans: tuple[Span, ...],
    present: Counts,
    value: Any,
    of: Callable[[str, int, Any, int], Any],
    sizes: Counts | None = None,
) -> Any:
    """Changes every span of a group along an axis by `of(group, K, value, axis)`.

    Args:
      axis: axis of the tensor.
      spans: spans of this axis; none leave it as it is.
      present: number of units of a group that the tensor has.
      value: tensor.
      of: function that changes the positions of one unit each.
      sizes: number of units of the model, passed to `of`; None for `present`.
    """
    if all(span.group is None for span in spans):
        return value
    parts, base = [], 0
    for span in spans:
        length = size_of((span,), present)
        part = value
        if len(spans) > 1:
            part = jax.lax.slice_in_dim(value, base, base + length, axis=axis)
        if span.group is not None:
            split = (span.outer, present[span.group], span.inner)
            shape = part.shape
            part = part.reshape(*shape[:axis], *split, *shape[axis + 1 :])
            part = of(span.group, (sizes or present)[span.group], part, axis + 1)
            part = part.reshape(*shape[:axis], -1, *shape[axis + 1 :])
        parts.append(part)
        base += length
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis)


def _inside(layout: Layout, keep: Mapping[str, Array]) -> PyTree:
    """Bools of every tensor from those of the units; axes without a group have length 1."""

    def of(axes: Axes) -> Array:
        result = jnp.ones((1,) * len(axes.spans), bool)
        for axis, spans in enumerate(axes.spans):
            if all(span.group is None for span in spans):
                continue
            parts = [
                jnp.ones((span.outer * span.inner,), bool)
                if span.group is None
                else jnp.tile(jnp.repeat(keep[span.group], span.inner), span.outer)
                for span in spans
            ]
            along = jnp.concatenate(parts)
            shape = [-1 if a == axis else 1 for a in range(len(axes.spans))]
            result = _both(result, along.reshape(shape))
        return result

    return jax.tree.map(of, layout.axes)


def _both(a: Array, b: Array) -> Array:
    shape = np.broadcast_shapes(a.shape, b.shape)
    return jnp.broadcast_to(a, shape) & jnp.broadcast_to(b, shape)
