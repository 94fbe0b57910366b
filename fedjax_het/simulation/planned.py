"""A round that is planned and closed in virtual time, but not trained yet."""

from typing import NamedTuple

import numpy as np

from fedjax_het.contract.clock import Closing, Flight
from fedjax_het.contract.plan import Plan


class PlannedRound(NamedTuple):
    """A round at whose end no client is at work.

    Attributes:
      step: number of server steps before it.
      plan: plan of all its tasks.
      flight: tasks as dispatched.
      closing: decision of the pace on these tasks.
      ran: indices of the tasks whose work counts, int64[r].
      spent: joules that every client has spent after it, float64[n]; None without batteries.
    """

    step: int
    plan: Plan
    flight: Flight
    closing: Closing
    ran: np.ndarray
    spent: np.ndarray | None

    @property
    def executed(self) -> Plan:
        """The tasks whose work counts, with the local steps that count."""
        return self.plan.take(self.ran, self.closing.steps)
