"""Dispatch of clients: waiting for enough available clients, selection, and planning."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.contract.clock import Flight, dispatch
from fedjax_het.contract.plan import Plan, Question, Situation, Timing, require_countable
from fedjax_het.contract.selection import Pool
from fedjax_het.engine.batteries import Batteries
from fedjax_het.engine.selecting import Probes, Selection
from fedjax_het.fleet.battery import part_joules
from fedjax_het.fleet.cost import price as priced
from fedjax_het.fleet.interruption import interruptions
from fedjax_het.problem import Problem

# A fleet whose devices are on for 5 % of the time needs tens of waits. After thousands, enough
# devices will never be on at once.
_MAX_WAITS = 2000
# Purposes of draws: a plan that is made for its prices only, failures of tasks, times of probes.
_PRICES, _FAILURES, _PROBES = 1, 2, 3
# A probe uploads a loss, float32.
_PROBE_BYTES = 4

# Compiled, because without compilation it takes longer than the planning of a small round.
fold_in = jax.jit(jax.random.fold_in)


class Unseen:
    """The score of an evaluation, see `Situation.score`, until a plan has seen it.

    Attributes:
      score: the score; None if there is none that no plan has seen.
    """

    def __init__(self) -> None:
        self.score: float | None = None

    def take(self) -> float | None:
        """The score, which is then seen."""
        score, self.score = self.score, None
        return score


class Sampler(NamedTuple):
    """Selects cohorts and plans for them with the functions of an algorithm.

    The random numbers of a draw depend on the server step and, if clients are dispatched several
    times between two steps, on the turn.

    Attributes:
      algorithm: method that selects and plans.
      problem: problem, whose fleet tells which clients are available.
      seed: seed of the draws.
      key: typed PRNG key of the plans.
      selection: selection of the run, for draws.
      losses: function from a model and ids to the mean losses of these clients, float64[k], for
        selections that ask for them.
      batteries: charge of the clients; None if it has no limits.
      unseen: score for the next plan; None for no scores.
      measure: function with which plans ask the clients, see `Situation.measure`.
    """

    algorithm: Algorithm
    problem: Problem
    seed: int
    key: jax.Array | None = None
    selection: Selection | None = None
    losses: Callable[[Variables, np.ndarray], np.ndarray] | None = None
    batteries: Batteries | None = None
    unseen: Unseen | None = None
    measure: Callable[[Variables, Question], PyTree] | None = None

    @property
    def everyone(self) -> Pool:
        """All clients."""
        return Pool(population=self.problem.num_clients)

    def ready(self, now_s: float, *, pool: Pool, size: int, least: int) -> tuple[Pool, float]:
        """The clients that are available as soon as enough of them are.

        Args:
          now_s: virtual time in seconds.
          pool: clients that may be selected.
          size: number of clients wanted.
          least: number of clients that must be available, or all that ever are again if they are
            fewer.

        Returns:
          The available clients, and the virtual time.

        Raises:
          InputError: if `least` clients are never available at once, or none ever is again.
        """
        if self.problem.fleet.always_on and len(pool):
            return pool, now_s
        clients, start_s = pool.ids, now_s
        if self.batteries is not None:
            clients = clients[self.batteries.charged[clients]]
        for _ in range(_MAX_WAITS):
            ready_s = self.problem.fleet.next_available(clients, start_s)
            ready = clients[ready_s <= start_s]
            if len(ready) >= least:
                return Pool(ready), start_s
            least = min(least, int(np.sum(np.isfinite(ready_s))))
            require(
                least > 0,
                f"clients_per_round = {size}",
                f"no client is available after {start_s:.4g} s",
                "let some of them stay",
            )
            start_s = float(np.sort(ready_s)[least - 1])
        raise InputError(
            f"clients_per_round = {size}: never that many devices are available at once "
            f"(tried {_MAX_WAITS} times, up to {start_s:.4g} s); sample fewer clients"
        )

    def anyone_left(self, now_s: float) -> bool:
        """Whether any client is available at a virtual time, or ever will be."""
        clients = np.arange(self.problem.num_clients)
        if self.batteries is not None:
            clients = clients[self.batteries.charged]
        return bool(np.isfinite(self.problem.fleet.next_available(clients, now_s)).any())

    def draw(
        self,
        state: PyTree,
        variables: Variables,
        step: int,
        now_s: float,
        *,
        pool: Pool | None = None,
        size: int | None = None,
        least: int | None = None,
        turn: int = 0,
    ) -> tuple[np.ndarray, float]:
        """A cohort selected without replacement, as soon as enough clients are available.

        Args:
          state: state of the algorithm, with which a selection may ask for prices.
          variables: model of the server.
          step: number of the server step, from 0.
          now_s: virtual time in seconds.
          pool: clients that may be selected; None for all clients.
          size: number of clients to select, if that many are available; None for `cohort_size`.
          least: number of clients that must be available, see `ready`; None for `size`.
          turn: number of the draw within the step.

        Returns:
          The cohort as ascending ids, and the virtual time at which its tasks begin: all of it is
          available, and the clients that the selection asked have answered.

        Raises:
          InputError: as in `ready`.
        """
        size = self.algorithm.cohort_size if size is None else size
        least = size if least is None else least
        pool = self.everyone if pool is None else pool
        ready, start_s = self.ready(now_s, pool=pool, size=size, least=least)
        wanted = min(size, len(ready))
        if not wanted:
            return ready.ids, start_s

        def price(asked: np.ndarray) -> Timing:
            rng = np.random.default_rng([self.seed, step, 2 * turn, _PRICES])
            key = fold_in(self.step_key(step), _PRICES)
            situation = Situation(step, start_s, asked, key, rng)
            plan, _ = self.algorithm.plan(state, variables, situation)
            # A plan may list the clients in another order.
            order = np.argsort(plan.clients)
            place = order[np.searchsorted(plan.clients, asked, sorter=order)]
            return plan.take(place).timing

        def probe(asked: np.ndarray) -> Probes:
            rng = np.random.default_rng([self.seed, step, 2 * turn, _PROBES])
            return self._probe(variables, step, start_s, asked, rng)

        rng = np.random.default_rng([self.seed, step, 2 * turn])
        assert self.selection is not None
        chosen = self.selection.choose(
            step, start_s, ready, wanted, rng, price, probe, least=min(least, 1)
        )
        probes = self.selection.probes
        if probes is not None:
            start_s = float(np.max(probes.flight.arrives_s, initial=start_s))
            if self.batteries is not None:
                self.batteries.dispatched(probes.flight)
        return chosen, start_s

    def _probe(
        self,
        variables: Variables,
        step: int,
        start_s: float,
        clients: np.ndarray,
        rng: np.random.Generator,
    ) -> Probes:
        """Asks clients for the losses of a model, except those that could not answer.

        A client cannot if it leaves before, or if its charge is not enough. The arguments are those
        of `draw`.
        """
        assert self.losses is not None
        cost, k = self.problem.cost, len(clients)
        fleet = self.problem.fleet.at(step)
        samples = self.problem.data.sizes[clients]
        last = cost.num_blocks - 1
        timing = priced(
            cost,
            fleet,
            clients,
            last,
            last,
            samples,
            start_s,
            rng,
            flops=cost.forward_pass_flops() * samples,
            bytes_up=np.full(k, _PROBE_BYTES),
        )
        answers = start_s + timing.total_s <= fleet.leaves_s[clients]
        if self.batteries is not None:
            joules = part_joules(fleet, clients, timing).sum(axis=0)
            answers &= joules <= self.batteries.left(clients)
        asked, k = clients[answers], int(np.sum(answers))
        flight = Flight(
            client=asked,
            version=np.full(k, step),
            dispatched_s=np.full(k, start_s),
            deadline_s=np.full(k, np.inf),
            steps=np.zeros(k, np.int64),
            timing=jax.tree.map(lambda column: column[answers], timing),
        )
        return Probes(flight, self.losses(variables, asked) if k else np.zeros(0))

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
        start_s: float | np.ndarray,
        *,
        turn: int = 0,
        key: jax.Array | None = None,
    ) -> tuple[Plan, PyTree]:
        """The algorithm's plan for these clients, and its new state.

        Args:
          state: state of the algorithm.
          variables: model of the server.
          step: number of the server step, from 0.
          clients: ids of the cohort, int64[k].
          start_s: virtual time of dispatch in seconds, or that of each client, float64[k], see
            `Situation.now_s`.
          turn: number of the draw within the step.
          key: key of the step, if it was computed before; None computes it.
        """
        situation = Situation(
            round=step,
            now_s=start_s,
            clients=clients,
            key=self.step_key(step) if key is None else key,
            rng=np.random.default_rng([self.seed, step, 2 * turn + 1]),
            score=None if self.unseen is None else self.unseen.take(),
            measure=self.measure,
        )
        return self.algorithm.plan(state, variables, situation)

    def dispatch(
        self, plan: Plan, step: int, start_s: float | np.ndarray, *, turn: int = 0
    ) -> Flight:
        """The plan's tasks in flight, with their failures and pauses on the fleet of the step.

        Args:
          plan: tasks with their prices.
          step: number of the server step, from 0.
          start_s: virtual time of dispatch in seconds; where nothing is interrupted, perhaps that
            of each task, float64[k].
          turn: number of the draw within the step.

        Raises:
          InputError: if programs cannot count the samples of a task, or it takes no usable time.
        """
        require_countable(plan)
        fleet = self.problem.fleet
        if not fleet.interrupts:
            return dispatch(plan, start_s, step)
        assert not isinstance(start_s, np.ndarray)
        rng = np.random.default_rng([self.seed, step, 2 * turn, _FAILURES])
        left = None if self.batteries is None else self.batteries.left(plan.clients)
        went_wrong = interruptions(fleet.at(step), plan, start_s, rng, left)
        return dispatch(plan, start_s, step, went_wrong)


def require_selectable(algorithm: Algorithm, problem: Problem) -> None:
    """Raises `InputError` if the selection does not fit the clients, or too few are ever on."""
    size = algorithm.cohort_size
    require(
        size <= problem.num_clients,
        f"cohort_size = {size} of {algorithm.name}",
        f"must be at most the {problem.num_clients} clients",
        "select fewer clients",
    )
    selection = Selection(algorithm, problem.data.sizes)
    sampler = Sampler(algorithm, problem, seed=0, selection=selection)
    sampler.ready(
        0.0, pool=sampler.everyone, size=size, least=1 if algorithm.pace.may_wait else size
    )
