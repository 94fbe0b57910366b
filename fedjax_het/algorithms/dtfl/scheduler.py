r"""The tier scheduler: who trains at which cut next, so that the round is as short as it can be.

For client k, seen to compute for $\tau_k$ seconds in its tier $m_k$, a round in tier m' would take

    T_k(m') = max( c(m') / c(m_k) tau_k,  s(m') n_k ) + transfer_k(m')

with c and s from a `Profile`. The round cannot be shorter than
$T_{max} = \max_k \min_{m'} T_k(m')$, and needs no longer: clients are independent. Within it every
client gets the deepest tier, the one that leaves the least to the server. NumPy over all clients at
once.

Reference: DTFL, arXiv 2312.05642, Algorithm 1, TierScheduler; methods/dtfl.md 7.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.algorithms.dtfl.profiles import Profile, Source
from fedjax_het.common.errors import require
from fedjax_het.common.options import check_types

# The straggler equals T_max by construction, up to rounding.
_SLACK = 1e-9
# Communication is subtracted from what was measured; noise must not leave a negative time.
_LEAST_S = 1e-9


@dataclass(frozen=True)
class Scheduler:
    """How tiers are chosen.

    Attributes:
      profile: what is believed of the tiers: "analytic", "paper", "code", or a `Profile`.
      ema: weight of a new observation, in (0, 1]. The paper's is unknown, the authors' code has 2/3
        and, in an older version, 1/3.
      initial_tier: everyone's first tier, from 1; at most M.
      fixed_tier: tier, from 1, of everyone or of each client throughout; None lets tiers move.
      lagged: whether the T_max of the round before decides, as in the authors' code.
    """

    profile: Source | Profile = "analytic"
    ema: float = 2 / 3
    initial_tier: int = 2
    fixed_tier: int | Sequence[int] | None = None
    lagged: bool = False

    def __post_init__(self) -> None:
        check_types(vars(self), "scheduler option", type(self))
        require(0 < self.ema <= 1, f"scheduler.ema = {self.ema}", "must lie in (0, 1]", "use 2/3")


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


def first_tiers(options: Scheduler, holds: np.ndarray) -> np.ndarray:
    """Everyone's first tier, int64[n], from 0.

    Args:
      options: options of the scheduler.
      holds: whether each device can hold its half in each tier, bool[n, M]. Who cannot hold the
        wanted tier takes the nearest one; of two, the shallower.
    """
    n, count = holds.shape
    pinned = options.fixed_tier is not None
    name = "fixed_tier" if pinned else "initial_tier"
    value = options.fixed_tier if pinned else min(options.initial_tier, count)
    wanted = np.asarray(value)
    require(
        wanted.dtype.kind in "iu"
        and wanted.shape in ((), (n,))
        and bool(np.all((wanted >= 1) & (wanted <= count))),
        f"scheduler.{name} = {value}",
        f"must be a tier from 1 to {count}, or one for each of the {n} clients",
        "tier 1 leaves most of the network to the server",
    )
    tier = np.broadcast_to(wanted.astype(np.int64) - 1, (n,))
    every = np.arange(count)[None, :]
    away = np.abs(every - tier[:, None]) * 2 + (every > tier[:, None])
    return np.argmin(np.where(holds, away, np.iinfo(np.int64).max), axis=1)


def advance(
    history: History,
    options: Scheduler,
    profile: Profile,
    *,
    clients: np.ndarray,
    tier: np.ndarray,
    compute_s: np.ndarray,
    samples: np.ndarray,
    transfer_s: np.ndarray,
    holds: np.ndarray,
) -> History:
    """Takes up a round and assigns the tiers of the next one: TierScheduler as a whole.

    Args:
      history: what is remembered so far.
      options: options of the scheduler.
      profile: relative client times and the server's.
      clients: ids of those who took part, int64[k], distinct.
      tier: tier that each trained in, int64[k].
      compute_s: time of each task without its communication, float64[k].
      samples: samples of a round, int64[k].
      transfer_s: communication in each tier, float64[k, M].
      holds: whether each device can hold its half in each tier, bool[k, M].
    """
    history = observe(history, clients, tier, compute_s, options.ema)
    round_s = estimate(profile, history.ema_s[clients, tier], tier, samples, transfer_s)
    round_s = np.where(holds, round_s, np.inf)
    chosen, longest_s = assign(round_s, float(history.longest_s) if options.lagged else None)
    if options.fixed_tier is not None:
        chosen = history.tier[clients]
    return reassign(history, clients, chosen, longest_s)


def smooth(old_s: Any, new_s: Any, alpha: float) -> np.ndarray:
    """`alpha new + (1 - alpha) old`, float64; the new value itself where there is no old one."""
    return np.where(np.isnan(old_s), new_s, alpha * new_s + (1.0 - alpha) * old_s)


def observe(
    history: History, clients: np.ndarray, tier: np.ndarray, compute_s: np.ndarray, alpha: float
) -> History:
    """Takes up the compute times of a round's tasks.

    Args:
      history: what is remembered so far.
      clients: ids of those who took part, int64[k], distinct.
      tier: tier that each trained in, int64[k]; only that tier's average moves.
      compute_s: time of each task without its communication, float64[k].
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
      tau_s: smoothed compute time in the client's own tier, float64[k].
      tier: that tier, int64[k].
      samples: samples of a round, int64[k].
      transfer_s: communication in each tier, float64[k, M].
    """
    client_s = tau_s[:, None] * (profile.client_s[None, :] / profile.client_s[tier][:, None])
    server_s = np.asarray(samples, np.float64)[:, None] * profile.server_s[None, :]
    return np.maximum(client_s, server_s) + transfer_s


def assign(round_s: np.ndarray, longest_s: float | None = None) -> tuple[np.ndarray, float]:
    """The deepest tier of each client that does not prolong the round.

    The tiers that fit need not be adjacent: with activations that shrink with depth the deepest may
    fit where a middle one does not.

    Args:
      round_s: round times from `estimate`, float64[k, M]; inf for a tier that a device cannot hold.
      longest_s: bound in place of this round's T_max (the authors' code takes the last one); a
        client that fits nowhere within it gets the shallowest tier it can hold.

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
