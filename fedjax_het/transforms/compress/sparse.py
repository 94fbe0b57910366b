"""Sparse updates: the largest coordinates of each client, or random ones."""

from fractions import Fraction
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Unlimited
from fedjax_het.common.options import checked
from fedjax_het.common.types import PyTree
from fedjax_het.contract.uploads import leaf_keys
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.compress.feedback import MEMORY_BYTES
from fedjax_het.transforms.compress.parts import VALUE_BYTES, compressing, count, trained

_SEED_BYTES = 8
_PARTS = 2**15  # largest denominator of a share, whose products then fit int32

Number = TypeVar("Number", np.ndarray, jax.Array)


@checked
def top_k(
    share: float, *, error_feedback: bool = False, memory_bytes: Unlimited = MEMORY_BYTES
) -> Transformation:
    """Sends the coordinates of largest magnitude, k = ceil(share d) of the d that a client trains.

    They are the largest of the whole update, not of each tensor; of equal ones the first are sent.
    Each takes its value and its index among the P coordinates that the client could send: k (4 +
    ceil(log2 P) / 8) bytes. The other coordinates count in the merge as updates of zero.

    Without error feedback the updates are biased, and training may stall short of the optimum; with
    it the memory of the clients' residuals is that of n models on one device, and rounds run one by
    one.

    Args:
      share: share of the coordinates to send, 2^-15 to 1, taken as the nearest fraction with a
        denominator up to 2^15.
      error_feedback: whether clients add what they did not send to their next update.
      memory_bytes: largest memory for these residuals, 4 bytes per client and parameter.

    References:
      Aji and Heafield, *Sparse Communication for Distributed Gradient Descent*, EMNLP 2017; Stich
      et al., *Sparsified SGD with Memory*, NeurIPS 2018.
    """
    portion = _portion(share)

    def compress(delta: PyTree, mask: PyTree, key: jax.Array) -> PyTree:
        del key
        values, restore = ravel_pytree(delta)
        flags = trained(delta, mask)
        # The bits of a float >= 0, read as an integer, have its order.
        scores = jax.lax.bitcast_convert_type(jnp.abs(values), jnp.uint32)
        chosen = largest(scores, flags, part_of(portion, count(flags)))
        return restore(jnp.where(chosen, values, 0.0))

    def size(coordinates: np.ndarray) -> np.ndarray:
        index_bits = np.ceil(np.log2(np.maximum(coordinates, 1))).astype(np.int64)
        bits = part_of(portion, coordinates) * (8 * VALUE_BYTES + index_bits)
        return (bits + 7) // 8

    return compressing(
        "top_k",
        compress,
        size,
        contracts=True,
        error_feedback=error_feedback,
        memory_bytes=memory_bytes,
        share=share,
    )


@checked
def random_k(
    share: float, *, error_feedback: bool = False, memory_bytes: Unlimited = MEMORY_BYTES
) -> Transformation:
    """Sends random coordinates, k = ceil(share d) of the d that a client trains.

    They are drawn without replacement from the key of the task, so that the server can draw them
    again from a seed: 4 k + 8 bytes. Without error feedback they are scaled by d / k, which makes
    the update unbiased and its mean square d / k times as large. With it they are sent as they are,
    because a residual may grow without bound if the compression lengthens what it is given.

    Args:
      share: share of the coordinates to send, as in `top_k`.
      error_feedback: whether clients add what they did not send to their next update, see `top_k`.
      memory_bytes: largest memory for these residuals, 4 bytes per client and parameter.

    References:
      Konečný et al., *Federated Learning: Strategies for Improving Communication Efficiency*, 2016;
      Stich et al., *Sparsified SGD with Memory*, NeurIPS 2018.
    """
    portion = _portion(share)

    def compress(delta: PyTree, mask: PyTree, key: jax.Array) -> PyTree:
        values, restore = ravel_pytree(delta)
        flags = trained(delta, mask)
        total = count(flags)
        sent = part_of(portion, total)
        draw = jax.tree.map(
            lambda x, k: jax.random.bits(k, x.shape, jnp.uint32) >> 1, delta, leaf_keys(key, delta)
        )
        chosen = largest(ravel_pytree(draw)[0], flags, sent)
        if not error_feedback:
            values = values * (jnp.float32(total) / jnp.float32(jnp.maximum(sent, 1)))
        return restore(jnp.where(chosen, values, 0.0))

    def size(coordinates: np.ndarray) -> np.ndarray:
        return VALUE_BYTES * part_of(portion, coordinates) + _SEED_BYTES

    return compressing(
        "random_k",
        compress,
        size,
        contracts=False,
        error_feedback=error_feedback,
        memory_bytes=memory_bytes,
        share=share,
    )


def largest(scores: jax.Array, allowed: jax.Array, k: jax.Array) -> jax.Array:
    """The k largest scores among those that are allowed; of equal ones the first.

    Both the smallest of them and the last place at which it counts are found bit by bit, in one
    pass over the scores per bit, which takes a third of the time of a sort.

    Args:
      scores: scores less than 2^31, uint32[P].
      allowed: whether each may be chosen, bool[P].
      k: number to choose, int32, at most the number that is allowed.

    Returns:
      Whether each is chosen, bool[P].
    """
    scores = jnp.where(allowed, scores + 1, 0)

    def threshold_bit(i: jax.Array, least: jax.Array) -> jax.Array:
        higher = least | (jnp.uint32(1) << (jnp.uint32(31) - jnp.uint32(i)))
        return jnp.where(count(scores >= higher) >= k, higher, least)

    least = jax.lax.fori_loop(0, 32, threshold_bit, jnp.uint32(0))
    above, equal = scores > least, scores == least
    missing = k - count(above)
    place = jnp.arange(scores.size, dtype=jnp.int32)
    bits = scores.size.bit_length()

    def place_bit(i: jax.Array, end: jax.Array) -> jax.Array:
        later = end | (jnp.int32(1) << (jnp.int32(bits - 1) - jnp.int32(i)))
        return jnp.where(count(equal & (place < later)) <= missing, later, end)

    end = jax.lax.fori_loop(0, bits, place_bit, jnp.int32(0))
    return above | (equal & (place < end))


def part_of(share: Fraction, total: Number) -> Number:
    """`ceil(share * total)`, exactly, for integers of any type that holds `total`.

    Args:
      share: share from 0 to 1 with a denominator up to 2^15.
      total: integers >= 0.
    """
    over, under = share.numerator, share.denominator
    return total // under * over + (total % under * over + (under - 1)) // under


def _portion(share: float) -> Fraction:
    require(
        1 / _PARTS <= share <= 1,
        f"share = {share}",
        "must be from 2^-15 to 1",
        "use 0.1 to send a tenth of the coordinates",
    )
    return Fraction(float(share)).limit_denominator(_PARTS)
