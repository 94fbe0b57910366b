"""The route on which a client runs: its planned route, or a wider one to limit the programs."""

from collections.abc import Sequence

import numpy as np

from fedjax_het.contract.masks import Route
from fedjax_het.fleet.cost import CostTable


class Routes:
    """The routes of one run, with a bound on their number.

    Because of the bound, the routes used so far decide which later routes are widened. They belong
    to the run, and a resumed run starts with the routes of its checkpoint.

    Args:
      bound: largest number of routes; further routes are replaced by the cheapest covering one. 0
        runs all clients on the full route.
      full: route that covers every other.
      cost: prices of the model's blocks, which order the routes.
      known: routes used before.

    Attributes:
      known: routes used so far, in the order of their use.
    """

    def __init__(self, bound: int, full: Route, cost: CostTable, known: Sequence[Route] = ()):
        self._bound, self._full, self._cost = bound, full, cost
        self.known = list(known)

    def copy(self) -> "Routes":
        """A copy, with which `execute` can be tried without changing this object."""
        return Routes(self._bound, self._full, self._cost, self.known)

    def execute(self, planned: Sequence[Route]) -> list[Route]:
        """The route on which each task runs, from the route planned for it."""
        full = self._full
        if any(route.width for route in (*planned, *self.known)):
            full = full._replace(padded=True)
        if self._bound == 0:
            return [full] * len(planned)
        taken = set(self.known)
        chosen: dict[Route, Route] = {}
        for route in sorted(set(planned), key=self._price):
            # The last place is reserved for the full route, which covers all later routes.
            free = self._bound - len(taken | {full})
            if route in taken or route == full or free > 0:
                chosen[route] = route
            else:
                covering = (r for r in taken | {full} if r.covers(route))
                chosen[route] = min(covering, key=self._price)
            taken.add(chosen[route])
        self.known += sorted(taken - set(self.known), key=self._price)
        return [chosen[route] for route in planned]

    def _price(self, route: Route) -> tuple[float, ...]:
        """Sort key of a route: its FLOPs per sample at full width, its level, cut and heads."""
        rest = -route.width, *route.code[2:]
        if route.exit is not None:
            return float(self._cost.step_flops(route.first, route.exit)), *rest
        # All exits are computed, which is more work than any single exit.
        exits = np.arange(self._cost.num_blocks)
        return float(np.sum(self._cost.step_flops(np.zeros_like(exits), exits))), *rest


def members(routes: Sequence[Route]) -> dict[Route, list[int]]:
    """Positions of each route in `routes`."""
    groups: dict[Route, list[int]] = {}
    for i, route in enumerate(routes):
        groups.setdefault(route, []).append(i)
    return groups
