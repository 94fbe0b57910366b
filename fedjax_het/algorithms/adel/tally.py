"""What a run of layered training keeps: how often layers were missed, and how fast devices are."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_het.algorithms.adel.merging import Rule, merge_weights


class Tally(NamedTuple):
    """Counts over the rounds so far; they show whether the merge is as unbiased as it should be.

    Attributes:
      rounds: int64[].
      missed: int64[L], rounds in which nobody finished the layer.
      seen: int64[n], rounds in which each client took part.
      weight: float64[n, L], sum of the weights with which its updates entered each layer; see
        `merge_weights`.
    """

    rounds: np.ndarray
    missed: np.ndarray
    seen: np.ndarray
    weight: np.ndarray


def empty_tally(clients: int, layers: int) -> Tally:
    """Nothing counted yet."""
    return Tally(
        np.zeros((), np.int64),
        np.zeros(layers, np.int64),
        np.zeros(clients, np.int64),
        np.zeros((clients, layers)),
    )


def count(
    tally: Tally,
    clients: np.ndarray,
    rule: Rule,
    missed: np.ndarray,
    depth: np.ndarray,
    floor: float = 0.0,
) -> Tally:
    """Adds a round.

    Args:
      tally: so far.
      clients: int64[k].
      rule: the merge rule.
      missed: float64[k, L], assumed chances of missing.
      depth: int64[k], layers that each client finished.
      floor: `propensity_floor`.
    """
    layers = missed.shape[1]
    nobody = layers - np.max(depth) > np.arange(layers)
    seen, weight = tally.seen.copy(), tally.weight.copy()
    seen[clients] += 1
    weight[clients] += merge_weights(rule, missed, depth, floor)
    return Tally(np.asarray(tally.rounds + 1), tally.missed + nobody, seen, weight)


def summary(tally: Tally, merge_probability: np.ndarray) -> dict[str, Any]:
    """For the records of a round, arrays over layers with the input side first.

    Args:
      tally: counts including this round.
      merge_probability: float[L], 1 - p as assumed.

    Returns:
      `miss_assumed` (p of this round), `miss_observed` (share of rounds so far), and
      `update_weight`: the mean weight of a client's update so far, 1 if the merge is unbiased,
      0.5 if a layer moves half as far as it should.
    """
    known = tally.seen > 0
    each = tally.weight[known] / tally.seen[known, None]
    return {
        "miss_assumed": 1.0 - np.asarray(merge_probability, np.float64),
        "miss_observed": tally.missed / np.maximum(tally.rounds, 1),
        "update_weight": np.mean(each, axis=0),
    }


class Speeds(NamedTuple):
    r"""Running estimate of every client's power, from layers finished in the time observed.

    For exponential layer times $\sum d_u S_u / \sum$ busy time is the maximum-likelihood estimate
    of samples x layers per second, also when the deadline cuts work short; both sums forget.

    Attributes:
      work: float64[n], samples x layers.
      busy_s: float64[n].
    """

    work: np.ndarray
    busy_s: np.ndarray

    @property
    def power(self) -> np.ndarray:
        """float64[n], samples x layers per second."""
        return self.work / self.busy_s


def observe(
    speeds: Speeds,
    clients: np.ndarray,
    batch: np.ndarray,
    depth: np.ndarray,
    busy_s: np.ndarray,
    memory_rounds: float,
) -> Speeds:
    """Adds what one round showed.

    Args:
      speeds: so far.
      clients: int64[k].
      batch: int64[k], S.
      depth: int64[k], layers finished.
      busy_s: float64[k], time spent on them and on the one that was cut off.
      memory_rounds: number of rounds over which observations fade, > 1.
    """
    keep = 1.0 - 1.0 / memory_rounds
    work, total_s = speeds.work.copy(), speeds.busy_s.copy()
    work[clients] = keep * work[clients] + batch * depth
    total_s[clients] = keep * total_s[clients] + busy_s
    return Speeds(work, total_s)
