"""Selections, which draw the next cohort from the clients that are available.

A selection is a function `(Candidates) -> ids` that looks at nothing learned, or a `Selector`,
which has a state of its own and sees what is known of every client.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.plan import Timing


class Known(NamedTuple):
    """What the server knows of every client from its tasks so far, NumPy arrays of length n.

    Attributes:
      loss: mean training loss of the last finite update, float64[n]; NaN before the first.
      duration_s: seconds from dispatch to arrival of the last task that did not fail, or, for one
        that was dropped, those until the server gave it up, float64[n]; NaN before the first.
      seen: number of the server step at which the last result arrived, int64[n]; -1 for none.
      failures: number of tasks that failed, that were dropped, or whose update was not finite,
        int64[n].
      score: target metric on the client's own test samples at the last evaluation, negative if
        lower is better, float64[n]; NaN if unknown, and for a selection that is not `scored`.
    """

    loss: np.ndarray
    duration_s: np.ndarray
    seen: np.ndarray
    failures: np.ndarray
    score: np.ndarray


class Pool:
    """Ids of clients, ascending: a list of them, or the clients 0 to n - 1 apart from a few.

    The second form takes no time in proportion to n, unless all of its ids are asked for.

    Args:
      listed: different ids, ascending, int64[m]; None for the second form.
      population: n.
      absent: clients of the second form that do not belong to it, different, int64[a].
    """

    def __init__(
        self,
        listed: np.ndarray | None = None,
        *,
        population: int = 0,
        absent: np.ndarray | Sequence[int] = (),
    ):
        self._listed, self._population = listed, population
        self._absent = np.sort(np.asarray(absent, np.int64))

    def __len__(self) -> int:
        return self._population - len(self._absent) if self._listed is None else len(self._listed)

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """All ids, int64[m]."""
        if self._listed is not None:
            return self._listed
        if not len(self._absent):
            return np.arange(self._population)
        return np.delete(np.arange(self._population), self._absent)

    def at(self, places: np.ndarray) -> np.ndarray:
        """The ids at places 0 to m - 1, `ids[places]`."""
        if self._listed is not None:
            return self._listed[places]
        # As many absent clients come before a place as have fewer others before them.
        before = self._absent - np.arange(len(self._absent))
        return places + np.searchsorted(before, places, side="right")

    def mask(self, holds: np.ndarray) -> np.ndarray:
        """Whether each client belongs to the pool and a condition holds for it, bool[n]."""
        if self._listed is None:
            found = holds.copy()
            found[self._absent] = False
            return found
        found = np.zeros_like(holds)
        found[self._listed] = holds[self._listed]
        return found

    def counts(self, labels: np.ndarray, everyone: np.ndarray) -> np.ndarray:
        """The number of its clients with each label, int64[c].

        Args:
          labels: label of every client, from 0 to c - 1, int64[n].
          everyone: number of all clients with each label, int64[c].
        """
        if self._listed is not None:
            return np.bincount(labels[self._listed], minlength=len(everyone))
        return everyone - np.bincount(labels[self._absent], minlength=len(everyone))

    def has(self, clients: np.ndarray) -> np.ndarray:
        """Whether each of these ids belongs to the pool, bool[k]."""
        if self._listed is not None:
            return _among(self._listed, clients)
        known = (clients >= 0) & (clients < self._population)
        return known & ~_among(self._absent, clients)


def _among(listed: np.ndarray, clients: np.ndarray) -> np.ndarray:
    """Whether each client is listed, bool[k]; `listed` is ascending."""
    if not len(listed):
        return np.zeros(len(clients), bool)
    return listed[np.minimum(np.searchsorted(listed, clients), len(listed) - 1)] == clients


@dataclass(frozen=True)
class Candidates:
    """The input of a selection; its arrays must not be changed.

    Attributes:
      round: number of the server step about to start, from 0.
      now_s: virtual time of the dispatch in seconds.
      pool: clients that are available and idle, m of them.
      wanted: number of clients to select, at most m.
      rng: NumPy generator of this draw.
      samples: number of training samples of every client, int64[n].
      known: what was learned of every client; None for a selection without state.
      price: function from ids int64[k] to the `Timing` that the method would plan for these clients
        as a cohort now, with jitter of its own; None for a selection without state.
      losses: function from ids int64[k] to the mean losses of the current model on the training
        samples of these clients, float64[k], at most once in a draw. Each of them downloads the
        model, runs it forward over its samples and uploads a number, and the tasks of the cohort
        begin when the slowest has answered. A client that leaves before it could answer, or whose
        charge is not enough for it, is not asked, and its loss is NaN; apart from that, all answer:
        questions never fail at random, nor because a device goes off. None for a selection that
        does not `probe`.
      running: function without arguments that returns the running totals of `samples`, float64[n],
        computed once a run, for draws by samples.
      memo: what a selection has computed from `known` and from its state in this server step, for
        its next draws; empty after every step. It may save time, but change no result.
    """

    round: int
    now_s: float
    pool: Pool
    wanted: int
    rng: np.random.Generator
    samples: np.ndarray
    known: Known | None = None
    price: Callable[[np.ndarray], Timing] | None = None
    losses: Callable[[np.ndarray], np.ndarray] | None = None
    running: Callable[[], np.ndarray] | None = None
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def clients(self) -> np.ndarray:
        """Ids of the clients that are available and idle, ascending, int64[m]."""
        return self.pool.ids


class Seen(NamedTuple):
    """The tasks that a server step settled, k of them, for `Selector.observe`.

    Attributes:
      round: number of the server step, from 0.
      clients: ids of the clients, int64[k].
      status: "merged", "partial" (stopped at a deadline, then merged), "dropped", "failed" (given
        up by the device) or "nonfinite" (not merged, because the update was not finite), str[k].
      loss: mean training loss, float64[k]; NaN for tasks that were not merged.
      square_loss: mean squared loss of the mini-batches of the first epoch, float64[k], see
        `ClientResult`; NaN likewise.
      samples: training samples processed, int64[k]; 0 for tasks that did not arrive.
      sizes: number of training samples of each client, int64[k].
      duration_s: seconds from dispatch to arrival or failure or, for dropped tasks, to the merge,
        float64[k].
    """

    round: int
    clients: np.ndarray
    status: np.ndarray
    loss: np.ndarray
    square_loss: np.ndarray
    samples: np.ndarray
    sizes: np.ndarray
    duration_s: np.ndarray

    @property
    def arrived(self) -> np.ndarray:
        """Whether the result of each task reached the server, bool[k]."""
        return ~np.isin(self.status, ("dropped", "failed"))

    @property
    def merged(self) -> np.ndarray:
        """Whether the update of each task counts, bool[k]."""
        return np.isin(self.status, ("merged", "partial"))


# A function from the candidates to the ids of the cohort, int64[wanted], without repetition. It may
# not look at anything learned, so that rounds can be planned ahead.
Select = Callable[[Candidates], np.ndarray]


class Selector(NamedTuple):
    """A selection that learns: pure functions on the host.

    Attributes:
      init: function `(n) -> state`, from the number of clients to a pytree of NumPy arrays.
      choose: function `(state, Candidates) -> (ids, state)`; it selects `wanted` candidates or, if
        it wants no more, fewer; at least one, unless other clients are at work.
      observe: function `(state, Seen) -> state`, after every server step.
      scored: whether it looks at `Known.score`, for which evaluations take every client by itself.
      probes: whether it may ask for `Candidates.losses`; only under a pace that merges all tasks of
        a cohort at once.
      replaceable: whether a method works with another selection in its place: True, or the reason
        why not.
    """

    init: Callable[[int], PyTree]
    choose: Callable[[PyTree, Candidates], tuple[np.ndarray, PyTree]]
    observe: Callable[[PyTree, Seen], PyTree]
    scored: bool = False
    probes: bool = False
    replaceable: Literal[True] | str = True


def uniform(candidates: Candidates) -> np.ndarray:
    """Selects all candidates with equal probability, without replacement."""
    pool = candidates.pool
    return pool.at(candidates.rng.choice(len(pool), candidates.wanted, replace=False))
