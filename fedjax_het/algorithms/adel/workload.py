"""Layered training on a fleet: batches, chances, layer times, and the tasks they make."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.adel.depths import batch_sizes, miss_probability, whole_batches
from fedjax_het.algorithms.adel.layers import Layers, layers_of
from fedjax_het.algorithms.adel.options import Layered
from fedjax_het.common.errors import require
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.local.training import LocalUpdate
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem


class Workload(NamedTuple):
    """What the cohort does in one round, before chance has a say.

    Attributes:
      deadline_s: T; inf when the server waits for everyone.
      scale: m of the batch rule.
      batch: int64[k], S, whole samples.
      window_s: float64[k], time for computing: (T - B)^+.
      wanted: float64[k], S before rounding and clipping.
    """

    deadline_s: float
    scale: float
    batch: np.ndarray
    window_s: np.ndarray
    wanted: np.ndarray


@dataclass(frozen=True, eq=False)
class Setting:
    """What ADEL-FL and its relatives share: one local step per round, in layers, on a fleet.

    Attributes:
      problem: model, data and fleet.
      layers: the model's layers.
      options: step size, schedule, batch size, what a layer is.
      cohort: clients per round, U.
      power: float64[n], nominal P: samples x layers per second.
      communication_s: float64[n], expected B: the whole model down and up.
      unit_s: m at `batch_scale` 1: seconds that a device of mean power takes for a layer of
        `batch_size` samples.
    """

    problem: Problem
    layers: Layers
    options: Layered
    cohort: int
    power: np.ndarray
    communication_s: np.ndarray
    unit_s: float

    def step_scale(self, round: Any) -> Any:
        """Factor on the learning rate in round 0, 1, ...: by default 1/2, 1/3, ..."""
        options = self.options
        return parts.step_scale(options.schedule, round + 1, options.decay_rounds)

    def steps(self, rounds: int) -> np.ndarray:
        """float64[R], the step sizes that the planner assumes and the clients take."""
        return self.options.learning_rate * self.step_scale(np.arange(rounds, dtype=np.float64))

    def local_update(self, max_batch: int, model: BlockModel | None = None) -> LocalUpdate:
        """One step on at most `max_batch` samples; checked against the devices' memory."""
        training = replace(self.options, batch_size=max_batch)
        parts.require_memory(self.problem, training, 0)
        return training.local_update(self.problem, model=model)

    def workload(
        self,
        clients: np.ndarray,
        deadline_s: float,
        scale: float,
        max_batch: int,
        power: np.ndarray | None = None,
    ) -> Workload:
        """The batches of a round.

        Args:
          clients: int64[k].
          deadline_s: T.
          scale: m.
          max_batch: largest batch there is room for.
          power: float64[n], P as the server knows it; None for the nominal one.
        """
        power = self.power if power is None else power
        spent_s = self.communication_s[clients]
        wanted = batch_sizes(scale, power[clients], deadline_s, spent_s)
        most = np.minimum(self.problem.data.sizes[clients], max_batch)
        window_s = np.maximum(deadline_s - spent_s, 0.0)
        return Workload(deadline_s, scale, whole_batches(wanted, most), window_s, wanted)

    def largest_batch(self, deadlines_s: np.ndarray, scale: float) -> int:
        """Samples the compiled step must have room for: `max_batch`, or what the plan asks for."""
        if self.options.max_batch is not None:
            return self.options.max_batch
        everyone, most = np.arange(self.problem.num_clients), int(np.max(self.problem.data.sizes))
        return int(np.max(self.workload(everyone, float(np.max(deadlines_s)), scale, most).batch))

    def missed(self, clients: np.ndarray, work: Workload, power: np.ndarray) -> np.ndarray:
        """float64[k, L]: chance that each client misses each layer, were layer times exponential.

        Args:
          clients: int64[k].
          work: the round's workload.
          power: float64[n], P as the server knows it.
        """
        if self.options.rates == "ideal":
            expected = np.where(work.window_s > 0, work.deadline_s / work.scale, 0.0)
        else:
            expected = work.window_s * power[clients] / work.batch
        return miss_probability(self.layers.number, expected)

    def layer_times(self, situation: Situation, work: Workload) -> np.ndarray:
        """float64[k, L]: seconds after which each layer is really done, output layer first."""
        clients, fleet = situation.clients, self.problem.fleet
        samples: np.ndarray = work.batch
        if self.options.rates == "ideal":
            samples = np.where(work.wanted > 0, work.wanted, work.batch)
        flops = samples * float(self.problem.cost.step_flops())
        return fleet.stage_times(clients, flops, self.layers.number, situation.now_s, situation.rng)

    def tasks(
        self,
        situation: Situation,
        work: Workload,
        depth: np.ndarray,
        compute_s: np.ndarray,
        **fields: Any,
    ) -> Plan:
        """The round as priced tasks.

        Args:
          situation: who takes part, and when.
          work: the round's workload.
          depth: int64[k], layers that each client trains.
          compute_s: float64[k], how long it computes.
          **fields: further fields of the plan.
        """
        clients, layers = situation.clients, self.layers
        timing = self.problem.fleet.timing(
            clients,
            work.batch * layers.flops[depth],
            self.problem.cost.download_bytes(),
            layers.upload_bytes[depth],
            situation.now_s,
            situation.rng,
            compute_s=compute_s,
        )
        last = self.problem.model.num_blocks - 1
        return Plan(
            clients=clients,
            routes=[Route(int(first), last) for first in layers.first_block[depth]],
            steps=np.ones(len(clients), np.int32),
            batch=work.batch.astype(np.int32),
            weight=np.ones(len(clients), np.float32),
            timing=timing,
            learning_rate_scale=float(self.step_scale(situation.round)),
            deadline_s=work.deadline_s,
            **fields,
        )


def prepare(problem: Problem, options: Layered) -> Setting:
    """Derives what the family needs to know from the problem.

    Raises:
      InputError: options that do not fit the problem.
    """
    parts.require_constant_fleet(problem, "ADEL-FL and its relatives")
    fleet, cost = problem.fleet, problem.cost
    require(
        options.rates == "physical" or fleet.speed_trace is None,
        "rates = 'ideal' on a fleet whose speeds drift",
        "ideal layer times know nothing of the devices' real speeds",
        "use rates='physical'",
    )
    layers = layers_of(problem, options.granularity, options.virtual_layers)
    n = problem.num_clients
    # Links at their expected rates; what they really take is drawn with every task.
    links = fleet.timing(
        np.arange(n),
        float(cost.step_flops()),
        cost.download_bytes(),
        cost.upload_bytes(),
        now_s=0.0,
        rng=None,
    )
    power = fleet.flops_per_s * layers.number / float(cost.step_flops())
    return Setting(
        problem=problem,
        layers=layers,
        options=options,
        cohort=options.cohort_size(problem),
        power=power,
        communication_s=links.download_s + links.upload_s,
        unit_s=options.batch_size / float(np.mean(power)),
    )
