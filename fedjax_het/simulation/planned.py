"""A round that is planned and closed in virtual time, but not trained yet."""

from typing import NamedTuple

import numpy as np

from fedjax_het.contract.clock import Closing, Flight
from fedjax_het.contract.plan import Plan
from fedjax_het.engine.selecting import Probes


class PlannedRound(NamedTuple):
    """A round at whose end no client is at work.

    Attributes:
      step: number of server steps before it.
      plan: plan of all its tasks.
      flight: tasks as dispatched.
      closing: decision of the pace on these tasks.
      probes: what the selection asked of clients before the tasks; None if nothing.
      spent: joules that every client has spent after it, float64[n]; None without batteries.
    """

    step: int
    plan: Plan
    flight: Flight
    closing: Closing
    probes: Probes | None
    spent: np.ndarray | None

    @property
    def ran(self) -> np.ndarray:
        """Indices of the tasks whose work counts, int64[r]."""
        return np.flatnonzero(self.closing.merges)

    @property
    def executed(self) -> Plan:
        """The tasks whose work counts, with the local steps that count."""
        ran, steps = self.ran, self.closing.steps
        if len(ran) == len(self.plan.clients) and np.array_equal(steps, self.plan.steps):
            return self.plan
        return self.plan.take(ran, steps)
