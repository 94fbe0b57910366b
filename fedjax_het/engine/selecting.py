"""The selection of a run: its state, and the table of what is known of every client."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import Flight
from fedjax_het.contract.plan import Timing
from fedjax_het.contract.selection import Candidates, Known, Pool, Seen, Selector


class Probes(NamedTuple):
    """What a selection asked of clients before it chose among them.

    Attributes:
      flight: the questions as tasks without steps, which end when the answers arrive; only those
        to clients that can answer.
      loss: answers, float64[k].
    """

    flight: Flight
    loss: np.ndarray


class Selection:
    """The selection of a method with all that it has learned in a run.

    A selection that is a plain function learns nothing, and nothing is kept for it.

    Args:
      algorithm: method of the run.
      samples: number of training samples of every client, int64[n].

    Attributes:
      scored: whether it looks at scores of the clients, see `Selector`.
      probes: what it asked of clients in the last draw; None if nothing.

    Raises:
      InputError: if it asks clients, and tasks may span merges.
    """

    def __init__(self, algorithm: Algorithm, samples: np.ndarray):
        self._select, self._name, self._samples = algorithm.select, algorithm.name, samples
        self._running = functools.cache(lambda: np.cumsum(samples, dtype=np.float64))
        self._kept: tuple[Known, PyTree] | None = None
        self._memo: dict[str, Any] = {}
        self.scored = False
        self.probes: Probes | None = None
        if isinstance(algorithm.select, Selector):
            n = len(samples)
            self._kept = nothing_known(n), algorithm.select.init(n)
            self.scored = algorithm.select.scored
            require(
                not (algorithm.select.probes and algorithm.pace.may_wait),
                f"select of {algorithm.name}: asks clients for losses before every round",
                "needs rounds that end before the next begins; its rounds overlap",
                "use a selection by last known losses, or a method with a barrier or deadline",
            )

    def choose(
        self,
        round: int,
        now_s: float,
        pool: Pool,
        wanted: int,
        rng: np.random.Generator,
        price: Callable[[np.ndarray], Timing],
        probe: Callable[[np.ndarray], Probes] | None = None,
        *,
        least: int = 1,
    ) -> np.ndarray:
        """The cohort as ascending ids, checked.

        Args:
          round: number of the server step, from 0.
          now_s: virtual time of the dispatch in seconds.
          pool: clients that may be selected.
          wanted: number of clients to select.
          rng: generator of the draw.
          price: function `Candidates.price`.
          probe: function that asks clients for their losses; None if the selection never asks.
          least: number of clients that a selection with a state must choose.
        """
        candidates = Candidates(
            round, now_s, pool, wanted, rng, self._samples, running=self._running
        )
        if self._kept is None:
            assert not isinstance(self._select, Selector)
            return self._checked(self._select(candidates), candidates, least=wanted)
        assert isinstance(self._select, Selector)
        known, state = self._kept
        self.probes = None

        def losses(asked: np.ndarray) -> np.ndarray:
            require(
                self.probes is None,
                f"select of {self._name}: asks for losses again",
                "may ask once in a draw",
                "ask all clients together",
            )
            assert probe is not None
            self.probes = probe(asked)
            found = np.full(len(asked), np.nan)
            found[np.isin(asked, self.probes.flight.client)] = self.probes.loss
            return found

        asks = losses if self._select.probes else None
        candidates = replace(candidates, known=known, price=price, losses=asks, memo=self._memo)
        chosen, state = self._select.choose(state, candidates)
        chosen = self._checked(chosen, candidates, least=least)
        self._kept = known, state
        return chosen

    def _checked(self, chosen: np.ndarray, candidates: Candidates, least: int) -> np.ndarray:
        """The chosen ids in ascending order; `InputError` unless they are different candidates."""
        chosen, wanted = np.sort(chosen), candidates.wanted
        different = least <= len(chosen) <= wanted and bool(np.all(chosen[1:] > chosen[:-1]))
        number = wanted if least == wanted else f"{least} to {wanted}"
        require(
            different and bool(np.all(candidates.pool.has(chosen))),
            lambda: f"select of {self._name}: clients {chosen[:10].tolist()} ...",
            f"must be {number} different ones of the candidates",
            "return some of `candidates.clients`, each once",
        )
        return chosen

    def observe(self, seen: Callable[[], Seen]) -> None:
        """Learns from a server step; a selection that learns nothing does not ask for the tasks."""
        if self._kept is None:
            return
        assert isinstance(self._select, Selector)
        known, state = self._kept
        settled = seen()
        note(known, settled)
        self._memo = {}
        self._kept = known, self._select.observe(state, settled)

    def score(self, scores: np.ndarray) -> None:
        """Takes the scores of an evaluation, float64[n], see `Known.score`."""
        assert self._kept is not None
        self._kept[0].score[:] = scores
        self._memo = {}

    # ---- checkpoints -------------------------------------------------------------------------

    @property
    def saved(self) -> tuple[PyTree, ...]:
        """The content of a checkpoint, empty for a selection that learns nothing."""
        return () if self._kept is None else (self._kept,)

    def restore(self, saved: tuple[PyTree, ...]) -> None:
        """Restores the result of `saved`."""
        if self._kept is not None:
            ((known, state),) = saved
            self._kept, self._memo = (Known(*map(np.array, known)), state), {}


def nothing_known(n: int) -> Known:
    """What is known of n clients before the first step."""
    return Known(
        loss=np.full(n, np.nan),
        duration_s=np.full(n, np.nan),
        seen=np.full(n, -1, np.int64),
        failures=np.zeros(n, np.int64),
        score=np.full(n, np.nan),
    )


def note(known: Known, seen: Seen) -> None:
    """Writes the tasks of a server step into the table."""
    arrived, merged = seen.arrived, seen.merged
    # How soon a task failed says nothing of how long it would have taken.
    lasted = seen.status != "failed"
    known.loss[seen.clients[merged]] = seen.loss[merged]
    known.duration_s[seen.clients[lasted]] = seen.duration_s[lasted]
    known.seen[seen.clients[arrived]] = seen.round
    # A client whose task failed may have had another one in the same step.
    np.add.at(known.failures, seen.clients[~merged], 1)
