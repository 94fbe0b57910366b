"""Oort: clients that learn much and are fast enough, with a share of clients not seen yet."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.options import checked
from fedjax_het.contract.selection import Candidates, Seen, Selector
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.select.parts import at_share, drawn, nth, selecting
from fedjax_het.transforms.select.ranking import Front, best_of, front_of

# Constants of the author's code: quantile that clips utilities, least range of utilities, weight of
# the time since a client was seen; relative changes of the exploited utility that count as flat and
# as steep; clients among which an unseen one is drawn, times the number wanted.
_CLIP, _LEAST_RANGE, _AGE = 0.98, 1e-4, 0.1
_FLAT, _STEEP = 0.1, 5.0
_WINDOW = 5.0
# Clients whose scores are computed at a time.
_BLOCK = 1 << 15
# Best unseen clients that are kept beyond those that a draw needs, for the next draws of a step.
_SPARE = 64
# Few of n clients are away if they are at most n over this.
_FEW = 16


class OortState(NamedTuple):
    """What Oort remembers; n clients, a pacer with windows of w rounds.

    Attributes:
      utility: utility of each client, float64[n]; NaN before its first result.
      expected_s: duration of each client's last task that did not fail or, before the first, as
        planned, float64[n]; NaN before.
      exploited: whether the last selection of each client was for its utility, bool[n].
      history: mean utility of the exploited clients of the last rounds, float64[2 w]; that of round
        r is at r mod 2 w.
      percent: percentage of the durations that are preferred, float64[].
    """

    utility: np.ndarray
    expected_s: np.ndarray
    exploited: np.ndarray
    history: np.ndarray
    percent: np.ndarray


class _View(NamedTuple):
    """What the draws of a server step see alike; a buffer that is refilled has many of them.

    Attributes:
      expected_s: durations from which it was computed, see `OortState`.
      preferred_s: longest duration that is preferred, in seconds.
      fresh: whether each client has no utility, bool[n].
      front: best of these clients; None if not known.
    """

    expected_s: np.ndarray
    preferred_s: float
    fresh: np.ndarray
    front: Front | None = None


@checked
def oort(
    *,
    exploration: float = 0.9,
    decay: float = 0.95,
    least_exploration: float = 0.2,
    alpha: float = 2.0,
    cut: float = 0.95,
    pacer_rounds: Count = 20,
    pacer_step: float = 5.0,
    preferred_percent: float = 10.0,
) -> Transformation:
    r"""Oort: the cohort by statistical utility and speed, a share of it for clients not seen yet.

    A client has the utility $U_i = s_i \sqrt{q_i}$: $s_i$ is the number of samples that it
    processed, at most its $n_i$, and $q_i$ the mean squared loss of its first epoch, by mini-batch
    (`Seen.square_loss`). The author's code squares the losses of single samples, which is more by
    their variance, and takes a moving average over the mini-batches. An update that is not finite
    makes it 0. In round r, from 1, a client that was last seen in round $l_i$ has the score

    $$\left(\frac{\min(U_i, c) - U_{min}}{\max(U_{max} - U_{min}, 10^{-4})} +
      \sqrt{\frac{0.1 \ln r}{l_i}}\right) \cdot \min(1, T_{pref} / t_i)^\alpha$$

    over the candidates with a utility, where c is their 98 % quantile and $t_i$ the last duration,
    or the planned one before the first. `T_pref` is the `preferred_percent` % quantile of all known
    durations. A pacer compares the utilities of exploited clients in the last two windows: if they
    moved by at most 10 %, slower clients are preferred from then on, and if at least five-fold,
    faster ones.

    floor((1 - epsilon) K) clients are exploited: drawn in proportion to their scores from those
    that reach `cut` times the score at that rank. The others are drawn from the unseen clients in
    proportion to $n_i \min(1, T_{pref} / t_i)^\alpha$, among the best five times as many. If there
    are too few of one kind, the other fills the cohort. Cohorts of one client (a refilled buffer)
    explore until everyone has been seen.

    Args:
      exploration: epsilon of the first round, in [0, 1].
      decay: factor on epsilon per round, in (0, 1].
      least_exploration: least epsilon, in [0, 1].
      alpha: exponent of the penalty for slow clients, at least 0; 0 ignores the speed.
      cut: share of the score at the last rank that candidates must reach, in (0, 1]; the paper and
        the comment in the author's code say 0.95, its default is 0.7.
      pacer_rounds: rounds in a window of the pacer.
      pacer_step: percentage points by which the pacer moves.
      preferred_percent: percentage of the durations that are preferred at the start, in (0, 100].
        It should cover a few cohorts: 10 % of 60 clients are six, which then do most of the work.

    References:
      Lai et al., *Oort: Efficient Federated Learning via Guided Participant Selection*, OSDI 2021,
      Algorithm 1; https://github.com/SymbioticLab/Oort.
    """
    _check_shares(exploration, decay, least_exploration, cut)
    require(alpha >= 0, f"alpha = {alpha}", "must be at least 0", "use 2, or 0 to ignore the speed")
    require(
        pacer_rounds >= 1, f"pacer_rounds = {pacer_rounds}", "must be at least 1", "leave it out"
    )
    require(
        pacer_step >= 0, f"pacer_step = {pacer_step}", "must be at least 0", "use 0 for no pacer"
    )
    require(
        0 < preferred_percent <= 100,
        f"preferred_percent = {preferred_percent}",
        "must lie in (0, 100]",
        "use 10, or 100 to prefer nobody",
    )

    def init(n: int) -> OortState:
        return OortState(
            utility=np.full(n, np.nan),
            expected_s=np.full(n, np.nan),
            exploited=np.zeros(n, bool),
            history=np.zeros(2 * pacer_rounds),
            percent=np.asarray(float(preferred_percent)),
        )

    def choose(state: OortState, candidates: Candidates) -> tuple[np.ndarray, OortState]:
        wanted, rng, pool = candidates.wanted, candidates.rng, candidates.pool
        assert candidates.known is not None
        state = _priced(state, candidates)
        view, duration_s = _view(state, candidates.memo), state.expected_s
        preferred_s, unseen = view.preferred_s, pool.mask(view.fresh)
        most_new = int(np.count_nonzero(unseen))
        epsilon = max(exploration * decay**candidates.round, least_exploration)
        count = int((1 - epsilon) * wanted + 1e-9)
        count = min(max(count, wanted - most_new), len(pool) - most_new)
        best = np.zeros(0, np.int64)
        if count:
            seen = np.flatnonzero(pool.mask(~view.fresh))
            last = candidates.known.seen[seen] + 1
            score = scores(state.utility[seen], last, candidates.round + 1)
            for start in range(0, len(seen), _BLOCK):
                block = slice(start, start + _BLOCK)
                score[block] *= slowness(duration_s[seen[block]], preferred_s, alpha)
            rank = min(count, len(seen) - 1)
            good = np.flatnonzero(score >= cut * nth(score, len(score) - 1 - rank))
            best = drawn(rng, seen[good], score[good], count)

        def slowed(clients: np.ndarray) -> np.ndarray:
            return slowness(duration_s[clients], preferred_s, alpha)

        several = int(_WINDOW * (wanted - count))
        likely, reward = _best(view, candidates, unseen, slowed, several)
        new = drawn(rng, likely, reward, wanted - count)
        exploited = state.exploited.copy()
        exploited[best], exploited[new] = True, False
        return np.concatenate([best, new]), state._replace(exploited=exploited)

    def observe(state: OortState, seen: Seen) -> OortState:
        worth = np.minimum(seen.sizes, seen.samples) * np.sqrt(seen.square_loss)
        utility, arrived = state.utility.copy(), seen.arrived
        utility[seen.clients[arrived]] = np.where(seen.merged, worth, 0.0)[arrived]
        expected_s, lasted = state.expected_s.copy(), seen.status != "failed"
        expected_s[seen.clients[lasted]] = seen.duration_s[lasted]
        exploited = worth[seen.merged & state.exploited[seen.clients]]
        history = state.history.copy()
        history[seen.round % len(history)] = np.mean(exploited) if exploited.size else 0.0
        percent = paced(float(state.percent), history, seen.round + 1, pacer_step)
        return state._replace(
            utility=utility, expected_s=expected_s, history=history, percent=np.asarray(percent)
        )

    return selecting(
        "oort",
        Selector(init, choose, observe),
        exploration=exploration,
        decay=decay,
        least_exploration=least_exploration,
        alpha=alpha,
        cut=cut,
        pacer_rounds=pacer_rounds,
        pacer_step=pacer_step,
        preferred_percent=preferred_percent,
    )


def _check_shares(exploration: float, decay: float, least: float, cut: float) -> None:
    for name, value in (("exploration", exploration), ("least_exploration", least)):
        require(0 <= value <= 1, f"{name} = {value}", "must lie in [0, 1]", "leave it out")
    for name, value in (("decay", decay), ("cut", cut)):
        require(0 < value <= 1, f"{name} = {value}", "must lie in (0, 1]", "use 0.95")


def _priced(state: OortState, candidates: Candidates) -> OortState:
    """The state with the planned durations of all candidates that were not planned before."""
    assert candidates.price is not None
    unknown = np.isnan(state.expected_s)
    if not unknown.any():
        return state
    new = np.flatnonzero(candidates.pool.mask(unknown))
    if not new.size:
        return state
    expected_s = state.expected_s.copy()
    expected_s[new] = candidates.price(new).total_s
    return state._replace(expected_s=expected_s)


def _view(state: OortState, memo: dict[str, Any]) -> _View:
    """What draws with a state see, computed once a server step."""
    kept: _View | None = memo.get("oort")
    if kept is None or kept.expected_s is not state.expected_s:
        preferred_s = preferred(state.expected_s, float(state.percent))
        kept = memo["oort"] = _View(state.expected_s, preferred_s, np.isnan(state.utility))
    return kept


def _best(
    view: _View,
    candidates: Candidates,
    unseen: np.ndarray,
    slowed: Callable[[np.ndarray], np.ndarray],
    several: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The unseen candidates with the largest rewards, and these; see `best_of`."""
    samples, pool = candidates.samples, candidates.pool
    found = None if view.front is None else view.front.best(pool, several)
    if found is not None:
        return found
    # Those that are away may be the best; if they are many, the others are looked at by themselves.
    away = len(samples) - len(pool)
    if _FEW * away > len(samples):
        return best_of(unseen, samples, slowed, several)
    # One without a planned duration is no candidate yet.
    planned = view.fresh & ~np.isnan(view.expected_s)
    front = front_of(planned, samples, slowed, several + away + _SPARE)
    candidates.memo["oort"] = view._replace(front=front)
    found = front.best(pool, several)
    assert found is not None
    return found


