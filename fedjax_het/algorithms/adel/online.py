"""Extension of the paper: speeds learned from the layers that devices finish, and new plans.

References:
  methods/adel_fl.md 8.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedjax_het.algorithms.adel.planning import Planner
from fedjax_het.algorithms.adel.workload import Attempt, Workload
from fedjax_het.common.errors import require
from fedjax_het.common.options import check_types

# Extra capacity of the compiled batch, for devices that are faster than assumed.
_GROWTH = 2.0


class Speeds(NamedTuple):
    r"""Running estimate of every client's power, from the layers finished in the observed time.

    For exponential layer times $\sum d_u S_u / \sum$ busy time is the maximum-likelihood estimate
    of samples x layers per second, also if the deadline stops the work. Both sums decay over
    rounds.

    Attributes:
      work: finished work in samples x layers, float64[n].
      busy_s: time of that work in seconds, float64[n].
    """

    work: np.ndarray
    busy_s: np.ndarray

    @property
    def power(self) -> np.ndarray:
        """Power of each client in samples x layers per second, float64[n]."""
        return self.work / self.busy_s

    def observe(
        self,
        clients: np.ndarray,
        batch: np.ndarray,
        depth: np.ndarray,
        busy_s: np.ndarray,
        memory_rounds: float,
    ) -> "Speeds":
        """The estimate after the observations of one round.

        Args:
          clients: ids of the clients, int64[k].
          batch: batch sizes S, int64[k].
          depth: number of finished layers, int64[k].
          busy_s: time of these layers and of the one that was stopped in seconds, float64[k].
          memory_rounds: number of rounds over which observations decay, > 1.
        """
        keep = 1.0 - 1.0 / memory_rounds
        work, total_s = self.work.copy(), self.busy_s.copy()
        work[clients] = keep * work[clients] + batch * depth
        total_s[clients] = keep * total_s[clients] + busy_s
        return Speeds(work, total_s)


class Learned(NamedTuple):
    """Estimates of the server.

    Attributes:
      speeds: estimated speeds of all clients.
      noise: gradient noise for which the deadlines were planned, float64[].
    """

    speeds: Speeds
    noise: np.ndarray


@dataclass(frozen=True)
class Online:
    """Options of learning the speeds, on which batches and inverse propensities then depend.

    Attributes:
      memory_rounds: number of rounds over which observed speeds decay, > 1.
      replan_tolerance: relative change of the noise term, which depends on the speeds, above which
        the remaining deadlines are planned again, > 0.
    """

    memory_rounds: float = 20.0
    replan_tolerance: float = 0.1

    def __post_init__(self) -> None:
        check_types(vars(self), "option of online", type(self))
        require(
            self.memory_rounds > 1 and self.replan_tolerance > 0,
            f"memory_rounds = {self.memory_rounds}, replan_tolerance = {self.replan_tolerance}",
            "must be above 1 and above 0",
            "use 20 and 0.1",
        )

    def start(self, planner: Planner, opening_s: float) -> Learned:
        """Estimates at the start: nominal speeds, which count as one round of observations.

        Args:
          planner: planner of the run.
          opening_s: deadline of the first round in seconds.
        """
        power = planner.setting.power
        speeds = Speeds(power * opening_s, np.full(power.size, opening_s))
        return Learned(speeds, np.asarray(planner.noise(power)))

    def room(self, planned: int, most: int) -> int:
        """Number of samples for which the step is compiled.

        Args:
          planned: largest batch at the speeds assumed at the start.
          most: number of samples of the largest client.
        """
        return min(int(_GROWTH * planned), most)

    def observe(
        self,
        learned: Learned,
        clients: np.ndarray,
        work: Workload,
        tried: Attempt,
        sent: np.ndarray,
    ) -> Learned:
        """The estimates after the observations of a round.

        Args:
          learned: estimates so far.
          clients: ids of the cohort, int64[k].
          work: workload of the round.
          tried: layers that each client finished.
          sent: number of layers of each client that reached the server, int64[k].
        """
        # The server observes nothing of layers that a slow link did not deliver.
        seen = (work.window_s > 0) & (sent == tried.depth)
        busy_s = np.minimum(tried.compute_s, work.window_s)
        speeds = learned.speeds.observe(
            clients[seen], work.batch[seen], sent[seen], busy_s[seen], self.memory_rounds
        )
        return learned._replace(speeds=speeds)

    def replan(
        self,
        planner: Planner,
        learned: Learned,
        deadlines_s: np.ndarray,
        scale: np.ndarray,
        start: int,
    ) -> tuple[Learned, np.ndarray, np.ndarray]:
        """Plans the remaining rounds again if the noise term has changed enough.

        Args:
          planner: planner of the run.
          learned: estimates so far.
          deadlines_s: deadlines T of all rounds, float64[R].
          scale: batch scale m, float64[].
          start: first remaining round.

        Returns:
          The new values of `learned`, `deadlines_s` and `scale`.
        """
        power = learned.speeds.power
        noise = planner.noise(power)
        changed = abs(noise - learned.noise) > self.replan_tolerance * learned.noise
        if start >= planner.rounds or not changed:
            return learned, deadlines_s, scale
        left = planner.plan(power, start, float(np.sum(deadlines_s[start:])))
        deadlines_s = np.append(deadlines_s[:start], left.deadlines_s)
        return learned._replace(noise=np.asarray(noise)), deadlines_s, np.asarray(left.scale)
