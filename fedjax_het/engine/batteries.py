"""The batteries of a run: how much charge every client has spent so far."""

import jax
import numpy as np

from fedjax_het.contract.clock import Closing, Flight, Status
from fedjax_het.fleet.battery import is_empty, joules_until, part_joules
from fedjax_het.fleet.device import Fleet


class Batteries:
    """Charge of the devices of a fleet; it is never renewed.

    A task takes its charge when it is dispatched, and the wait for the merge takes more when the
    task is settled, as far as there is any.

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
        gone = flight.interruptions
        paused_s = 0.0 if gone is None else gone.paused_s
        works_s = flight.ends_s - flight.dispatched_s - paused_s
        joules, _ = self._prices(flight)
        self._take(flight.client, joules_until(joules, flight.timing, works_s))

    def settled(self, flight: Flight, closing: Closing, released: bool) -> None:
        """Takes the charge of waiting for the merge; gives back that of work that was left out.

        Args:
          flight: tasks as dispatched.
          closing: decision of the pace on these tasks.
          released: whether a client does not wait for the merge.
        """
        (_, compute, upload), watts = self._prices(flight)
        wait_s = np.maximum(closing.at_s - flight.ends_s, 0.0) * (not released)
        partial, dropped = (
            np.asarray([status is kind for status in closing.status])
            for kind in (Status.PARTIAL, Status.DROPPED)
        )
        undone = partial * (1 - closing.steps / flight.steps) * compute + dropped * upload
        self._take(flight.client, np.where(flight.failed, 0.0, wait_s * watts - undone))

    def ran(self, flight: Flight, closing: Closing) -> np.ndarray:
        """`spent` after a round that was dispatched and settled at once."""
        self.dispatched(flight)
        self.settled(flight, closing, released=False)
        return self.spent

    def _prices(self, flight: Flight) -> tuple[np.ndarray, np.ndarray]:
        """Joules of the parts of whole tasks, float64[3, k], and watts of waiting, float64[k].

        Prices are those of the round in which a task was dispatched.
        """
        joules, watts = np.empty((3, len(flight.client))), np.empty(len(flight.client))
        for version in np.unique(flight.version):
            own = flight.version == version
            fleet, clients = self._fleet.at(int(version)), flight.client[own]
            timing = jax.tree.map(lambda column, own=own: column[own], flight.timing)
            joules[:, own] = part_joules(fleet, clients, timing)
            watts[own] = fleet.idle_watts[clients]
        return joules, watts

    def _take(self, clients: np.ndarray, joules: np.ndarray) -> None:
        spent = self.spent.copy()
        np.add.at(spent, clients, joules)
        self.spent = np.minimum(spent, self._fleet.battery_joules)
