"""Late updates: discounts by their staleness, merges that apply one, and a cap on staleness."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import weighted_sum, zeros
from fedjax_het.contract.algorithm import Aggregator, Chunk, Merged, Variables
from fedjax_het.contract.clock import Closing, Flight, Pace, Status

Discount = Callable[[jax.Array], jax.Array]


def discount(kind: str, a: float = 0.5, b: float = 4.0) -> Discount:
    r"""Weight $s(\tau)$ of an update that is $\tau \ge 0$ server steps late; s(0) = 1, decreasing.

    "constant": 1. "polynomial": $(\tau + 1)^{-a}$. "hinge": 1 up to b, then
    $1 / (a (\tau - b) + 1)$, which is continuous at b.

    Args:
      kind: kind of the discount, "constant", "polynomial" or "hinge".
      a: exponent of the polynomial, or slope of the hinge.
      b: number of steps without a discount, for the hinge.

    Returns:
      Function from tau to s, float32 of the same shape; for NumPy and traced arrays.

    References:
      Xie et al., *Asynchronous Federated Optimization*, 2019, section 5.1.
    """
    require_known(kind, ("constant", "polynomial", "hinge"), "staleness")
    require(
        np.isfinite(a) and a >= 0, f"a = {a}", "must be at least 0", "try 0.5, or 10 for a hinge"
    )
    require(b >= 0, f"b = {b}", "must be at least 0", "try 4")

    def of(tau: jax.Array) -> jax.Array:
        tau = jnp.asarray(tau).astype(jnp.float32)
        if kind == "constant":
            return jnp.ones_like(tau)
        if kind == "polynomial":
            return (tau + 1.0) ** -a
        return 1.0 / (a * jnp.maximum(tau - b, 0.0) + 1.0)

    return of


def discounted_sum(late: Discount, scale: float = 1.0) -> Aggregator:
    r"""$w \leftarrow w + \eta \sum_i a_i s(\tau_i) \Delta_i$, without dividing by the weights.

    Args:
      late: discount s.
      scale: factor eta of the sum.

    Returns:
      An `Aggregator`; running statistics are merged in the same way.
    """

    def init(state: PyTree, variables: Variables, mask_shapes: PyTree) -> Variables:
        del state, mask_shapes
        return zeros(variables)

    def add(acc: Variables, chunk: Chunk) -> Variables:
        coefficient = chunk.weight * late(chunk.staleness)
        return jax.tree.map(
            lambda s, d: s if d is None else s + weighted_sum(coefficient, d),
            acc,
            Variables(chunk.delta, chunk.stats_delta),
        )

    def finalize(acc: Variables, variables: Variables, shared: PyTree) -> Merged:
        del shared
        return Merged(jax.tree.map(lambda old, s: old + scale * s, variables, acc))

    return Aggregator(init, add, finalize)


def mixing(late: Discount, alpha: float) -> Aggregator:
    r"""$w \leftarrow (1 - \alpha_t) w + \alpha_t w_i$ with $\alpha_t = \alpha s(\tau_i)$.

    If several clients are merged at once, the sum of their alpha_t must not exceed 1. A client is
    left out if its weight is 0; otherwise its weight has no effect.

    Args:
      late: discount s.
      alpha: weight of a client that is not late.

    Returns:
      An `Aggregator` that reports `mixed`, the sum of alpha_t.
    """

    def init(state: PyTree, variables: Variables, mask_shapes: PyTree) -> Any:
        del state, mask_shapes
        return zeros((variables, jnp.float32(0.0)))

    def add(acc: Any, chunk: Chunk) -> Any:
        coefficient = jnp.where(chunk.weight > 0, alpha * late(chunk.staleness), 0.0)
        own = jax.tree.map(
            lambda start, d: start if d is None else start + d,
            chunk.start,
            Variables(chunk.delta, chunk.stats_delta),
        )
        models = jax.tree.map(lambda s, w: s + weighted_sum(coefficient, w), acc[0], own)
        return models, acc[1] + jnp.sum(coefficient)

    def finalize(acc: Any, variables: Variables, shared: PyTree) -> Merged:
        del shared
        models, mixed = acc
        new = jax.tree.map(lambda old, s: (1.0 - mixed) * old + s, variables, models)
        return Merged(new, {"mixed": mixed})

    return Aggregator(init, add, finalize)


def scaled(chunk: Chunk, late: Discount) -> Chunk:
    r"""The chunk with every update multiplied by its discount, $\Delta_i s(\tau_i)$.

    The weights stay as they are. A mean of updates therefore becomes $\sum_i a_i s(\tau_i) \Delta_i
    / \sum_i a_i$, in which a discount makes the step smaller, even that of a client that arrives
    alone. (Discounted weights $a_i s(\tau_i)$ would only shift the mean between the arrivals.)
    With equal weights and K arrivals a mean is the rule of FedBuff.

    Args:
      chunk: updates on their way to a merge.
      late: discount s, see `Pace.discount`.

    References:
      Nguyen et al., *Federated Learning with Buffered Asynchronous Aggregation*, 2022, Algorithm 1.
    """
    s = late(chunk.staleness)

    def of(update: jax.Array) -> jax.Array:
        each = s.reshape(s.shape + (1,) * (update.ndim - 1)).astype(update.dtype)
        return update * jnp.broadcast_to(each, update.shape)

    delta, stats_delta = jax.tree.map(of, (chunk.delta, chunk.stats_delta))
    return chunk._replace(delta=delta, stats_delta=stats_delta)


def capped(pace: Pace, max_staleness: int | None) -> Pace:
    """The pace with a cap on staleness, see `Pace.max_staleness`; None for no cap."""
    require(
        max_staleness is None or max_staleness >= 0,
        f"max_staleness = {max_staleness}",
        "must be at least 0 server steps",
        "use 10, or None for no limit",
    )
    return pace._replace(max_staleness=max_staleness)


def give_up(pace: Pace, flight: Flight, closing: Closing, step: int) -> Closing:
    """The closing in which tasks that wait, but would be merged too late, are dropped.

    A task from version v that waits at step t is merged at step t + 1 at the earliest, t + 1 - v
    steps late. Its client stops at this merge, without an upload, and is idle again.

    Args:
      pace: pace with a cap, or without one.
      flight: tasks in flight.
      closing: decision of the pace on these tasks.
      step: number of the server step, from 0.
    """
    if pace.max_staleness is None:
        return closing
    doomed = step + 1 - flight.version > pace.max_staleness
    status = [
        Status.DROPPED if old is Status.WAITING and late else old
        for old, late in zip(closing.status, doomed, strict=True)
    ]
    return closing._replace(status=status)
