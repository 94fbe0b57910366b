"""Windows of blocks that slide through the network, one per client; vectorised NumPy.

Blocks count from 0 at the input. The *front edge* `hi` is the deep side, the *end edge* `lo` the
shallow side. At the start of each of its rounds a client's window (Zhang et al. 2025, section 4.1;
methods/fedel.md 2.1)

1. *wraps*: it starts again at the input if its front edge was the last block;
2. moves its end edge past the leading blocks of which no tensor was selected in the last round;
3. moves its front edge by the fewest new blocks whose backward time reaches the threshold.

The front edge depends only on times, not on the data.
"""

from typing import Literal

import numpy as np

from fedjax_het.common.errors import require_known

Variant = Literal["fedel", "C", "no_rollback", "elastic_only"]
VARIANTS = ("fedel", "C", "no_rollback", "elastic_only")

# A sum of times that equals the threshold up to rounding reaches it.
_ROUNDING = 1e-9


def front_edge(start: np.ndarray, block_time: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """The smallest block h >= start with `sum(block_time[start..h]) >= threshold`.

    Args:
      start: first new block of each client, int64[n].
      block_time: backward times, float64[B], or float64[n, B] for times per client.
      threshold: threshold of each client, float64[n].

    Returns:
      Blocks int64[n]; the last block if the network ends before the threshold.
    """
    block_time = np.broadcast_to(block_time, (len(start), np.shape(block_time)[-1]))
    last = block_time.shape[1] - 1
    fresh = np.where(np.arange(last + 1) >= start[:, None], block_time, 0.0)
    enough = np.cumsum(fresh, axis=1) >= threshold[:, None] * (1 - _ROUNDING)
    # A threshold of zero is reached before the window starts.
    enough &= np.arange(last + 1) >= start[:, None]
    return np.where(enough.any(axis=1), np.argmax(enough, axis=1), last)


def initial(block_time: np.ndarray, threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first windows `(lo, hi)`, which start at the input, int64[n] each."""
    lo = np.zeros(len(threshold), np.int64)
    return lo, front_edge(lo, block_time, threshold)


def visited(block_time: np.ndarray, threshold: np.ndarray, variant: Variant) -> np.ndarray:
    """Mask of the blocks at which windows of a client end, bool[n, B]; arguments of `slide`."""
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
      lo: end edge of the last round, int64[n]; -1 for a client's first round.
      hi: front edge of the last round, int64[n].
      selected: mask of the blocks of which the client trained a tensor in its last round, bool[n,
        B].
      block_time: backward times, float64[B] or float64[n, B].
      threshold: threshold of each client in the same unit, float64[n].
      variant: rule of the windows: "fedel", as above; "C", consecutive windows share no block;
        "no_rollback", a window at the end stays there; "elastic_only", always the whole network
        (ElasticTrainer).

    Returns:
      The windows `(lo, hi)`, int64[n] each.
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
