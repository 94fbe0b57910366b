"""Which device of a file, and which record of another, belongs to which client."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.common.files import AnyPath
from fedjax_het.common.numbers import shown

Assignment = Literal["in_order", "dealt"]
TraceAssignment = Literal["by_id", "dealt"]


@dataclass(frozen=True)
class Deal:
    """How the devices of a file and the records of others are given to clients.

    Attributes:
      num_clients: number of clients, n; None for one per device.
      seed: seed of what is dealt.
      assignment: which device belongs to which client, see `files.read_csv`.
      trace_assignment: which record belongs to which device, see there.
    """

    num_clients: int | None
    seed: Any
    assignment: str
    trace_assignment: str

    def __post_init__(self) -> None:
        require_known(self.assignment, get_args(Assignment), "assignment")
        require_known(self.trace_assignment, get_args(TraceAssignment), "trace_assignment")
        for name, value, least in (("num_clients", self.num_clients, 1), ("seed", self.seed, 0)):
            require(
                (value is None and name != "seed")
                or (isinstance(value, int | np.integer) and bool(value >= least)),
                f"{name} = {shown(value)}",
                f"must be a whole number >= {least}",
                "any such number will do" if name == "seed" else "use the clients of the data",
            )

    def devices(self, held: int, path: AnyPath) -> np.ndarray:
        """The row of each client's device in a file with `held` devices, int64[n]."""
        n = held if self.num_clients is None else self.num_clients
        if self.assignment == "dealt":
            return _dealt(held, n, self.seed, 0)
        require(
            held == n,
            f"{path}: {held} devices for {n} clients",
            "must be equal in number, as line k belongs to client k",
            "give one line per client, or assignment = 'dealt', which deals them by the seed",
        )
        return np.arange(n)

    def records(
        self, known: list[str], wanted: list[str] | int, purpose: int, path: AnyPath
    ) -> np.ndarray:
        """Place in `known` of the record of each client's device, int64[n].

        Args:
          known: names of the devices with a record.
          wanted: names of the clients' devices, or their number if they have no names.
          purpose: number > 0 that tells apart what is dealt with one seed.
          path: path of the records.
        """
        if self.trace_assignment == "dealt":
            n = wanted if isinstance(wanted, int) else len(wanted)
            return _dealt(len(known), n, self.seed, purpose)
        if isinstance(wanted, int):
            raise InputError(
                f"{path}: records of devices by name, but the devices have no names: must have a "
                "column 'device' in both files; add it, or set trace_assignment = 'dealt'"
            )
        place = {name: i for i, name in enumerate(known)}
        lost = next((name for name in wanted if name not in place), None)
        require(
            lost is None,
            f"{path}: device {lost!r}",
            "is never on in it, or has no record",
            "add its lines, leave the device out, or set trace_assignment = 'dealt'",
        )
        return np.array([place[name] for name in wanted])


def _dealt(rows: int, clients: int, seed: int, purpose: int) -> np.ndarray:
    """Rows that are shuffled and dealt, int64[clients]; none is dealt twice before all are."""
    turns = np.tile(np.arange(rows), (-(-clients // rows), 1))
    return np.random.default_rng([seed, purpose]).permuted(turns, axis=1).ravel()[:clients]
