"""Beyond the paper: speeds learned from the layers that devices finish, and plans that follow them.

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

# Room in the compiled batch for devices that turn out faster than they were thought to be.
_GROWTH = 2.0


class Speeds(NamedTuple):
    r"""Running estimate of every client's power, from layers finished in the time observed.

    For exponential layer times $\sum d_u S_u / \sum$ busy time is the maximum-likelihood estimate
    of samples x layers per second, also when the deadline cuts work short; both sums forget.

    Attributes:
      work: samples x layers, float64[n].
      busy_s: time spent on them, float64[n].
    """

    work: np.ndarray
    busy_s: np.ndarray

    @property
    def power(self) -> np.ndarray:
        """Samples x layers per second, float64[n]."""
        return self.work / self.busy_s

    def observe(
        self,
        clients: np.ndarray,
        batch: np.ndarray,
        depth: np.ndarray,
        busy_s: np.ndarray,
        memory_rounds: float,
    ) -> "Speeds":
        """The estimate with what one round showed.

        Args:
          clients: ids, int64[k].
          batch: S, int64[k].
          depth: number of layers finished, int64[k].
          busy_s: time spent on them and on the one that was cut off, float64[k].
          memory_rounds: number of rounds over which observations fade, > 1.
        """
        keep = 1.0 - 1.0 / memory_rounds
        work, total_s = self.work.copy(), self.busy_s.copy()
        work[clients] = keep * work[clients] + batch * depth
        total_s[clients] = keep * total_s[clients] + busy_s
        return Speeds(work, total_s)


class Learned(NamedTuple):
    """What the server has learned.

    Attributes:
      speeds: of every client.
      noise: gradient noise that the deadlines were planned for, float64[].
    """

    speeds: Speeds
    noise: np.ndarray


@dataclass(frozen=True)
class Online:
    """How speeds are learned; batches and inverse propensities then follow them.

    Attributes:
      memory_rounds: number of rounds over which observed speeds are forgotten, > 1.
      replan_tolerance: share by which the noise term, which depends on the speeds, may change
        before the remaining deadlines are planned anew, > 0.
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
        """What is known at first: nominal speeds, which count as much as one round of observations.

        Args:
          planner: the planner of the run.
          opening_s: deadline of the first round.
        """
        power = planner.setting.power
        speeds = Speeds(power * opening_s, np.full(power.size, opening_s))
        return Learned(speeds, np.asarray(planner.noise(power)))

    def room(self, planned: int, most: int) -> int:
        """Samples the compiled step must have room for.

        Args:
          planned: largest batch at the speeds that are assumed at first.
          most: samples of the largest client.
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
        """Takes up what a round showed of the speeds.

        Args:
          learned: what is known so far.
          clients: ids of the cohort, int64[k].
          work: the round's workload.
          tried: how far each client got.
          sent: number of layers of each client that reached the server, int64[k].
        """
        # What a slow link kept from the server tells it nothing.
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
        """Plans the rounds that are left anew if the noise term has changed enough.

        Args:
          planner: the planner of the run.
          learned: what is known so far.
          deadlines_s: T of all rounds, float64[R].
          scale: m, float64[].
          start: first round that is left.

        Returns:
          `learned`, `deadlines_s` and `scale` as they are from now on.
        """
        power = learned.speeds.power
        noise = planner.noise(power)
        changed = abs(noise - learned.noise) > self.replan_tolerance * learned.noise
        if start >= planner.rounds or not changed:
            return learned, deadlines_s, scale
        left = planner.plan(power, start, float(np.sum(deadlines_s[start:])))
        deadlines_s = np.append(deadlines_s[:start], left.deadlines_s)
        return learned._replace(noise=np.asarray(noise)), deadlines_s, np.asarray(left.scale)
