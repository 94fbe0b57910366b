"""Sub-networks by width of a problem: their levels, who trains which, their prices and training."""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.assignment import Assignment, drawn, given_levels, given_shares
from fedjax_het.algorithms.static_norm import StaticNorm, has_static_norm
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract import widths
from fedjax_het.contract.algorithm import ClientResult, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.contract.submodels import SubModels
from fedjax_het.contract.widths import Counts, Layout, Orders, Widths
from fedjax_het.data.batches import DeviceData
from fedjax_het.fleet.cost import CostTable, cost_table
from fedjax_het.fleet.measured import scaled_like
from fedjax_het.local.training import LocalUpdate
from fedjax_het.models.agreement import require_agreement, require_scalable
from fedjax_het.models.base import BlockModel
from fedjax_het.models.narrow import sub_network
from fedjax_het.models.units import layout_of
from fedjax_het.problem import Problem

# Tolerance for rounding in rates and capacities, so that the last digit excludes no level.
_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class Networks:
    """The levels of a method and what they cost; `networks` makes them.

    Attributes:
      problem: model, data and fleet.
      layout: groups of the model's hidden units.
      rates: share of the units of every group that each level holds; 1 at level 0, descending.
      allowed: levels that clients may have.
      counts: number of units of each level, by group.
      static: statistics of the batch norms of models that are evaluated; None if clients train and
        send them, or there are none.
    """

    problem: Problem
    layout: Layout
    rates: tuple[float, ...]
    allowed: tuple[int, ...]
    counts: tuple[Counts, ...]
    static: StaticNorm | None = None

    @functools.cached_property
    def models(self) -> tuple[BlockModel, ...]:
        """The network of each level."""
        model, *narrower = self.problem.model, *self.counts[1:]
        return (model, *(sub_network(model, self.layout, each) for each in narrower))

    @functools.cached_property
    def costs(self) -> tuple[CostTable, ...]:
        """Prices of each level; measured prices are scaled like the analytic ones."""
        whole, given = cost_table(self.problem.model), self.problem.cost_override
        own = tuple(cost_table(model) for model in self.models)
        if self.static is not None:
            unsent: Any = {"stats_bytes": np.zeros_like(whole.stats_bytes), "uploads_stats": False}
            own = tuple(replace(cost, **unsent) for cost in own)
            given = None if given is None else replace(given, **unsent)
        return own if given is None else tuple(scaled_like(given, each, whole) for each in own)

    @property
    def shares(self) -> np.ndarray:
        """FLOPs of a training step of each level relative to level 0, float64."""
        flops = np.asarray([float(cost.step_flops()) for cost in self.costs])
        return flops / flops[0]

    def widths(self, order: Callable[[PyTree, PyTree], Orders] | None = None) -> Widths:
        """The sub-networks with these orders, see `Widths`."""
        return Widths(self.layout, self.counts, tuple(self.shares.tolist()), order)

    def assignment(
        self,
        training: TrainingOptions,
        *,
        levels: Sequence[int] | None,
        shares: Sequence[float] | None,
        dynamic: bool,
    ) -> Assignment:
        """Who trains which level.

        Args:
          training: options of the clients, for the check of their memory.
          levels: index into the method's rates of every client.
          shares: share of the clients at each rate. A client keeps its level for the whole run, and
            the fastest clients have the widest ones.
          dynamic: whether clients draw their level anew in every round instead, with these shares,
            by default equal ones.

        Without any of them, clients train the widest level that they afford: that costs, relative
        to the complete network, at most the speed of their device relative to the fastest one.

        Raises:
          InputError: if the options do not fit each other or the fleet, or a device has too little
            memory for a level that it may have.
        """
        n, allowed = self.problem.num_clients, np.asarray(self.allowed)
        require(
            levels is None or (shares is None and not dynamic),
            f"levels with shares = {shares}, dynamic = {dynamic}",
            "each says which rates clients have",
            "leave out shares and dynamic",
        )
        if levels is not None:
            return self._fixed(training, allowed[given_levels(levels, n, len(allowed))])
        chances = given_shares(shares, len(allowed))
        if dynamic:
            for level in allowed[chances > 0].tolist():
                self.require_memory(training, np.full(n, level))
            return Assignment(lambda s: allowed[drawn(s, n, chances)[s.clients]])
        if shares is not None:
            ends = np.round(np.cumsum(chances) * n)
            rank = np.empty(n, np.int64)
            speed = self.problem.fleet.at(0).flops_per_s
            rank[np.argsort(-speed, kind="stable")] = np.arange(n)
            return self._fixed(training, allowed[np.searchsorted(ends, rank, side="right")])

        def by_speed(round: int) -> np.ndarray:
            speed = self.problem.fleet.at(round).flops_per_s
            level = self.affordable(speed / np.max(speed))
            self.require_memory(training, level)
            return level

        if self.problem.fleet.redraw is None:
            return self._fixed(training, by_speed(0))
        by_speed(0)
        return Assignment(lambda situation: by_speed(situation.round)[situation.clients])

    def _fixed(self, training: TrainingOptions, level: np.ndarray) -> Assignment:
        self.require_memory(training, level)
        return Assignment(lambda situation: level[situation.clients], level)

    def affordable(self, capacity: np.ndarray) -> np.ndarray:
        """The widest allowed level whose training costs at most a share of the full network's.

        Args:
          capacity: shares, float64[n].

        Returns:
          Levels int64[n]; the narrowest one where none is affordable.
        """
        own = self.shares[list(self.allowed)]
        return self._widest(own[None, :] <= capacity[:, None] * (1 + _SLACK))

    def widest(self, rates: np.ndarray) -> np.ndarray:
        """The widest allowed level of at most these rates.

        Args:
          rates: rates, float64[n].

        Returns:
          Levels int64[n]; the narrowest one where none is so narrow.
        """
        own = np.asarray(self.rates)[list(self.allowed)]
        return self._widest(own[None, :] <= rates[:, None] * (1 + _SLACK))

    def _widest(self, fits: np.ndarray) -> np.ndarray:
        """The first allowed level that fits, bool[n, levels], else the last one."""
        index = np.where(fits.any(axis=1), np.argmax(fits, axis=1), fits.shape[1] - 1)
        return np.asarray(self.allowed)[index]

    def require_memory(self, training: TrainingOptions, level: np.ndarray) -> None:
        """Raises `InputError` if a device has too little memory for its level, int64[n]."""
        for each in np.unique(level).tolist():
            own = replace(self.problem, cost_override=self.costs[each])
            parts.require_memory(own, training, 0, clients=np.flatnonzero(level == each))

    def plan(
        self,
        training: TrainingOptions,
        situation: Situation,
        level: np.ndarray,
        *,
        work: np.ndarray | None = None,
        rows: PyTree = None,
        shared: PyTree = None,
    ) -> Plan:
        """The plan of a cohort that trains these levels.

        Args:
          training: options of the clients.
          situation: cohort and time of dispatch.
          level: level of each client of the cohort, int64[k].
          work: FLOPs of a training step of each client relative to the complete network,
            float64[k]; None for those of its level.
          rows: values for the clients' programs, see `Plan.rows`.
          shared: values that they share, see `Plan.shared`.
        """
        clients, problem = situation.clients, self.problem
        sizes = problem.data.sizes[clients]
        steps = training.steps(sizes)
        work = self.shares[level] if work is None else work
        down = np.asarray([cost.download_bytes() for cost in self.costs])
        up = np.asarray([int(cost.upload_bytes(0, None)) for cost in self.costs])
        timing = problem.fleet.at(situation.round).timing(
            clients,
            work * float(self.costs[0].step_flops()) * training.samples(sizes, steps),
            down[level],
            up[level],
            situation.now_s,
            situation.rng,
        )
        plan = parts.plan_tasks(problem, training, situation, rows=rows, timing=timing)
        last = problem.model.num_blocks - 1
        routes = [Route(0, last, width=int(each)) for each in level]
        return plan._replace(routes=routes, shared=shared)

    def local_update(
        self,
        training: TrainingOptions,
        *,
        scaled: bool = False,
        wrapped: Callable[[BlockModel, Task], BlockModel] | None = None,
    ) -> LocalUpdate:
        """Training of the sub-network of a client.

        Args:
          training: options of the clients.
          scaled: whether hidden layers divide their outputs by the rate in training.
          wrapped: function that changes the network of a task.
        """
        if scaled and len(self.counts) > 1:
            require_scalable(self.problem.model, self.layout, self.counts[-1])

        def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
            model = self.network(route, task.width, scaled=scaled)
            if wrapped is not None:
                model = wrapped(model, task)
            train = training.local_update(self.problem, model=model)
            return self.unsent(train(route, start, data, task), start)

        return local

    def unsent(self, result: ClientResult, start: Variables) -> ClientResult:
        """The result, without the statistics of static norms."""
        return result if self.static is None else result._replace(stats=start.stats)

    def network(self, route: Route, level: jax.Array, *, scaled: bool) -> BlockModel:
        """The network that a client of a traced level trains on a route."""
        counts = self.counts[route.width]
        if not route.padded:
            scale = 1.0 / self.rates[route.width] if scaled else 1.0
            return sub_network(self.problem.model, self.layout, counts, scale=scale)
        scales = jnp.asarray([1.0 / rate for rate in self.rates], jnp.float32)
        return sub_network(
            self.problem.model,
            self.layout,
            counts,
            live=self.widths().counts_of(level),
            scale=scales[level] if scaled else 1.0,
        )

    @property
    def calibrate(self) -> Callable[[Variables], Variables] | None:
        """`Algorithm.calibrate`: the statistics of static norms of the global model."""
        static, model = self.static, self.problem.model
        return None if static is None else lambda variables: static(model, variables)

    def submodels(self, assigned: Assignment) -> SubModels:
        """The networks of the allowed levels with the first units of the model, by name.

        With static norms each has its own statistics.

        Args:
          assigned: levels of the clients.
        """

        def models(state: PyTree, variables: Variables) -> dict[str, tuple[BlockModel, Variables]]:
            del state
            return {self.name(level): self._first_units(level, variables) for level in self.allowed}

        fixed = assigned.fixed
        return SubModels(models, None if fixed is None else tuple(map(self.name, fixed.tolist())))

    def _first_units(self, level: int, variables: Variables) -> tuple[BlockModel, Variables]:
        model, own = self.problem.model, variables
        if level > 0:
            model = self.models[level]
            own = widths.take(self.layout, self.counts[level], variables, None)
        return model, own if self.static is None else self.static(model, own)

    def name(self, level: int) -> str:
        """The name of a level in records."""
        return f"width_{self.rates[level]:g}"


