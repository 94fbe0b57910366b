"""The batteries of a run: how much charge every client has spent so far."""

import numpy as np

from fedjax_het.contract.clock import Closing, Flight
from fedjax_het.engine.efforts import effort_of, joules_of, promised
from fedjax_het.fleet.battery import is_empty
from fedjax_het.fleet.device import Fleet


class Batteries:
    """Charge of the devices of a fleet; it is never renewed.

    A task takes its charge when it is dispatched. When it is settled, it has taken what its row in
    the records says, as far as there was any: less if work was left out, more if the device waited
    for the merge.

    Args:
      fleet: fleet with `battery_joules`.

    Attributes:
      spent: joules that each client has spent, float64[n].
    """

    def __init__(self, fleet: Fleet):
        self._fleet = fleet
        self.spent = np.zeros(fleet.num_devices)

    @property
    def charged(self) -> np.ndarray:
        """Whether each client has charge left, bool[n]."""
        return ~is_empty(self._fleet.battery_joules, self.spent)

    def left(self, clients: np.ndarray) -> np.ndarray:
        """Joules that these clients have left, float64[k]; inf without a battery."""
        return self._fleet.battery_joules[clients] - self.spent[clients]

    def dispatched(self, flight: Flight) -> None:
        """Takes the charge of tasks until they end."""
        self._take(flight.client, joules_of(self._fleet, flight, promised(flight)))

    def settled(self, flight: Flight, closing: Closing, released: bool) -> None:
        """Corrects the charge that tasks took by what became of them.

        Args:
          flight: tasks as dispatched.
          closing: decision of the pace on these tasks.
          released: whether a client does not wait for the merge.
        """
        effort = effort_of(flight, closing, self._fleet.presence, released)
        efforts = effort, promised(flight)
        took, had_taken = (joules_of(self._fleet, flight, each) for each in efforts)
        self._take(flight.client, took - had_taken)

    def ran(self, flight: Flight, closing: Closing) -> np.ndarray:
        """`spent` after a round that was dispatched and settled at once."""
        self.dispatched(flight)
        self.settled(flight, closing, released=False)
        return self.spent

    def _take(self, clients: np.ndarray, joules: np.ndarray) -> None:
        spent = self.spent.copy()
        np.add.at(spent, clients, joules)
        self.spent = np.minimum(spent, self._fleet.battery_joules)
