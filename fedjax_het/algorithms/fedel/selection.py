r"""Which tensors to train within a budget: exact, on the device, for all clients at once.

    maximise  sum_{k in A} I_k   subject to   sum_{k in A} t_w^k + chain(min A) <= budget

The cost depends on A only through the sum of t_w and the shallowest tensor d. So walk d from the
output inwards and keep an ordinary 0/1 knapsack V over the t_w passed so far: the best set whose
shallowest tensor is d is worth `I_d + V[budget - chain(d) - t_w^d]`. That is O(K Q) and exact on
the quantised instance; the dynamic programme of ElasticTrainer is O(K^2 Q) and is not
(methods/fedel.md 1.4, 1.5).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms.fedel.budget import Prices

Array = jax.Array

# Clients whose tables are filled side by side; more only costs memory.
_SIDE_BY_SIDE = 32
# Units of what may not be chosen; a few of them still fit an int32.
_NEVER = 2**29


def choose(
    worth: np.ndarray,
    prices: Prices,
    block: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    buckets: int,
) -> np.ndarray:
    """The tensors of its window that each client trains: all if they fit, else the best set.

    A window that fits whole is not quantised. A client that can afford nothing, or to whom nothing
    matters, trains the best tensor of its window's last block; `Accounts.bill` records the overrun.

    Args:
      worth: float32[n, K], importance of each tensor.
      prices: costs and allowances of the same clients.
      block: int64[K], block of each tensor.
      lo: int64[n], first block of each window.
      hi: int64[n], last block of each window.
      buckets: resolution, parts of the budget.

    Returns:
      bool[n, K]; never an empty set.
    """
    inside = (block >= lo[:, None]) & (block <= hi[:, None])
    wanted = inside & (worth > 0)
    way = prices.chain[np.arange(len(lo)), np.argmax(wanted, axis=1)]
    whole = np.sum(np.where(wanted, prices.weight, 0.0), axis=1) + way
    fits = wanted.any(axis=1) & (whole <= prices.room * (1 + 1e-9))
    chain = np.where(inside, prices.chain, np.inf)
    units = quantise(prices.weight, chain, prices.room, buckets)
    best, _ = select(worth.astype(np.float32), *units, buckets)
    chosen = np.where(fits[:, None], wanted, np.asarray(best))
    top = np.where(block == hi[:, None], worth, -np.inf)
    # A block without parameters has no tensor to fall back on; take the deepest one inside.
    top = np.where(
        np.isfinite(top).any(axis=1, keepdims=True), top, np.where(inside, worth, -np.inf)
    )
    fallback = np.equal(np.arange(len(block)), np.argmax(top, axis=1)[:, None])
    return np.where(chosen.any(axis=1, keepdims=True), chosen, fallback)


def quantise(
    weight: np.ndarray, chain: np.ndarray, budget: np.ndarray, buckets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Costs in units of `budget / buckets`, rounded up, so that what fits always truly fits.

    Args:
      weight: float64[n, K], t_w of each client's tensors.
      chain: float64[n, K], cost of the gradient's way to each tensor; inf forbids the tensor.
      budget: float64[n]; nothing fits one that is not positive, everything fits an infinite one.
      buckets: Q.

    Returns:
      `(weight, chain)` int32[n, K].
    """
    unit = np.maximum(budget, 0.0)[:, None] / buckets

    def of(cost: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            # The last digits are rounding: a cost of exactly m units shall count m.
            units = np.ceil(cost / unit - 1e-9)
        units = np.where(np.isinf(unit) & np.isfinite(cost), 0.0, units)
        return np.where(units <= buckets, np.maximum(units, 0.0), _NEVER).astype(np.int32)

    closed = (budget <= 0)[:, None]
    return of(weight), np.where(closed, np.int32(_NEVER), of(chain))


@functools.partial(jax.jit, static_argnames="buckets")
def select(importance: Array, weight: Array, chain: Array, buckets: int) -> tuple[Array, Array]:
    """The best set of every client within `buckets` units; tensors run from input to output.

    Ties prefer the set nearer the output, then the cheaper one. Tensors of importance <= 0 are
    never chosen.

    Args:
      importance: float32[n, K].
      weight: int32[n, K], units of each tensor's own gradient, >= 0.
      chain: int32[n, K], units of the way to each tensor, >= 0; above `buckets` forbids it.
      buckets: Q, the budget in units.

    Returns:
      chosen bool[n, K] and value float32[n], the sum of the chosen importances.
    """
    return jax.lax.map(
        lambda client: _select_one(buckets, *client),
        (importance, weight, chain),
        batch_size=_SIDE_BY_SIDE,
    )


def _select_one(buckets: int, gain: Array, weight: Array, chain: Array) -> tuple[Array, Array]:
    worthwhile = (gain > 0) & (weight <= buckets) & (chain <= buckets)
    nothing = jnp.full((buckets + 1,), -jnp.inf, jnp.float32)

    def inwards(carry: tuple[Array, ...], tensor: tuple[Array, ...]) -> tuple[tuple, Array]:
        table, best, shallowest, left = carry
        gain, weight, chain, worthwhile, k = tensor
        weight = jnp.where(worthwhile, weight, 0)
        room = buckets - chain - weight
        value = gain + table[jnp.clip(room, 0, buckets)]
        better = worthwhile & (room >= 0) & (value > best)
        # table[q - weight], with nothing below 0
        padded = jnp.concatenate([nothing, table])
        moved = jax.lax.dynamic_slice_in_dim(padded, buckets + 1 - weight, buckets + 1)
        take = worthwhile & (moved + gain > table)
        carry = (
            jnp.where(take, moved + gain, table),
            jnp.where(better, value, best),
            jnp.where(better, k, shallowest),
            jnp.where(better, room, left),
        )
        return carry, take

    count = gain.shape[0]
    tensors = (gain, weight, chain, worthwhile, jnp.arange(count, dtype=jnp.int32))
    zero = jnp.zeros((), jnp.float32)
    start = (jnp.zeros((buckets + 1,), jnp.float32), zero, jnp.int32(count), jnp.int32(0))
    (_, best, shallowest, left), taken = jax.lax.scan(inwards, start, tensors, reverse=True)

    def outwards(left: Array, tensor: tuple[Array, ...]) -> tuple[Array, Array]:
        take, weight, k = tensor
        chosen = (k > shallowest) & take[left]
        return jnp.where(chosen, left - weight, left), chosen | (k == shallowest)

    _, chosen = jax.lax.scan(outwards, left, (taken, weight, tensors[-1]))
    return chosen, best
