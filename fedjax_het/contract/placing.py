"""Sums over sub-networks by width, which touch only the places of their updates."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.widths import (
    Axes,
    Counts,
    Layout,
    Orders,
    Span,
    live,
    mapped,
    put,
)


class Placed(NamedTuple):
    """The places of the sub-networks of the clients that train side by side.

    Attributes:
      layout: groups of the model.
      counts: number of units that the sub-networks hold by group, static.
      orders: orders of their units, int32[c, K] by group; None for the first ones.
    """

    layout: Layout
    counts: Counts
    orders: Orders | None

    def everything(self, clients: int) -> PyTree:
        """Masks of the sub-networks' parameters that keep everything, bool[c, ...]."""
        every = live(self.layout, self.counts, self.counts).params
        return jax.tree.map(lambda a: jnp.broadcast_to(a[None], (clients, *a.shape)), every)

    def add(self, total: PyTree, values: PyTree) -> PyTree:
        """`total` plus the values of all clients in their places.

        Args:
          total: tensors at the model's shapes, or with axes of length 1 where `values` have them.
          values: tensors of the sub-networks, with a leading client axis; leaves of None add
            nothing.
        """
        if self.orders is None:
            values = jax.tree.map(lambda a: jnp.sum(a, axis=0), values)
            return add(self.layout, self.counts, total, values, None)
        if len(next(iter(self.orders.values()))) == 1:
            values, orders = jax.tree.map(lambda a: a[0], (values, self.orders))
            return add(self.layout, self.counts, total, values, orders)

        def one(total: PyTree, client: tuple[PyTree, Orders]) -> tuple[PyTree, None]:
            return add(self.layout, self.counts, total, *client), None

        return jax.lax.scan(one, total, (values, self.orders))[0]


def add(
    layout: Layout,
    counts: Counts,
    total: PyTree,
    tree: PyTree,
    orders: Orders | None,
) -> PyTree:
    """`total + put(tree)`, which touches only the places of the sub-network.

    Args:
      layout: groups of the model.
      counts: number of units that the sub-network holds by group, static.
      total: tensors in (a part of) the structure of `Variables`, at the model's shapes.
      tree: tensors of the sub-network; leaves of None add nothing.
      orders: orders of the units; None for the first ones.
    """

    def of(axes: Axes, total: Any, value: Any) -> Any:
        if value is None:
            return total
        if orders is None and all(len(spans) == 1 and spans[0].outer == 1 for spans in axes.spans):
            return total.at[tuple(slice(0, size) for size in value.shape)].add(value)
        cut = [a for a, spans in enumerate(axes.spans) if any(s.group for s in spans)]
        if not cut:
            return total + value
        # All axes but the first are completed; the rows along the first are added in place.
        rest = Axes(tuple(() if a == cut[0] else s for a, s in enumerate(axes.spans)))
        value = put(Layout(layout.sizes, rest), counts, value, orders)
        places = positions(axes.spans[cut[0]], layout.sizes, counts, orders)
        at = (slice(None),) * cut[0] + (places,)
        return total.at[at].add(value, unique_indices=True, mode="promise_in_bounds")

    return mapped(layout, of, total, tree)


def positions(
    spans: tuple[Span, ...], sizes: Mapping[str, int], counts: Counts, orders: Orders | None
) -> Any:
    """Positions along an axis that a sub-network holds, int32, in the order of its own tensors."""
    found, base = [], 0
    for span in spans:
        if span.group is None:
            found.append(np.arange(base, base + span.outer * span.inner, dtype=np.int32))
            base += span.outer * span.inner
            continue
        size, count = sizes[span.group], counts[span.group]
        first = np.arange(count, dtype=np.int32) if orders is None else orders[span.group][:count]
        outer = np.arange(span.outer, dtype=np.int32)[:, None, None] * np.int32(size)
        places = (outer + first[None, :, None]) * np.int32(span.inner)
        places = places + np.arange(span.inner, dtype=np.int32)[None, None, :]
        found.append(np.int32(base) + places.reshape(-1))
        base += span.outer * size * span.inner
    return jnp.concatenate(found)
