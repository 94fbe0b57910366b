r"""Selection of tensors within a budget: exact, on the device, for all clients together.

    maximise  sum_{k in A} I_k   subject to   sum_{k in A} t_w^k + chain(min A) <= budget

The cost depends on A only through the sum of t_w and the shallowest tensor d. A loop over d, from
the output to the input, keeps the value table V of a 0/1 knapsack over the deeper tensors. The best
set whose shallowest tensor is d has the value `I_d + V[budget - chain(d) - t_w^d]`. This takes
O(K Q) and is exact on the quantised instance. The dynamic programme of ElasticTrainer takes
O(K^2 Q) and is not exact (methods/fedel.md 1.4, 1.5).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms.fedel.budget import Prices

Array = jax.Array

# Number of clients whose tables are filled in parallel; a larger number only needs more memory.
_SIDE_BY_SIDE = 32
# Units of a tensor that must not be chosen; the sum of a few of them fits an int32.
_NEVER = 2**29


def choose(
    worth: np.ndarray,
    prices: Prices,
    block: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    buckets: int,
) -> np.ndarray:
    """The tensors of its window that each client trains: all if they fit, otherwise the best set.

    A window that fits completely is not quantised. A client that affords no tensor, or has no
    tensor of positive importance, trains the best tensor of its window's last block;
    `Accounts.bill` records the overrun.

    Args:
      worth: importance of each tensor, float32[n, K].
      prices: prices and budgets of the same clients.
      block: block of each tensor, int64[K].
      lo: first block of each window, int64[n].
      hi: last block of each window, int64[n].
      buckets: resolution, number of parts of the budget.

    Returns:
      Masks bool[n, K]; no set is empty.
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
    # A last block without parameters has no tensor; take the deepest tensor in the window.
    top = np.where(
        np.isfinite(top).any(axis=1, keepdims=True), top, np.where(inside, worth, -np.inf)
    )
    fallback = np.equal(np.arange(len(block)), np.argmax(top, axis=1)[:, None])
    return np.where(chosen.any(axis=1, keepdims=True), chosen, fallback)


def quantise(
    weight: np.ndarray, chain: np.ndarray, budget: np.ndarray, buckets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Costs in units of `budget / buckets`, rounded up, so that no set exceeds the budget.

    Args:
      weight: price t_w of each client's tensors, float64[n, K].
      chain: price of the gradient's path to each tensor, float64[n, K]; inf excludes the tensor.
      budget: budget of each client, float64[n]; a budget <= 0 affords nothing, inf all tensors.
      buckets: number of units of a budget, Q.

    Returns:
      The arrays `(weight, chain)`, int32[n, K].
    """
    unit = np.maximum(budget, 0.0)[:, None] / buckets

    def of(cost: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            # A tolerance for rounding: a cost of exactly m units counts as m.
            units = np.ceil(cost / unit - 1e-9)
        units = np.where(np.isinf(unit) & np.isfinite(cost), 0.0, units)
        return np.where(units <= buckets, np.maximum(units, 0.0), _NEVER).astype(np.int32)

    closed = (budget <= 0)[:, None]
    return of(weight), np.where(closed, np.int32(_NEVER), of(chain))


@functools.partial(jax.jit, static_argnames="buckets")
def select(importance: Array, weight: Array, chain: Array, buckets: int) -> tuple[Array, Array]:
    """The best set of every client within `buckets` units; tensors are ordered from the input.

    Of equal sets the one nearer to the output is chosen, then the cheaper one. Tensors of
    importance <= 0 are never chosen.

    Args:
      importance: importance of each tensor, float32[n, K].
      weight: units of each tensor's own gradient, int32[n, K], >= 0.
      chain: units of the path to each tensor, int32[n, K], >= 0; above `buckets` it is excluded.
      buckets: budget in units, Q.

    Returns:
      The masks bool[n, K], and the sums of the chosen importances float32[n].
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
        capacity = buckets - chain - weight
        value = gain + table[jnp.clip(capacity, 0, buckets)]
        better = worthwhile & (capacity >= 0) & (value > best)
        # table[q - weight], without entries below 0
        padded = jnp.concatenate([nothing, table])
        moved = jax.lax.dynamic_slice_in_dim(padded, buckets + 1 - weight, buckets + 1)
        take = worthwhile & (moved + gain > table)
        carry = (
            jnp.where(take, moved + gain, table),
            jnp.where(better, value, best),
            jnp.where(better, k, shallowest),
            jnp.where(better, capacity, left),
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
