r"""The tier scheduler, which chooses each client's next cut for the shortest round.

If client k computes for $\tau_k$ seconds in its tier $m_k$, a round in tier m' would take

    T_k(m') = max( c(m') / c(m_k) tau_k,  s(m') n_k ) + transfer_k(m')

with c and s from a `Profile`. The shortest round takes $T_{max} = \max_k \min_{m'} T_k(m')$,
because clients are independent. Every client gets the deepest tier within this time, which leaves
the least work to the server. The code is NumPy, vectorised over the clients.

Reference: DTFL, arXiv 2312.05642, Algorithm 1, TierScheduler; methods/dtfl.md 7.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.algorithms.dtfl.profiles import Profile, Source
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.options import check_types

# The time of the straggler is T_max by construction, up to rounding.
_SLACK = 1e-9
# Communication is subtracted from the measured time; with noise the result must stay positive.
_LEAST_S = 1e-9


@dataclass(frozen=True)
class Scheduler:
    """Options of the tier scheduler.

    Tiers count from 1 among the M that are allowed, also where M is below the number of boundaries:
    with `tiers=6`, tier 1 of a network of eight blocks is tier 2 of seven.

    Attributes:
      profile: assumed times of the tiers: "analytic", "paper", "code", or a `Profile`.
      ema: weight of a new observation, in (0, 1]. The paper does not state it; the authors' code
        has 2/3 and, in an older version, 1/3.
      initial_tier: first tier of all clients, from 1 to M; None for the tier of two blocks at the
        clients, the authors' start, or the shallowest if all have more.
      fixed_tier: constant tier of all clients or of each client, from 1 to M; None for dynamic
        tiers.
      lagged: whether the T_max of the previous round limits the tiers, as in the authors' code.
    """

    profile: Source | Profile = "analytic"
    ema: float = 2 / 3
    initial_tier: Count | None = None
    fixed_tier: int | Sequence[int] | None = None
    lagged: bool = False

    def __post_init__(self) -> None:
        check_types(vars(self), "scheduler option", type(self))
        require(0 < self.ema <= 1, f"scheduler.ema = {self.ema}", "must lie in (0, 1]", "use 2/3")


class History(NamedTuple):
    """State of the scheduler for every client.

    Attributes:
      tier: int64[n], tier of each client's next task, from 0.
      ema_s: float64[n, M], smoothed compute time in each tier in seconds; NaN before the first
        task.
      longest_s: float64[], T_max of the last call in seconds, for the lagged rule.
    """

    tier: np.ndarray
    ema_s: np.ndarray
    longest_s: np.ndarray


def begin(num_clients: int, tiers: int, initial: np.ndarray | int) -> History:
    """The state without observations, with all clients in tier `initial` (from 0).

    The authors' code starts the lagged T_max at 1000 s.
    """
    tier = np.broadcast_to(np.asarray(initial, np.int64), (num_clients,)).copy()
    unseen = np.full((num_clients, tiers), np.nan)
    return History(tier, unseen, np.asarray(1000.0))


def first_tiers(options: Scheduler, holds: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """First tier of each client, int64[n], from 0.

    Args:
      options: options of the scheduler.
      holds: mask of the tiers whose client half each device can hold, bool[n, M]. A device that
        cannot hold the initial tier gets the nearest possible tier; of two, the shallower.
      cut: last block of the client half in each tier, int64[M].
    """
    n, count = holds.shape
    pinned = options.fixed_tier is not None
    name = "fixed_tier" if pinned else "initial_tier"
    first = options.initial_tier
    if first is None:
        first = min(int(np.searchsorted(cut, 1)), count - 1) + 1
    value = options.fixed_tier if pinned else first
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
    """Observes a round and assigns the tiers of the next round: the whole TierScheduler.

    Args:
      history: state so far.
      options: options of the scheduler.
      profile: assumed times of the tiers.
      clients: ids of the round's clients, int64[k], distinct.
      tier: tier of each client in the round, int64[k].
      compute_s: seconds of each task without its communication, float64[k].
      samples: number of samples of each client in a round, int64[k].
      transfer_s: seconds of communication in each tier, float64[k, M].
      holds: mask of the tiers whose client half each device can hold, bool[k, M].
    """
    history = observe(history, clients, tier, compute_s, options.ema)
    round_s = estimate(profile, history.ema_s[clients, tier], tier, samples, transfer_s)
    round_s = np.where(holds, round_s, np.inf)
    chosen, longest_s = assign(round_s, float(history.longest_s) if options.lagged else None)
    if options.fixed_tier is not None:
        chosen = history.tier[clients]
    return reassign(history, clients, chosen, longest_s)


def smooth(old_s: Any, new_s: Any, alpha: float) -> np.ndarray:
    """The mean `alpha new + (1 - alpha) old`, float64; the new value where old is NaN."""
    return np.where(np.isnan(old_s), new_s, alpha * new_s + (1.0 - alpha) * old_s)


def observe(
    history: History, clients: np.ndarray, tier: np.ndarray, compute_s: np.ndarray, alpha: float
) -> History:
    """The state after the observation of a round's compute times.

    Args:
      history: state so far.
      clients: ids of the round's clients, int64[k], distinct.
      tier: tier of each client in the round, int64[k]; only the average of that tier changes.
      compute_s: seconds of each task without its communication, float64[k].
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
    """Estimated round times of every client in every tier in seconds, float64[k, M].

    Args:
      profile: assumed times of the tiers.
      tau_s: smoothed compute time in the client's current tier in seconds, float64[k].
      tier: current tier of each client, int64[k].
      samples: number of samples of each client in a round, int64[k].
      transfer_s: seconds of communication in each tier, float64[k, M].
    """
    client_s = tau_s[:, None] * (profile.client_s[None, :] / profile.client_s[tier][:, None])
    server_s = np.asarray(samples, np.float64)[:, None] * profile.server_s[None, :]
    return np.maximum(client_s, server_s) + transfer_s


def assign(round_s: np.ndarray, longest_s: float | None = None) -> tuple[np.ndarray, float]:
    """The deepest tier of each client that does not prolong the round.

    The tiers that fit need not be adjacent: if activations become smaller with depth, the deepest
    tier may fit although a middle one does not.

    Args:
      round_s: round times from `estimate`, float64[k, M]; inf for a tier that a device cannot hold.
      longest_s: bound in seconds in place of this round's T_max (the authors' code has that of the
        last round). A client without a tier within it gets the shallowest tier it can hold.

    Returns:
      The tiers int64[k], and this round's T_max.
    """
    best_s = float(np.max(np.min(round_s, axis=1)))
    bound_s = best_s if longest_s is None else longest_s
    fits = np.isfinite(round_s) & (round_s <= bound_s * (1 + _SLACK))
    deepest = round_s.shape[1] - 1 - np.argmax(fits[:, ::-1], axis=1)
    shallowest = np.argmax(np.isfinite(round_s), axis=1)
    return np.where(fits.any(axis=1), deepest, shallowest), best_s


def reassign(history: History, clients: np.ndarray, tier: np.ndarray, longest_s: float) -> History:
    """The state with the tiers of `assign`; other clients keep their tiers and averages."""
    tiers = history.tier.copy()
    tiers[clients] = tier
    return history._replace(tier=tiers, longest_s=np.asarray(longest_s))
