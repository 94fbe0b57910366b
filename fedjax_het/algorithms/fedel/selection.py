r"""Which tensors to train within a budget: exact, on the device, for all clients at once.

    maximise  sum_{k in A} I_k   subject to   sum_{k in A} t_w^k + chain(min A) <= budget

The cost depends on A only through the sum of t_w and the shallowest tensor d. So walk d from the
output inwards and keep an ordinary 0/1 knapsack V over the t_w passed so far: the best set whose
shallowest tensor is d is worth `I_d + V[budget - chain(d) - t_w^d]`. That is O(K Q) and exact on
the quantised instance; the dynamic programme of ElasticTrainer is O(K^2 Q) and is not (see
`official_select`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Clients whose tables are filled side by side; more only costs memory.
_SIDE_BY_SIDE = 32
# Units of what may not be chosen; a few of them still fit an int32.
_NEVER = 2**29


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


def official_select(
    importance: np.ndarray, weight: np.ndarray, through: np.ndarray, budget: int
) -> tuple[np.ndarray, float]:
    """ElasticTrainer's dynamic programme, one client, inclusive chain; for comparison only.

    Three of its properties are kept: a chain that fits whole never considers the first tensor; a
    state whose best set leaves its tensor out hides the one that trains it; a budget too small for
    anything is worth -99999.

    Args:
      importance: float64[K], input to output.
      weight: int64[K], t_w.
      through: int64[K], t_g.
      budget: units.

    Returns:
      chosen bool[K] and the value found.

    References:
      Huang et al., *ElasticTrainer*, MobiSys 2023, and its code; specification 1.4.
    """
    gain, own, way = (np.asarray(a)[::-1] for a in (importance, weight, through))
    beyond = np.flatnonzero(np.cumsum(way) > budget)
    considered = int(beyond[0]) if beyond.size else len(gain) - 1
    # State (j, t): the last j tensors within time t. Sets are linked through their shallowest.
    value = np.full((considered + 1, budget + 1), -99999.0)
    ends_here = np.zeros((considered + 1, budget + 1), bool)
    chosen = np.zeros((considered + 1, budget + 1, len(gain)), bool)
    ends_here[0] = True
    for j in range(1, considered + 1):
        value[j], chosen[j] = value[j - 1], chosen[j - 1]
        for before in range(j):
            step = int(own[j - 1] + np.sum(way[before:j]))
            for t in range(step, budget + 1):
                found = gain[j - 1] + (value[before, t - step] if before else 0.0)
                if ends_here[before, t - step] and found > value[j, t] and gain[j - 1] > 0:
                    value[j, t], ends_here[j, t] = found, True
                    chosen[j, t] = chosen[before, t - step]
                    chosen[j, t, j - 1] = True
    best = np.unravel_index(np.argmax(value), value.shape)
    return chosen[best][::-1], float(value[best])
