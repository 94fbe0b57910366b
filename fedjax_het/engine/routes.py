"""The route on which a client runs: its planned route, or a wider one that has a program already.

Every route is a program, and compiling one takes as long as many rounds of a small model. A method
that learns what its clients train (a window, a tier) asks for new routes as it goes. Such a route
is *rented* first: its clients run on the cheapest known route that covers it, until the work wasted
there would exceed the price of a program; then it gets its own. No route wastes more than its
program costs, whatever comes later: the rule of ski rental (Karlin, Manasse, Rudolph & Sleator,
1988).

The price is one of a kind of machine, and not measured, so the routes of a run, which decide the
last bits of its sums, are the same on a slow machine and on a fast one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.contract.masks import Route, decoded
from fedjax_het.contract.plan import Plan
from fedjax_het.fleet.cost import CostTable


class Price(NamedTuple):
    """What a program and a step of training take on a kind of machine; only ratios matter.

    A block is counted once for its forward pass and once for its gradients.

    Attributes:
      program_s: seconds in which a training program is compiled, apart from its blocks.
      program_block_s: seconds for each of its blocks.
      flops_per_s: rate of training.
      step_block_s: seconds that a block takes in a step beside its FLOPs.
    """

    program_s: float
    program_block_s: float
    flops_per_s: float
    step_block_s: float


# Of two cores with AVX-512 (`benchmarks.micro.programs`), and of an accelerator, as an estimate.
PRICES = {"cpu": Price(1.0, 0.2, 1e11, 1e-5), "other": Price(3.0, 0.3, 1e13, 1e-6)}


class Routes:
    """The routes of one run, with a bound on their number.

    The routes used so far decide on which later tasks run. They belong to the run, and a resumed
    run starts with the routes of its checkpoint.

    Args:
      bound: largest number of routes; further routes are replaced by the cheapest covering one. 0
        runs all clients on the full route.
      full: route that covers every other.
      cost: prices of the model's blocks, which order the routes.
      price: price at which routes are rented; None gives each its program at once.
      shares: FLOPs of the network of each width relative to the complete model.
      saved: `saved` of the run's checkpoint, if it resumes.

    Attributes:
      known: routes used so far, in the order of their use.
    """

    def __init__(
        self,
        bound: int,
        full: Route,
        cost: CostTable,
        price: Price | None = None,
        shares: Sequence[float] = (1.0,),
        saved: Mapping[str, Any] | None = None,
    ):
        self._bound, self._full, self._cost = bound, full, cost
        self._price, self._shares, saved = price, shares, saved or {}
        self._priced: dict[Route, float] = {}
        self.known = [decoded(code) for code in saved.get("routes", ())]
        # Work wasted on wider routes so far, in seconds, by planned route.
        self._rented_s = {decoded(code): seconds for code, seconds in saved.get("rented_s", ())}

    @property
    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds of the routes, as JSON."""
        return {
            "routes": [route.code for route in self.known],
            "rented_s": [(route.code, seconds) for route, seconds in self._rented_s.items()],
        }

    def copy(self) -> "Routes":
        """A copy, with which `execute` can be tried without changing this object."""
        parts = self._bound, self._full, self._cost, self._price, self._shares
        return Routes(*parts, self.saved)

    def execute(self, plan: Plan) -> list[Route]:
        """The route on which each task of a plan runs, which covers the planned one."""
        full, planned = self._full, plan.routes
        if any(route.width for route in (*planned, *self.known)):
            full = full._replace(padded=True)
        if self._bound == 0:
            return [full] * len(planned)
        taken = set(self.known)
        chosen: dict[Route, Route] = {}
        # Those that cover others come first, so that the others find them.
        for route in sorted(set(planned), key=self._order, reverse=self._price is not None):
            covering = [r for r in taken | {full} if r.covers(route)]
            widened = min(covering, key=self._order)
            # The last place is reserved for the full route, which covers all later routes.
            free = self._bound - len(taken | {full})
            own = route in taken or route == full or free > 0
            # The first route of a run is its own: many runs have just one.
            if own and self._price is not None and taken and route not in taken | {full}:
                own = self._buys(self._price, route, widened, plan)
            chosen[route] = route if own else widened
            taken.add(chosen[route])
        self.known += sorted(taken - set(self.known), key=self._order)
        return [chosen[route] for route in planned]

    def _buys(self, price: Price, route: Route, wider: Route, plan: Plan) -> bool:
        """Whether a route gets its program now; if not, the work wasted on the wider is noted."""
        own = np.asarray([other == route for other in plan.routes])
        steps, samples = np.sum(plan.steps[own]), np.sum((plan.steps * plan.batch)[own])

        def work_s(of: Route) -> float:
            flops, blocks = self._flops(of) * self._shares[of.width], self._blocks(of)
            return float(samples * flops / price.flops_per_s + steps * blocks * price.step_block_s)

        wasted_s = self._rented_s.pop(route, 0.0) + max(work_s(wider) - work_s(route), 0.0)
        if wasted_s >= price.program_s + self._blocks(route) * price.program_block_s:
            return True
        self._rented_s[route] = wasted_s
        return False

    def _flops(self, route: Route) -> float:
        """FLOPs per sample at full width."""
        if route not in self._priced:
            # All exits: the whole model, and a loss after every block.
            last = self._cost.num_blocks - 1
            own = (0, last, np.arange(last + 1) < last) if route.exit is None else route[:2]
            self._priced[route] = float(self._cost.step_flops(*own))
        return self._priced[route]

    def _blocks(self, route: Route) -> int:
        """Number of blocks that run forward, and of those that train, heads included."""
        last = self._cost.num_blocks - 1
        if route.exit is None:
            return 4 * last + 2
        return 2 * (route.exit + 1) - route.first + 2 * len(route.heads)

    def _order(self, route: Route) -> tuple[float, ...]:
        """Sort key of a route: its FLOPs, its level, cut and heads."""
        # Computing all exits is more work than computing any one.
        return self._flops(route), float(route.exit is None), -route.width, *route.code[2:]


def members(routes: Sequence[Route]) -> dict[Route, list[int]]:
    """Positions of each route in `routes`."""
    groups: dict[Route, list[int]] = {}
    for i, route in enumerate(routes):
        groups.setdefault(route, []).append(i)
    return groups
