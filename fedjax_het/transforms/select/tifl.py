"""TiFL: tiers of clients with similar latencies, one tier per round, weaker tiers more often."""

import math
from typing import NamedTuple

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.options import checked
from fedjax_het.contract.selection import Candidates, Selector
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.select.parts import MANY, TRIES, selecting, unchanged


class TiflState(NamedTuple):
    """What TiFL remembers; n clients, T tiers, 0 the fastest.

    Attributes:
      tier: tier of each client, int64[n]; -1 before the profile.
      credits: rounds that each tier may still be drawn, int64[T].
      chance: probability of each tier, float64[T].
      current: tier of the last draw, int64[].
      score: mean score of each tier's clients at the last comparison, float64[T].
      compared: number of the server step of that comparison, int64[]; -1 before the first.
    """

    tier: np.ndarray
    credits: np.ndarray
    chance: np.ndarray
    current: np.ndarray
    score: np.ndarray
    compared: np.ndarray


@checked
def tifl(*, tiers: Count = 5, interval: Count = 20, rounds: Count | None = None) -> Transformation:
    """TiFL, adaptive: draws one tier per round, and clients inside it.

    At the first draw all clients are sorted by the duration that the method plans for them, and
    divided into tiers of equal size; the profile takes no virtual time. A draw takes a tier that
    has credits and candidates, by probability, and spends a credit; the cohort is drawn uniformly
    in it, and in the tiers nearest to it if it has too few candidates. Every `interval` rounds, if
    the mean score of the clients of the last drawn tier has not risen, the m tiers with credits are
    sorted by score, and the i-th from below, from 0, gets the probability
    (m - i) / (m (m + 1) / 2).

    Scores are those of the newest evaluation, on each client's own test samples or with the label
    shares of each client, so evaluations must not be rarer than comparisons.

    Args:
      tiers: number of tiers T, at most the number of clients.
      interval: rounds between comparisons of scores.
      rounds: length of the run, of which every tier gets ceil(rounds / T) credits; None gives
        credits without end. If all credits are spent, all tiers may be drawn.

    References:
      Chai et al., *TiFL: A Tier-based Federated Learning System*, HPDC 2020, Algorithm 2.
    """
    require(tiers >= 1, f"tiers = {tiers}", "must be at least 1", "use 5")
    require(interval >= 1, f"interval = {interval}", "must be at least 1 round", "use 20")
    require(
        rounds is None or rounds >= 1,
        f"rounds = {rounds}",
        "must be at least 1",
        "use the rounds of the run, or None for no limit",
    )
    credit = np.iinfo(np.int64).max if rounds is None else math.ceil(rounds / tiers)

    def init(n: int) -> TiflState:
        require(
            tiers <= n, f"tiers = {tiers}", f"must be at most the {n} clients", "use fewer tiers"
        )
        return TiflState(
            tier=np.full(n, -1),
            credits=np.full(tiers, credit),
            chance=np.full(tiers, 1 / tiers),
            current=np.asarray(0),
            score=np.full(tiers, np.nan),
            compared=np.asarray(-1),
        )

    def choose(state: TiflState, candidates: Candidates) -> tuple[np.ndarray, TiflState]:
        pool, rng = candidates.pool, candidates.rng
        if state.tier[0] < 0:
            state = state._replace(tier=_profile(candidates, tiers))
        if candidates.round % interval == 0 and state.compared < candidates.round:
            state = _compare(state, candidates)
        size = pool.counts(state.tier, _sizes(len(state.tier), tiers))
        there = size > 0
        credited = there & (state.credits > 0)
        chance = state.chance * (credited if credited.any() else there)
        if not chance.any():
            chance = np.asarray(credited if credited.any() else there, np.float64)
        drawn = int(rng.choice(tiers, p=chance / np.sum(chance)))
        chosen = _nearest(candidates, state.tier, drawn, int(size[drawn]))
        credits = state.credits.copy()
        credits[drawn] = max(credits[drawn] - 1, 0)
        return chosen, state._replace(credits=credits, current=np.asarray(drawn))

    options = {"tiers": tiers, "interval": interval, "rounds": rounds}
    return selecting("tifl", Selector(init, choose, unchanged, scored=True), **options)


def _nearest(candidates: Candidates, tier: np.ndarray, drawn: int, size: int) -> np.ndarray:
    """The cohort, uniformly from the tier that was drawn, and then from the tiers nearest to it.

    Args:
      candidates: candidates of the draw.
      tier: tier of each client, int64[n].
      drawn: tier that was drawn.
      size: number of candidates in it.
    """
    pool, wanted, rng = candidates.pool, candidates.wanted, candidates.rng
    chosen = np.zeros(0, np.int64)
    # A few of many are those of the tier, each once, among candidates drawn with replacement.
    for _ in range(TRIES if MANY * wanted <= size else 0):
        more = 2 * (wanted - len(chosen)) * len(pool) // size
        found = pool.at(rng.integers(len(pool), size=more))
        chosen = np.append(chosen, found[tier[found] == drawn])
        chosen = chosen[np.sort(np.unique(chosen, return_index=True)[1])]
        if len(chosen) >= wanted:
            return chosen[:wanted]
    distance = np.abs(tier[candidates.clients] - drawn) + rng.random(len(pool))
    return candidates.clients[np.argpartition(distance, wanted - 1)[:wanted]]


def _sizes(n: int, tiers: int) -> np.ndarray:
    """Number of clients in each tier, see `_profile`, int64[tiers]."""
    return np.diff(-(-np.arange(tiers + 1) * n // tiers))


def _profile(candidates: Candidates, tiers: Count) -> np.ndarray:
    """Tier of every client by its planned duration, int64[n]; ties go by id."""
    assert candidates.price is not None
    n = len(candidates.samples)
    order = np.argsort(candidates.price(np.arange(n)).total_s, kind="stable")
    tier = np.empty(n, np.int64)
    tier[order] = np.arange(n) * tiers // n
    return tier


def _compare(state: TiflState, candidates: Candidates) -> TiflState:
    """The state after a comparison of scores, with new probabilities if they have stalled."""
    assert candidates.known is not None
    score = candidates.known.score
    known, tiers = ~np.isnan(score), len(state.credits)
    total = np.bincount(state.tier[known], score[known], tiers)
    count = np.bincount(state.tier[known], minlength=tiers)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    chance = state.chance
    if mean[state.current] <= state.score[state.current]:
        credited = np.flatnonzero(state.credits > 0)
        m = len(credited)
        # Tiers of unknown score come last.
        order = credited[np.argsort(mean[credited], kind="stable")]
        chance = np.zeros(tiers)
        chance[order] = (m - np.arange(m)) / (m * (m + 1) / 2) if m else 0.0
    return state._replace(chance=chance, score=mean, compared=np.asarray(candidates.round))