def preferred(duration_s: np.ndarray, percent: float) -> float:
    """The longest duration that is preferred, in seconds; inf if all are.

    Args:
      duration_s: durations, float64[n]; NaN if unknown, at least one of them known.
      percent: percentage of the known durations that are preferred.
    """
    if percent >= 100:
        return np.inf
    unknown = np.isnan(duration_s)
    return at_share(duration_s[~unknown] if unknown.any() else duration_s, percent / 100)


def slowness(duration_s: np.ndarray, preferred_s: float, alpha: float) -> np.ndarray:
    """Factor on the score of each client, at most 1, float64[n].

    Args:
      duration_s: durations, float64[n]; NaN if unknown, which gives NaN.
      preferred_s: longest duration that is preferred, in seconds; inf for ones.
      alpha: exponent of the penalty.
    """
    if preferred_s == np.inf:
        return np.ones(len(duration_s))
    share = preferred_s / duration_s
    np.minimum(1.0, share, out=share)
    share **= alpha
    return share


def scores(utility: np.ndarray, last: np.ndarray, now: int) -> np.ndarray:
    """Score of each client, before the penalty for slow ones, float64[s].

    Args:
      utility: utilities of the candidates that have one, at least one, float64[s].
      last: round in which each was last seen, from 1, int64[s].
      now: number of the round, from 1.
    """
    least, most, clip = np.min(utility), np.max(utility), at_share(utility, _CLIP)
    worth = np.minimum(utility, clip)
    worth -= least
    worth /= max(most - least, _LEAST_RANGE)
    # Many clients were seen in few rounds.
    age = np.sqrt(_AGE * np.log(now) / np.arange(1, np.max(last) + 1))
    worth += age[last - 1]
    return worth


def paced(percent: float, history: np.ndarray, rounds: int, step: float) -> float:
    """The percentage of preferred durations after a round.

    Args:
      percent: percentage before.
      history: mean utilities of exploited clients, see `OortState`.
      rounds: number of rounds so far.
      step: percentage points by which the pacer moves.
    """
    window = len(history) // 2
    if rounds < 2 * window or rounds % window:
        return percent
    # The round after the newest one has the place of the oldest.
    ordered = np.roll(history, -(rounds % len(history)))
    before, now = np.sum(ordered[:window]), np.sum(ordered[window:])
    moved = abs(now - before)
    if moved <= _FLAT * before:
        return min(percent + step, 100.0)
    if moved >= _STEEP * before:
        return max(percent - step, step)
    return percent
