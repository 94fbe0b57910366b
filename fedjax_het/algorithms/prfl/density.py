"""Densities of the clients' sub-models, from their times and from early stopping."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.options import check_types

# The author's first densities for ten clients, fastest first.
DENSITIES = (1.0, 1.0, 0.6, 0.6, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1)
_RATE_OF_AUTHOR, _BAND_OF_AUTHOR = 0.9, 0.05


@dataclass(frozen=True)
class Density:
    """Options of the sub-models: their sizes and their weights.

    Attributes:
      start: densities at the start, assigned to the clients in turn.
      lowest: smallest density rho_min of the adaptation; with 1 nothing is pruned.
      core: share of every layer that all sub-models have, the largest weights by magnitude.
      interval: number of merges between adjustments, I.
      remask: time of a new ranking: "always", every interval, or "on_density_change", only with
        new densities.
      cost_aware: whether importance is divided by the time of a weight in its layer, as in PruneFL.
      dense_share: share of the FLOPs that pruning does not save.
    """

    start: Sequence[float] = DENSITIES
    lowest: float = 0.1
    core: float = 0.05
    interval: Count = 50
    remask: Literal["always", "on_density_change"] = "always"
    cost_aware: bool = True
    dense_share: float = 0.1

    def __post_init__(self) -> None:
        check_types(vars(self), "density option", type(self))
        values = np.asarray(self.start, np.float64)
        require(
            values.ndim == 1 and values.size > 0 and bool(np.all((values > 0) & (values <= 1))),
            f"start = {self.start}",
            "must be a list of numbers in (0, 1]",
            "use (1.0,) to let adaptation find them",
        )
        for name, value in (("lowest", self.lowest), ("core", self.core)):
            require(0 < value <= 1, f"{name} = {value}", "must lie in (0, 1]", "leave it out")
        require(
            self.core <= self.lowest,
            f"core = {self.core}",
            f"must be at most lowest = {self.lowest}",
            "use 0.05",
        )
        require(
            self.interval >= 1,
            f"interval = {self.interval}",
            "must be at least 1",
            "leave it out",
        )
        require(
            0 <= self.dense_share <= 1,
            f"dense_share = {self.dense_share}",
            "must lie in [0, 1]",
            "leave it out",
        )

    @property
    def prunes(self) -> bool:
        """Whether any sub-model may be smaller than the model."""
        return self.lowest < 1.0

    def first(self, clients: int) -> np.ndarray:
        """Densities at the start, float64[clients]."""
        return np.maximum(np.resize(np.asarray(self.start, np.float64), clients), self.lowest)


@dataclass(frozen=True)
class Recovery:
    """Options of recovery: the increase of densities after a model stopped improving.

    Attributes:
      increment: increase of a density at a recovery, Delta rho.
      patience: number of evaluations without improvement before a recovery; one per interval.
      roll_back: whether the server returns to its best model after it stopped improving.
      validate_on: samples of the scores: "validation" (`validation_fraction` of the data), or
        "test", as in the author's code.
    """

    increment: float = 0.2
    patience: Count = 10
    roll_back: bool = True
    validate_on: Literal["validation", "test"] = "validation"

    def __post_init__(self) -> None:
        check_types(vars(self), "recovery option", type(self))
        increment, patience = self.increment, self.patience
        require(
            0 < increment <= 1, f"increment = {increment}", "must lie in (0, 1]", "leave it out"
        )
        require(patience >= 1, f"patience = {patience}", "must be at least 1", "leave it out")


class Times(NamedTuple):
    """The last times of every client, in a ring buffer of I entries (methods/pr_fl.md 1, Q_i).

    Attributes:
      recent_s: float64[n, I], seconds between consecutive arrivals.
      trainings: int64[n], number of arrivals.
      back_s: float64[n], virtual time of the last arrival; NaN before the first.
    """

    recent_s: np.ndarray
    trainings: np.ndarray
    back_s: np.ndarray


def no_times(clients: int, entries: int) -> Times:
    """Times before the first arrival."""
    return Times(
        np.zeros((clients, entries)), np.zeros(clients, np.int64), np.full(clients, np.nan)
    )


def record(times: Times, clients: np.ndarray, arrived_s: np.ndarray) -> Times:
    """The times after the arrival of these clients, which are distinct.

    The first arrival of a client records no time.
    """
    recent, count, back = (a.copy() for a in times)
    lasted_s = arrived_s - back[clients]
    known = np.isfinite(lasted_s)
    place = (count[clients] - 1) % recent.shape[1]
    recent[clients[known], place[known]] = lasted_s[known]
    count[clients] += 1
    back[clients] = arrived_s
    return Times(recent, count, back)


def mean_times(times: Times) -> np.ndarray:
    """Mean of the recorded times of each client, float64[n]; NaN without times."""
    filled = np.clip(times.trainings - 1, 0, times.recent_s.shape[1])
    with np.errstate(invalid="ignore"):
        return np.sum(times.recent_s, axis=1) / np.where(filled > 0, filled, np.nan)


def feedback(
    density: np.ndarray,
    mean_s: np.ndarray,
    floor: np.ndarray,
    *,
    decimals: int | None = None,
) -> np.ndarray:
    r"""The author's rule $\rho_i \leftarrow \rho_i (1 - 0.9 (t_i - t_0) / t_i)$ above 5 %.

    If times are proportional to densities, every application reduces the difference to a tenth.

    Args:
      density: densities rho, float64[n].
      mean_s: times t at these densities in seconds, float64[n]; NaN keeps a client's density.
      floor: smallest density of each client, float64[n].
      decimals: number of decimals of the result (2 in the author's code); None for no rounding.

    Returns:
      Densities float64[n] within [floor, 1]. The reference t_0 is the time of the client that would
      be the fastest with the whole model, by $t_j / \rho_j$; in the author's code it is the first
      client. (With the smallest time, as on the slides, densities would decrease without end.)
    """
    if not np.any(np.isfinite(mean_s)):
        return density
    reference_s = mean_s[np.nanargmin(mean_s / density)]
    excess = (mean_s - reference_s) / mean_s
    wanted = density * (1 - _RATE_OF_AUTHOR * excess)
    if decimals is not None:
        wanted = np.round(wanted, decimals)
    return np.where(np.abs(excess) > _BAND_OF_AUTHOR, np.clip(wanted, floor, 1.0), density)


def by_ratio(density: np.ndarray, mean_s: np.ndarray, floor: np.ndarray) -> np.ndarray:
    r"""The rule of the slides, with times of the whole model.

    $\rho_i = \max(\min_j T_j / T_i, \rho_{min,i})$ with
    $T_i = t_i / \rho_i$. (The rule as written uses the $t_i$, measured at the current density, and
    then alternates between two values.)
    """
    if not np.any(np.isfinite(mean_s)):
        return density
    whole_s = mean_s / density
    wanted = np.nanmin(whole_s) / whole_s
    return np.where(np.isfinite(mean_s), np.clip(wanted, floor, 1.0), density)


class Stops(NamedTuple):
    """Automata of early stopping, one per entry (methods/pr_fl.md 5).

    Attributes:
      best, last: float64[m], best and last score; NaN before the first.
      misses: int64[m], number of evaluations since the best score.
    """

    best: np.ndarray
    last: np.ndarray
    misses: np.ndarray


def no_stops(m: int) -> Stops:
    """Automata before the first evaluation."""
    return Stops(np.full(m, np.nan), np.full(m, np.nan), np.zeros(m, np.int64))


def check(stops: Stops, score: np.ndarray, patience: np.ndarray | int) -> tuple[Stops, np.ndarray]:
    """The automata after an evaluation, and the mask of those that fire, bool[m].

    A score that is NaN or equal to the last score does not count as an evaluation. An automaton
    fires after `patience` evaluations that were not better than the best, and then counts from 0.
    """
    first = np.isnan(stops.last) & ~np.isnan(score)
    fresh = ~np.isnan(score) & (score != stops.last) & ~first
    better = first | (fresh & (score > stops.best))
    count = np.where(better, 0, stops.misses + (fresh & ~better))
    fire = fresh & ~better & (count >= patience)
    return (
        Stops(
            np.where(better, score, stops.best),
            np.where(np.isnan(score), stops.last, score),
            np.where(fire, 0, count),
        ),
        fire,
    )
