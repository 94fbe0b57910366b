"""A stateless permutation, which computes the sample at a position without stored data.

Sorting or storing an order per client would cost memory and padding to the largest client. A
cipher on `{0, ..., n - 1}` gives every client its own order of every epoch from one key, for any n,
at a cost that does not depend on n.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

# A position is uniform except for a share 2^-_ROUNDS of the coin sequences, which is about the
# rounding error of float32.
_ROUNDS = 24


def mix(h: Array) -> Array:
    """Hash of uint32: each input bit flips each output bit with a probability near 1/2."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * jnp.uint32(0x846CA68B)
    return h ^ (h >> 16)


def permute(position: Array, size: Array, key: Array) -> Array:
    r"""Image of `position` under a pseudo-random permutation of `{0, ..., size - 1}`.

    The swap-or-not shuffle repeats this step: step r pairs every x with `K_r - x (mod size)`, and a
    pseudo-random bit, the same for both, decides whether they are swapped,

        x' = (K_r - x) mod size,    x <- x' if coin_r(max(x, x')) else x.

    Every step is its own inverse, so the composition is a bijection for every `size`.

    Args:
      position: positions in `[0, size)`, int32[...].
      size: number of elements, int32 scalar >= 1; may be traced.
      key: typed PRNG key that selects the permutation.

    Returns:
      Permuted positions, int32[...], of the same shape as `position`.

    Reference:
      Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012.
    """
    bits = jax.random.bits(key, (2, _ROUNDS), jnp.uint32)
    n = jnp.asarray(size).astype(jnp.uint32)
    pivots, salts = bits[0] % n, bits[1]
    x = position.astype(jnp.uint32)
    for r in range(_ROUNDS):
        x = _swap_or_not(x, n, pivots[r], salts[r])
    return x.astype(jnp.int32)


@jax.jit  # traced once, not once per step, which halves the tracing time of a small model's program
def _swap_or_not(x: Array, n: Array, pivot: Array, salt: Array) -> Array:
    partner = jnp.where(pivot >= x, pivot - x, pivot + (n - x))
    coin = mix(jnp.maximum(x, partner) ^ salt) & 1
    return jnp.where(coin == 1, partner, x)
