"""Dispatch of clients: waiting for enough available clients, selection, and planning."""

from typing import NamedTuple

import jax
import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.contract.selection import Candidates
from fedjax_het.problem import Problem

# A fleet whose devices are on for 5 % of the time needs tens of waits. After thousands, enough
# devices will never be on at once.
_MAX_WAITS = 2000

# Compiled, because without compilation it takes longer than the planning of a small round.
fold_in = jax.jit(jax.random.fold_in)


class Sampler(NamedTuple):
    """Selects cohorts and plans for them with the functions of an algorithm.

    The random numbers of a draw depend on the server step and, if clients are dispatched several
    times between two steps, on the turn.

    Attributes:
      algorithm: method that selects and plans.
      problem: problem, whose fleet tells which clients are available.
      seed: seed of the draws.
      key: typed PRNG key of the plans; draws do not need it.
    """

    algorithm: Algorithm
    problem: Problem
    seed: int
    key: jax.Array | None = None

    def draw(
        self,
        step: int,
        now_s: float,
        *,
        clients: np.ndarray | None = None,
        size: int | None = None,
        least: int | None = None,
        turn: int = 0,
    ) -> tuple[np.ndarray, float]:
        """A cohort selected without replacement, as soon as enough clients are available.

        Args:
          step: number of the server step, from 0.
          now_s: virtual time in seconds.
          clients: ids that may be selected, int64[n]; None for all clients.
          size: number of clients to select, if that many are available; None for `cohort_size`.
          least: number of clients that must be available; None for `size`.
          turn: number of the draw within the step.

        Returns:
          The cohort as ascending ids, and the virtual time at which all of it is available.

        Raises:
          InputError: if `least` clients are never available at once.
        """
        clients = np.arange(self.problem.num_clients) if clients is None else clients
        size = self.algorithm.cohort_size if size is None else size
        least = size if least is None else least
        rng = np.random.default_rng([self.seed, step, 2 * turn])
        start_s = now_s
        for _ in range(_MAX_WAITS):
            ready_s = self.problem.fleet.next_available(clients, start_s)
            ready = clients[ready_s <= start_s]
            if len(ready) >= least:
                wanted = min(size, len(ready))
                candidates = Candidates(step, start_s, ready, wanted, rng)
                return self._select(candidates), start_s
            start_s = float(np.sort(ready_s)[least - 1])
        raise InputError(
            f"clients_per_round = {size}: never that many devices are available at once "
            f"(tried {_MAX_WAITS} times, up to {start_s:.4g} s); sample fewer clients"
        )

    def _select(self, candidates: Candidates) -> np.ndarray:
        """The selection of the algorithm as ascending ids, checked."""
        chosen, wanted = np.sort(self.algorithm.select(candidates)), candidates.wanted
        different = len(chosen) == wanted and bool(np.all(chosen[1:] > chosen[:-1]))
        # Candidates are in ascending order.
        places = np.searchsorted(candidates.clients, chosen)
        places = np.minimum(places, len(candidates.clients) - 1)
        require(
            different and bool(np.all(candidates.clients[places] == chosen)),
            lambda: f"select of {self.algorithm.name}: clients {chosen[:10].tolist()} ...",
            f"must be {wanted} different ones of the candidates",
            "return some of `candidates.clients`, each once",
        )
        return chosen

    def step_key(self, step: int) -> jax.Array:
        """The key of all plans of a step."""
        assert self.key is not None
        return fold_in(self.key, step)

    def plan(
        self,
        state: PyTree,
        variables: Variables,
        step: int,
        clients: np.ndarray,
        start_s: float,
        *,
        turn: int = 0,
        score: float | None = None,
        key: jax.Array | None = None,
    ) -> tuple[Plan, PyTree]:
        """The algorithm's plan for these clients, and its new state.

        Args:
          state: state of the algorithm.
          variables: model of the server.
          step: number of the server step, from 0.
          clients: ids of the cohort, int64[k].
          start_s: virtual time of dispatch in seconds.
          turn: number of the draw within the step.
          score: value of the target metric, see `Situation`.
          key: key of the step, if it was computed before; None computes it.
        """
        situation = Situation(
            round=step,
            now_s=start_s,
            clients=clients,
            key=self.step_key(step) if key is None else key,
            rng=np.random.default_rng([self.seed, step, 2 * turn + 1]),
            score=score,
        )
        return self.algorithm.plan(state, variables, situation)
