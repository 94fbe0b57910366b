"""Clients that join a fleet late, or leave it for good."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedjax_het.fleet.availability import Availability


@dataclass(frozen=True, eq=False)
class Membership:
    """An availability of clients that exist for a part of the time only; it is one itself.

    Attributes:
      within: availability of the devices, cycles of which start at virtual time 0 all the same.
      joins_s: float64[n], virtual time from which on each client exists.
      leaves_s: float64[n], virtual time from which on it does not; inf for none.
    """

    within: Availability
    joins_s: np.ndarray
    leaves_s: np.ndarray

    @property
    def num_devices(self) -> int | None:
        """n, the number of devices."""
        return self.joins_s.size

    def next_available(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """Earliest time >= `now_s` at which each client is on; see `Availability`."""
        on_s = self.within.next_available(clients, np.maximum(now_s, self.joins_s[clients]))
        return np.where(on_s < self.leaves_s[clients], on_s, np.inf)

    def on_until(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """Time until which each client stays on; see `Availability`."""
        until_s = self.within.on_until(clients, np.maximum(now_s, self.joins_s[clients]))
        return np.minimum(until_s, self.leaves_s[clients])

    def on_between(
        self, clients: np.ndarray, start_s: float | np.ndarray, end_s: float | np.ndarray
    ) -> np.ndarray:
        """Seconds for which each client is on between two times; see `Availability`."""
        start_s = np.maximum(start_s, self.joins_s[clients])
        end_s = np.minimum(end_s, self.leaves_s[clients])
        return self.within.on_between(clients, start_s, np.maximum(start_s, end_s))

    def spent_at(
        self, clients: np.ndarray, now_s: float | np.ndarray, on_s: float | np.ndarray
    ) -> np.ndarray:
        """Time at which each client has been on for so long; see `Availability`."""
        then_s = self.within.spent_at(clients, np.maximum(now_s, self.joins_s[clients]), on_s)
        return np.where(then_s <= self.leaves_s[clients], then_s, np.inf)

    def off_after(self, clients: np.ndarray) -> np.ndarray:
        """Time from which on each client is never on again; see `Availability`."""
        return np.minimum(self.within.off_after(clients), self.leaves_s[clients])

    def describe(self) -> dict[str, Any]:
        """The description for a run's record."""
        return self.within.describe()
