"""Groups of tasks: the tasks of a route, and how many of them are trained side by side."""

from collections.abc import Sequence

from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan
from fedjax_het.engine.resources import Resources
from fedjax_het.engine.routes import Routes, members

# Route and chunk.
Kind = tuple[Route, int]


def share_of(algorithm: Algorithm, route: Route) -> float:
    """FLOPs of the network of a route relative to the complete model."""
    return 1.0 if algorithm.widths is None else algorithm.widths.shares[route.width]


def kinds_of(
    algorithm: Algorithm, resources: Resources, plans: Sequence[Plan], routes: Routes
) -> list[dict[Kind, list[int]]]:
    """The tasks of every plan by route and chunk.

    The chunk is chosen for groups of equal size. It does not depend on the actual sizes, which
    keeps the number of programs small.

    Args:
      algorithm: method of the plans.
      resources: resources that choose the chunk.
      plans: plan of each round.
      routes: routes of the run.
    """
    rounds = []
    for plan in plans:
        groups = members(routes.execute(plan))
        size = -(-algorithm.cohort_size // max(len(routes.known), 1))
        rounds.append(
            {
                (
                    route,
                    resources.chunk_for(plan.batch, size, share=share_of(algorithm, route)),
                ): own
                for route, own in groups.items()
            }
        )
    return rounds
