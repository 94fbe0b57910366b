"""Rules for each coordinate by itself: the median and the trimmed mean."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Unlimited
from fedjax_het.common.options import checked
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.robust.stacking import MEMORY_BYTES, Rule, replacing


@checked
def median(*, memory_bytes: Unlimited = MEMORY_BYTES) -> Transformation:
    """The median of each coordinate, in place of the mean of the updates.

    It is over the clients that train the coordinate and whose update is merged; of an even number
    it is the mean of the middle two. If fewer than half of them attack, it lies between the
    smallest and the largest honest update. Weights have no effect, and an update that a compression
    did not send counts as zero. Running statistics get the median as well.

    Args:
      memory_bytes: limit of the memory for the updates of a step: 5 bytes per parameter for each
        client of the cohort, or for twice as many under a pace that refills.

    References:
      Yin et al., *Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*, 2018,
      Algorithm 1, option I.
    """
    return replacing(Rule("robust.median", _trimmed(lambda m: (m - 1) // 2)), memory_bytes)


@checked
def trimmed_mean(share: float, *, memory_bytes: Unlimited = MEMORY_BYTES) -> Transformation:
    r"""The mean of each coordinate without its extremes, in place of the mean of the updates.

    Of the m clients that train the coordinate and whose update is merged, the $\lfloor \beta m
    \rfloor$ smallest and as many largest are left out. Weights have no effect, and an update that a
    compression did not send counts as zero. Running statistics get the trimmed mean as well.

    Args:
      share: share beta to leave out on each side, in [0, 0.5), at least the share of attackers.
      memory_bytes: limit of the memory for the updates of a step: 5 bytes per parameter for each
        client of the cohort, or for twice as many under a pace that refills.

    References:
      Yin et al., *Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*, 2018,
      Algorithm 1, option II.
    """
    require(
        0 <= share < 0.5,
        f"share = {share} of robust.trimmed_mean",
        "must lie in [0, 0.5), the part that is left out on each side",
        "use 0.2, or robust.median for the limit 0.5",
    )
    # Shares such as 0.29 of 100 clients must not lose one by rounding.
    rule = Rule("robust.trimmed_mean", _trimmed(lambda m: int(share * m + 1e-9)))
    return replacing(rule, memory_bytes, share=share)


def _trimmed(cut: Callable[[int], int]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`Rule.middle` that leaves out `cut(m) < m / 2` of m values on each side."""

    def middle(values: jax.Array, counts: jax.Array) -> jax.Array:
        rows = values.shape[0]
        cuts = jnp.asarray([cut(m) if m else 0 for m in range(rows + 1)], jnp.int32)
        number = jnp.sum(counts.astype(jnp.int32), axis=0)
        low = cuts[number]
        rank = jnp.arange(rows, dtype=jnp.int32).reshape((-1,) + (1,) * (values.ndim - 1))
        inside = (rank >= low[None]) & (rank < (number - low)[None])
        # Absent values come last.
        ranked = in_order(jnp.where(counts, values, jnp.inf))
        total = jnp.sum(jnp.where(inside, ranked, 0.0), axis=0)
        return total / jnp.maximum(number - 2 * low, 1).astype(jnp.float32)

    return middle


def in_order(values: jax.Array) -> jax.Array:
    """Every coordinate of `values` sorted over the leading axis, ascending.

    A bitonic network: a few passes of minimum and maximum over whole rows, because XLA's sort
    compares one column after the other, which took 60 times as long on a CPU (10 rows of 100,000).

    Args:
      values: numbers without NaN, float32[r, ...].
    """
    rows = values.shape[0]
    own = jnp.arange(rows, dtype=jnp.int32)

    def stage(values: jax.Array, partner: jax.Array) -> tuple[jax.Array, None]:
        other = values[partner]
        first = (own <= partner).reshape((-1,) + (1,) * (values.ndim - 1))
        return jnp.where(first, jnp.minimum(values, other), jnp.maximum(values, other)), None

    return jax.lax.scan(stage, values, jnp.asarray(_partners(rows)))[0]


def _partners(rows: int) -> np.ndarray:
    """The row with which each row is compared in each stage, int32[stages, rows].

    The smaller value always goes to the smaller row, so rows up to the next power of two may be
    thought of as infinite: a row whose partner is one of them keeps its value.
    """
    own = np.arange(rows, dtype=np.int32)
    stages, size = [], 2
    while size < 2 * rows:
        distances = [size - 1, *(size >> s for s in range(2, size.bit_length()))]
        for distance in distances:
            partner = own ^ distance
            stages.append(np.where(partner < rows, partner, own))
        size *= 2
    return np.asarray(stages, np.int32).reshape(-1, rows)
