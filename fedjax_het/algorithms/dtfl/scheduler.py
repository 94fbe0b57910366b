r"""The tier scheduler: who trains at which cut next, so that the round is as short as it can be.

For client k, seen to compute for $\tau_k$ seconds in its tier $m_k$, a round in tier m' would take

    T_k(m') = max( c(m') / c(m_k) tau_k,  s(m') n_k ) + transfer_k(m')

with c and s from a `Profile`. The round cannot be shorter than
$T_{max} = \max_k \min_{m'} T_k(m')$, and needs no longer: clients are independent. Within it every
client gets the deepest tier, the one that leaves the least to the server. NumPy over all clients at
once.

Reference: DTFL, arXiv 2312.05642, Algorithm 1, TierScheduler.
"""

from typing import Any, NamedTuple

import numpy as np

from fedjax_het.algorithms.dtfl.profiles import Profile

# The straggler equals T_max by construction, up to rounding.
_SLACK = 1e-9
# Communication is subtracted from what was measured; noise must not leave a negative time.
_LEAST_S = 1e-9


class History(NamedTuple):
    """What the server remembers of every client.

    Attributes:
      tier: int64[n], tier of each client's next task, from 0.
      ema_s: float64[n, M], smoothed compute time of its tasks in each tier; NaN before the first.
      longest_s: float64[], T_max of the last call, for the lagged rule.
    """

    tier: np.ndarray
    ema_s: np.ndarray
    longest_s: np.ndarray


def begin(num_clients: int, tiers: int, initial: np.ndarray | int) -> History:
    """Nobody observed yet, everyone in tier `initial` (from 0).

    The authors' code starts the lagged T_max at 1000 s.
    """
    tier = np.broadcast_to(np.asarray(initial, np.int64), (num_clients,)).copy()
    unseen = np.full((num_clients, tiers), np.nan)
    return History(tier, unseen, np.asarray(1000.0))


def smooth(old_s: Any, new_s: Any, alpha: float) -> np.ndarray:
    """`alpha new + (1 - alpha) old`, float64; the new value itself where there is no old one."""
    return np.where(np.isnan(old_s), new_s, alpha * new_s + (1.0 - alpha) * old_s)


def observe(
    history: History, clients: np.ndarray, tier: np.ndarray, compute_s: np.ndarray, alpha: float
) -> History:
    """Takes up the compute times of a round's tasks.

    Args:
      history: so far.
      clients: int64[k], distinct.
      tier: int64[k], the tier each trained in; only that tier's average moves.
      compute_s: float64[k], time of the task without its communication.
      alpha: weight of the new observation, in (0, 1].
    """
    ema_s = history.ema_s.copy()
    ema_s[clients, tier] = smooth(ema_s[clients, tier], np.maximum(compute_s, _LEAST_S), alpha)
    return history._replace(ema_s=ema_s)


def estimate(
    profile: Profile,
    tau_s: np.ndarray,
    tier: np.ndarray,
    samples: np.ndarray,
    transfer_s: np.ndarray,
) -> np.ndarray:
    """Round times of every client in every tier, float64[k, M].

    Args:
      profile: relative client times and the server's.
      tau_s: float64[k], smoothed compute time in the client's own tier.
      tier: int64[k], that tier.
      samples: [k], samples of a round.
      transfer_s: float64[k, M], communication in each tier.
    """
    client_s = tau_s[:, None] * (profile.client_s[None, :] / profile.client_s[tier][:, None])
    server_s = np.asarray(samples, np.float64)[:, None] * profile.server_s[None, :]
    return np.maximum(client_s, server_s) + transfer_s


def assign(round_s: np.ndarray, longest_s: float | None = None) -> tuple[np.ndarray, float]:
    """The deepest tier of each client that does not prolong the round.

    The tiers that fit need not be adjacent: with activations that shrink with depth the deepest may
    fit where a middle one does not.

    Args:
      round_s: float64[k, M] from `estimate`; inf for a tier that a device cannot hold.
      longest_s: a bound to use in place of this round's T_max (the authors' code takes the last
        one); a client that fits nowhere within it gets the shallowest tier it can hold.

    Returns:
      Tiers int64[k], and this round's T_max.
    """
    best_s = float(np.max(np.min(round_s, axis=1)))
    bound_s = best_s if longest_s is None else longest_s
    fits = np.isfinite(round_s) & (round_s <= bound_s * (1 + _SLACK))
    deepest = round_s.shape[1] - 1 - np.argmax(fits[:, ::-1], axis=1)
    shallowest = np.argmax(np.isfinite(round_s), axis=1)
    return np.where(fits.any(axis=1), deepest, shallowest), best_s


def reassign(history: History, clients: np.ndarray, tier: np.ndarray, longest_s: float) -> History:
    """Puts the tiers of `assign` in place; everyone else keeps tier and history."""
    tiers = history.tier.copy()
    tiers[clients] = tier
    return history._replace(tier=tiers, longest_s=np.asarray(longest_s))