def networks(
    problem: Problem,
    rates: Sequence[float],
    *,
    static_norm: bool | None = None,
    kept: Collection[str] = (),
) -> Networks:
    """The sub-networks of a problem's model that hold these shares of its hidden units.

    A group of K units keeps `ceil(rate K)`.

    Args:
      problem: model, data and fleet.
      rates: rates in (0, 1].
      static_norm: whether clients neither use nor send running statistics (`StaticNorm`); None for
        True if the model has any that are trained.
      kept: names of groups of which every sub-network holds all units, see `units.layout_of`.

    Raises:
      InputError: if a rate is not usable, the model cannot be cut by width, or it has no statistics
        and `static_norm` is True.
    """
    given = tuple(float(rate) for rate in rates)
    require(
        bool(given)
        and all(0 < rate <= 1 for rate in given)
        and list(given) == sorted(set(given), reverse=True),
        f"rates = {given}",
        "must be numbers in (0, 1], the largest first",
        "use (1.0, 0.5, 0.25)",
    )
    layout = layout_of(problem.model)
    require(
        set(kept) < set(layout.sizes),
        f"kept = {sorted(kept)}",
        f"must be some, but not all, of the groups {sorted(layout.sizes)}",
        "leave it out, so that no group is complete",
    )
    layout = widths.complete(layout, kept)
    every = tuple(sorted({1.0, *given}, reverse=True))
    counts = tuple(
        {group: int(np.ceil(rate * size - _SLACK)) for group, size in layout.sizes.items()}
        for rate in every
    )
    allowed = tuple(level for level, rate in enumerate(every) if rate in given)
    for each in counts[1:]:
        require_agreement(problem.model, layout, each)
    static = StaticNorm(problem) if has_static_norm(problem, static_norm) else None
    return Networks(problem, layout, every, allowed, counts, static)
