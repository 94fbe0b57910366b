"""The window of blocks that slides through the network, one per client; NumPy, all clients at once.

Blocks count from 0 at the input. The *front edge* `hi` is the deep side, the *end edge* `lo` the
shallow side. At the start of each of its rounds a client (Zhang et al. 2025, section 4.1;
methods/fedel.md 2.1)

1. *wraps*: a window whose front edge was the last block starts again at the input;
2. pulls up the end edge past the leading blocks of which nothing was selected last time;
3. pushes the front edge on by the fewest new blocks whose backward time reaches the threshold.

Where the front edge goes depends on times alone, never on the data.
"""

from typing import Literal

import numpy as np

from fedjax_het.common.errors import require_known

Variant = Literal["fedel", "C", "no_rollback", "elastic_only"]
VARIANTS = ("fedel", "C", "no_rollback", "elastic_only")

# A sum of times that equals the threshold up to rounding has reached it.
_ROUNDING = 1e-9


def front_edge(start: np.ndarray, block_time: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """The smallest block h >= start with `sum(block_time[start..h]) >= threshold`.

    Args:
      start: int64[n].
      block_time: float64[B], or float64[n, B] with a client's own times.
      threshold: float64[n].

    Returns:
      int64[n]; the last block where the network ends first.
    """
    block_time = np.broadcast_to(block_time, (len(start), np.shape(block_time)[-1]))
    last = block_time.shape[1] - 1
    fresh = np.where(np.arange(last + 1) >= start[:, None], block_time, 0.0)
    enough = np.cumsum(fresh, axis=1) >= threshold[:, None] * (1 - _ROUNDING)
    # A threshold of zero is reached before the window begins.
    enough &= np.arange(last + 1) >= start[:, None]
    return np.where(enough.any(axis=1), np.argmax(enough, axis=1), last)


def initial(block_time: np.ndarray, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first window `(lo, hi)`, int64[n] each: from the input on."""
    lo = np.zeros(len(threshold), np.int64)
    return lo, front_edge(lo, block_time, threshold)


def visited(block_time: np.ndarray, threshold: np.ndarray, variant: Variant) -> np.ndarray:
    """bool[n, B]: blocks at which a client's windows ever end; arguments as in `slide`."""
    n, last = len(threshold), np.shape(block_time)[-1] - 1
    seen = np.zeros((n, last + 1), bool)
    everyone = np.arange(n)
    if variant == "elastic_only":
        seen[:, last] = True
        return seen
    hi = initial(block_time, threshold)[1]
    seen[everyone, hi] = True
    while np.any(hi < last):
        hi = np.where(hi < last, front_edge(np.minimum(hi + 1, last), block_time, threshold), hi)
        seen[everyone, hi] = True
    return seen


def slide(
    lo: np.ndarray,
    hi: np.ndarray,
    selected: np.ndarray,
    block_time: np.ndarray,
    threshold: np.ndarray,
    variant: Variant = "fedel",
) -> tuple[np.ndarray, np.ndarray]:
    """The windows of the clients' next rounds.

    Args:
      lo: int64[n], end edge of the last round; -1 for a client's first round.
      hi: int64[n], front edge of the last round.
      selected: bool[n, B], blocks of which the client trained a tensor in its last round.
      block_time: float64[B] or float64[n, B], backward times.
      threshold: float64[n], in the same unit.
      variant: "fedel"; "C": consecutive windows share no block; "no_rollback": a window that has
        reached the end stays there; "elastic_only": always the whole network (ElasticTrainer).

    Returns:
      `(lo, hi)` int64[n] each.
    """
    require_known(variant, VARIANTS, "variant")
    last = np.shape(block_time)[-1] - 1
    if variant == "elastic_only":
        return np.zeros_like(lo), np.full_like(hi, last)
    inside = (np.arange(last + 1) >= lo[:, None]) & (np.arange(last + 1) <= hi[:, None])
    kept = selected & inside
    ahead = np.minimum(hi + 1, last)
    end = np.where(kept.any(axis=1) & (variant != "C"), np.argmax(kept, axis=1), ahead)
    front = front_edge(ahead, block_time, threshold)
    first_lo, first_hi = initial(block_time, threshold)
    at_end = (lo >= 0) & (hi >= last)
    fresh = (lo < 0) if variant == "no_rollback" else (lo < 0) | at_end
    stay = at_end & (variant == "no_rollback")
    new_lo = np.where(fresh, first_lo, np.where(stay, lo, end))
    new_hi = np.where(fresh, first_hi, np.where(stay, hi, front))
    return new_lo, new_hi
