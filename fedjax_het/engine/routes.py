"""Which route a client runs on: its own, or a wider one where programs would become too many."""

from collections.abc import Sequence

import numpy as np

from fedjax_het.contract.masks import Route
from fedjax_het.fleet.cost import CostTable


def execute(
    planned: Sequence[Route], known: Sequence[Route], bound: int, full: Route, cost: CostTable
) -> tuple[list[Route], list[Route]]:
    """The routes of some tasks, within a bound on all routes of a run.

    Args:
      planned: of every task.
      known: used so far, in the order of their use.
      bound: on the routes of the run; past it, routes are widened to the cheapest covering one.
      full: the route that covers every other.
      cost: prices of the model's blocks, which order the routes.

    Returns:
      The executed route of every task, and the known routes with the new ones at the end.
    """

    def price(route: Route) -> tuple[float, int]:
        return _price(route, cost)

    taken = set(known)
    chosen: dict[Route, Route] = {}
    for route in sorted(set(planned), key=price):
        # The last place is kept for the full route, which covers whatever comes later.
        room = bound - len(taken | {full})
        if route in taken or route == full or room > 0:
            chosen[route] = route
        else:
            chosen[route] = min((r for r in taken | {full} if r.covers(route)), key=price)
        taken.add(chosen[route])
    new = sorted(taken - set(known), key=price)
    return [chosen[route] for route in planned], [*known, *new]


def _price(route: Route, cost: CostTable) -> tuple[float, int]:
    """What orders routes: their work, and among equally dear ones the cut."""
    cut = -1 if route.cut is None else route.cut
    if route.exit is not None:
        return float(cost.step_flops(route.first, route.exit)), cut
    # All exits are computed: dearer than any single one.
    exits = np.arange(cost.num_blocks)
    return float(np.sum(cost.step_flops(np.zeros_like(exits), exits))), cut
