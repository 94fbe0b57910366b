"""Sub-networks by width inside the programs: tensors on the way in, updates on the way out.

::

    start --take--> tensors of the sub-network --local training--> update of the sub-network
       update --put--> update of the model, for any merge
       update ------> places of the accumulator, for a merge that can (`Aggregator.narrow`)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks, widths
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.contract.widths import Counts, Orders, Widths


class Network(NamedTuple):
    """The sub-network of one client on a route.

    Attributes:
      widths: sub-networks of the method.
      counts: number of units that the route computes, by group, static.
      orders: orders of the client's units, or None.
      live: coordinates that the client trains, `Variables` of bools in the shapes of the route;
        None if they are all.
    """

    widths: Widths
    counts: Counts
    orders: Orders | None
    live: Variables | None

    def tensors(self, start: Variables) -> Variables:
        """The tensors with which the client starts; those that it does not train are zero."""
        own = widths.take(self.widths.layout, self.counts, start, self.orders)
        return own if self.live is None else masks.apply(self.live, own)

    def mask(self, mask: PyTree) -> PyTree:
        """The mask of the method, and of the client's units, in the shapes of the route."""
        if mask is None:
            return None if self.live is None else self.live.params
        layout = self.widths.layout
        ranked = jax.tree.map(
            lambda axes, keep: _ranked(keep, len(axes.spans)), layout.axes.params, mask
        )
        own = widths.take(layout.params, self.counts, ranked, self.orders)
        live = self.live or widths.live(layout, self.counts, self.counts)
        return jax.tree.map(both, own, live.params)

    def completed(self, result: ClientResult, start: Variables, own: Variables) -> ClientResult:
        """The result in the shapes of the model.

        Args:
          result: result in the shapes of the route.
          start: tensors of the model at the start.
          own: tensors of the sub-network at the start.
        """
        change = jax.tree.map(jnp.subtract, result.stats, own.stats)
        if self.live is not None:
            change = masks.apply(self.live.stats, change)
        placed = widths.put(
            self.widths.layout, self.counts, Variables(result.delta, change), self.orders
        )
        stats = jax.tree.map(jnp.add, start.stats, placed.stats)
        return result._replace(delta=placed.params, stats=stats)


def network(method: Widths, route: Route, level: jax.Array, row: PyTree, shared: PyTree) -> Network:
    """The sub-network of one client, traced.

    Args:
      method: sub-networks of the method.
      route: route that is compiled in.
      level: level of the client, int32.
      row: row of the client, and what all clients share.
      shared: see `row`.
    """
    counts = method.counts[route.width]
    if not route.padded:
        # All clients of the route have its level, and the complete network is read as it is.
        return Network(method, counts, method.orders(route.width, row, shared), None)
    live = widths.live(method.layout, counts, method.counts_of(level))
    return Network(method, counts, method.orders(level, row, shared), live)


def held(algorithm: Algorithm, level: jax.Array, row: PyTree, shared: PyTree) -> Variables:
    """Which coordinates one client trains, bools that broadcast against the model's tensors.

    Args:
      algorithm: method with sub-networks by width.
      level: level of the client, int32.
      row: row of the client, and what all clients share.
      shared: see `row`.
    """
    method = algorithm.widths
    assert method is not None
    own = widths.members(method.layout, method.counts_of(level), method.orders(level, row, shared))
    if algorithm.mask is None:
        return own
    return own._replace(params=jax.tree.map(both, own.params, algorithm.mask(row, shared)))


def mask_shapes(algorithm: Algorithm, row: PyTree, shared: PyTree) -> PyTree:
    """One client's mask as `ShapeDtypeStruct`s, or None if everything trains.

    Args:
      algorithm: method.
      row: row of one client.
      shared: value of `Plan.shared`.
    """
    if algorithm.widths is not None:
        level = jax.ShapeDtypeStruct((), jnp.int32)
        return jax.eval_shape(lambda *a: held(algorithm, *a).params, level, row, shared)
    return None if algorithm.mask is None else jax.eval_shape(algorithm.mask, row, shared)


def both(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a & b` of masks of one tensor, which broadcast from the right."""
    rank = max(a.ndim, b.ndim)
    a, b = _ranked(a, rank), _ranked(b, rank)
    shape = jnp.broadcast_shapes(a.shape, b.shape)
    return jnp.broadcast_to(a, shape) & jnp.broadcast_to(b, shape)


def _ranked(keep: jax.Array, rank: int) -> jax.Array:
    return keep.reshape((1,) * (rank - keep.ndim) + keep.shape)
