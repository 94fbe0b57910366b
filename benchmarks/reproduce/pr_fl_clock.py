"""What PR-FL's clock does without training: merges, trainings of the clients, densities.

The plans, the pace and the controller of a method run as in a simulation on devices that are always
on; the model stays as it is drawn. So everything that does not depend on accuracies is that of a
run: windows, links, participation, and densities that follow the times.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.algorithms.prfl import Density, Recovery
from fedjax_het.contract.algorithm import Algorithm, Report
from fedjax_het.contract.clock import Flight, dispatch
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.problem import Problem


class Clock(NamedTuple):
    """The clock of a run.

    Attributes:
      ends_s: virtual time of every merge, float64[merges].
      trained: merged trainings of each client, int64[n].
      density: densities of the sub-models at the end, float64[n].
    """

    ends_s: np.ndarray
    trained: np.ndarray
    density: np.ndarray

    @property
    def participation(self) -> np.ndarray:
        """Trainings of each client over those of the client that trained most, float64[n]."""
        return self.trained / np.max(self.trained)


def planned(
    algorithm: Algorithm,
    problem: Problem,
    *,
    until_s: float = np.inf,
    merges: int = 10**6,
    seed: int = 0,
) -> Clock:
    """The clock of a method of PR-FL until a virtual time or a number of merges.

    Args:
      algorithm: a method of `fedjax_het.algorithms.prfl`. With recovery it also scores the model
        as it is drawn, which takes time and changes nothing.
      problem: problem of the method.
      until_s: virtual seconds of the last merge.
      merges: number of merges.
      seed: seed of the jitter.
    """
    key = jax.random.key(seed)
    variables = jax.jit(problem.model.init)(key)
    state = algorithm.init(variables, key)
    idle, now_s, at_work = np.arange(problem.num_clients), 0.0, None
    trained, ends_s = np.zeros(problem.num_clients, np.int64), []
    for step in range(merges):
        # The same draws as in a run of this seed.
        rng = np.random.default_rng([seed, step, 1])
        situation = Situation(step, now_s, idle, key, rng)
        plan, state = algorithm.plan(state, variables, situation)
        at_work = _joined(at_work, plan, dispatch(plan, now_s, step))
        closing = algorithm.pace.close(at_work.flight)
        if closing.at_s > until_s:
            break
        now_s, merges_now = closing.at_s, np.asarray(closing.merges)
        done, at_work = at_work.parted(merges_now)
        idle = np.sort(done.flight.client)  # a cohort ascends
        trained[idle] += 1
        ends_s.append(now_s)
        if algorithm.observe is not None:
            report = _report(step, done)
            state, variables, _ = algorithm.observe(state, variables, report)
    return Clock(np.asarray(ends_s), trained, np.asarray(state.density))


def first_recovery(density: Density, recovery: Recovery) -> int:
    """Merges before recovery can raise a density: a best score, and `patience` that are no better.

    An upload is scored at every `Density.interval` merges. The server's automaton is armed at that
    merge, and raises the floors only when it fires again.
    """
    return density.interval * (recovery.patience + 1)


def recovery_check(clock: Clock, density: Density, recovery: Recovery) -> str:
    """Whether recovery can fire in a run with this clock, and how often at most, as a line."""
    needed, merges = first_recovery(density, recovery), len(clock.ends_s)
    most = max(merges // density.interval - 1, 0) // recovery.patience
    verdict = f"can fire, at most {most} times a client" if most else "CANNOT fire"
    return (
        f"recovery {verdict}: {merges} merges, interval {density.interval}, patience "
        f"{recovery.patience}: {needed} merges before the first"
    )


class _Work(NamedTuple):
    """Tasks in flight, with the plans that they come from."""

    flight: Flight
    plan: Plan

    def parted(self, leaves: np.ndarray) -> tuple["_Work", "_Work | None"]:
        """The tasks that leave, and those that stay, or None."""
        out, stay = np.flatnonzero(leaves), np.flatnonzero(~leaves)
        return self._take(out), self._take(stay) if stay.size else None

    def _take(self, index: np.ndarray) -> "_Work":
        flight = jax.tree.map(lambda column: column[index], self.flight)
        return _Work(flight, self.plan.take(index))


def _joined(before: _Work | None, plan: Plan, flight: Flight) -> _Work:
    """The tasks in flight with those of a new plan."""
    plan = plan._replace(shared=None, steps=np.asarray(plan.steps))
    if before is None:
        return _Work(flight, plan)

    def both(a: Any, b: Any) -> Any:
        return jax.tree.map(lambda x, y: np.concatenate([x, y]), a, b)

    columns = ("clients", "steps", "batch", "weight", "timing", "rows", "notes")
    joined = {name: both(getattr(before.plan, name), getattr(plan, name)) for name in columns}
    routes = [*before.plan.routes, *plan.routes]
    return _Work(both(before.flight, flight), plan._replace(routes=routes, **joined))


def _report(step: int, done: _Work) -> Report:
    """Report of tasks that were not trained: losses of zero."""
    k = len(done.plan.clients)
    samples = done.plan.steps.astype(np.int64) * done.plan.batch
    late = step - done.flight.version
    return Report(step, done.plan, np.zeros(k), samples, np.ones(k, bool), late, None, {})
