"""The tensors of a window that a client trains: all if they fit, else the best, never none."""

import numpy as np

from fedjax_het.algorithms.fedel.budget import Budget
from fedjax_het.algorithms.fedel.selection import quantise, select


def choose(
    accounts: Budget,
    clients: np.ndarray,
    samples: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    worth: np.ndarray,
    buckets: int,
) -> np.ndarray:
    """The tensors each client trains, bool[k, K]; never none.

    A window that fits whole is not quantised. A client that can afford nothing, or to whom nothing
    matters, trains the best tensor of its window's last block; `Budget.bill` records the overrun.
    """
    block = accounts.times.block
    inside = (block >= lo[:, None]) & (block <= hi[:, None])
    weight, chain, room = accounts.prices(clients, samples, hi)
    wanted = inside & (worth > 0)
    way = chain[np.arange(len(lo)), np.argmax(wanted, axis=1)]
    whole = np.sum(np.where(wanted, weight, 0.0), axis=1) + way
    fits: np.ndarray = wanted.any(axis=1) & (whole <= room * (1 + 1e-9))
    units = quantise(weight, np.where(inside, chain, np.inf), room, buckets)
    best, _ = select(worth.astype(np.float32), *units, buckets)
    chosen = np.where(fits[:, None], wanted, np.asarray(best))
    top = np.where(block == hi[:, None], worth, -np.inf)
    # A block without parameters has no tensor to fall back on; take the deepest one inside.
    top = np.where(
        np.isfinite(top).any(axis=1, keepdims=True), top, np.where(inside, worth, -np.inf)
    )
    fallback = np.equal(np.arange(len(block)), np.argmax(top, axis=1)[:, None])
    return np.where(chosen.any(axis=1, keepdims=True), chosen, fallback)
