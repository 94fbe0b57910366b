"""One round of layered training on a fleet: batches, layer times and tasks.

`Setting.workload` gives every client a batch, `Setting.attempt` draws how many layers it finishes
before it must upload, and `Setting.layered_tasks` prices these layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.adel.depths import (
    Granularity,
    Layers,
    batch_sizes,
    depths_reached,
    layers_of,
    miss_probability,
    whole_batches,
)
from fedjax_het.algorithms.adel.merging import LayerMerge, Rule
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count, Depth
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.local.training import LocalUpdate
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem

Rates = Literal["ideal", "physical"]

# Relative tolerance for rounding between the end of a window and its deadline.
_ROUNDING = 2e-15


class LayeredKeywords(TrainingKeywords, total=False):
    """The fields of `Layered` as keywords of a factory, for editors and type checkers."""

    granularity: Granularity
    virtual_layers: Depth
    rates: Rates
    max_batch: Count | None


@dataclass(frozen=True, kw_only=True)
class Layered(TrainingOptions):
    """Options of layered training, with one local step per round, beside `TrainingOptions`.

    `batch_size` is that of a device of mean power at batch scale 1. Clients take one step and have
    equal weights; momentum, which starts new every round, has no effect.

    Attributes:
      schedule: schedule of the step size, of planner and clients; "inverse" is
        $lr / (1 + t / t_0)$ with t = 1..R, as in the paper, one round ahead of other methods.
      decay_rounds: time constant t_0; 1 gives the paper's $lr / (t + 1)$.
      granularity, virtual_layers: definition of a layer, see `layers_of`.
      rates: model of layer times. "ideal": the time at which the batch rule aims, regardless of
        rounding and clipping of the batch (as in the authors' code). "physical": the time of the
        whole samples on the device at that moment (methods/adel_fl.md A4).
      max_batch: largest batch, for which programs are compiled and memory is checked; None for the
        largest batch of the plan (twice that if speeds are learned).
    """

    local_steps: int | None = 1
    weighting: str = "uniform"
    schedule: str | Callable[[int], float] = "inverse"
    decay_rounds: float = 1.0
    granularity: Granularity = "module"
    virtual_layers: Depth = 0
    rates: Rates = "ideal"
    max_batch: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.local_steps == 1 and self.weighting == "uniform",
            f"local_steps = {self.local_steps}, weighting = {self.weighting!r}",
            "must be 1 and 'uniform': the layers of one step are cut off and merged alike",
            "leave both out",
        )
        limit = "has no step size by which to plan"
        named = self.learning_rate is not None
        require(named, "client_optimizer, an optax transformation", limit, "name an optimiser")
        most = self.max_batch
        positive = most is None or most >= 1
        require(positive, f"max_batch = {most}", "must be at least 1", "leave it out")

    def step_scale(self, round: int) -> float:
        """Factor on the step size in round 0, 1, ...; by default 1/2, 1/3, ..."""
        return super().step_scale(round + 1 if self.schedule == "inverse" else round)


class Workload(NamedTuple):
    """Work of the cohort in one round, before random times are drawn.

    Attributes:
      deadline_s: deadline T in seconds; inf if the server waits for all clients.
      scale: batch scale m.
      batch: batch sizes S in whole samples, int64[k].
      window_s: time for computing in seconds, (T - B)^+, float64[k].
      wanted: batch sizes S before rounding and clipping, float64[k].
      power: power P as the server knows it, samples x layers per second, float64[k].
    """

    deadline_s: float
    scale: float
    batch: np.ndarray
    window_s: np.ndarray
    wanted: np.ndarray
    power: np.ndarray

    @property
    def last_moment_s(self) -> np.ndarray:
        """Longest compute time after which a client still meets the deadline, float64[k]."""
        return np.maximum(self.window_s - _ROUNDING * self.deadline_s, 0.0)


class Attempt(NamedTuple):
    """Layers that each client finishes in a round.

    Attributes:
      missed: assumed probability that it misses each layer, float64[k, L].
      depth: number of layers that it finishes in its window, int64[k].
      compute_s: compute time in seconds, float64[k].
    """

    missed: np.ndarray
    depth: np.ndarray
    compute_s: np.ndarray


@dataclass(frozen=True, eq=False)
class Setting:
    """Common part of ADEL-FL and its baselines: one local step per round, in layers, on a fleet.

    Attributes:
      problem: model, data and fleet.
      layers: layers of the model.
      options: step size, schedule, batch size, definition of a layer.
      cohort: number of clients per round, U.
      power: nominal power P, samples x layers per second, float64[n].
      communication_s: expected time B of the whole model down and up in seconds, float64[n].
      unit_s: scale m at `batch_scale` 1: seconds that a device of mean power takes for a layer of
        `batch_size` samples.
    """

    problem: Problem
    layers: Layers
    options: Layered
    cohort: int
    power: np.ndarray
    communication_s: np.ndarray
    unit_s: float

    @property
    def unbiased(self) -> Rule:
        """Name of the merge rule that is unbiased for these layer times."""
        return "corrected" if self.options.rates == "ideal" else "ipw"

    def steps(self, rounds: int) -> np.ndarray:
        """Step sizes of the planner and the clients, float64[R]."""
        scale = np.asarray([self.options.step_scale(t) for t in range(rounds)], np.float64)
        return np.asarray(self.options.learning_rate) * scale

    def local_update(self, max_batch: int, model: BlockModel | None = None) -> LocalUpdate:
        """Local update of one step on at most `max_batch` samples; checks the devices' memory."""
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
          clients: ids of the cohort, int64[k].
          deadline_s: deadline T in seconds.
          scale: batch scale m.
          max_batch: largest number of samples in a batch.
          power: power P as the server knows it, float64[n]; None for the nominal power.
        """
        power = (self.power if power is None else power)[clients]
        spent_s = self.communication_s[clients]
        wanted = batch_sizes(scale, power, deadline_s, spent_s)
        batch = whole_batches(wanted, np.minimum(self.problem.data.sizes[clients], max_batch))
        window_s = np.maximum(deadline_s - spent_s, 0.0)
        return Workload(deadline_s, scale, batch, window_s, wanted, power)

    def largest_batch(self, deadlines_s: np.ndarray, scale: float) -> int:
        """Number of samples for which the step is compiled: `max_batch`, or that of the plan."""
        if self.options.max_batch is not None:
            return self.options.max_batch
        everyone, most = np.arange(self.problem.num_clients), int(np.max(self.problem.data.sizes))
        return int(np.max(self.workload(everyone, float(np.max(deadlines_s)), scale, most).batch))

    def missed(self, work: Workload) -> np.ndarray:
        """Probability of missing each layer with exponential layer times, float64[k, L]."""
        if self.options.rates == "ideal":
            expected = np.where(work.window_s > 0, work.deadline_s / work.scale, 0.0)
        else:
            expected = work.window_s * work.power / work.batch
        return miss_probability(self.layers.number, expected)

    def layer_times(self, situation: Situation, work: Workload) -> np.ndarray:
        """Drawn seconds after which each layer is finished, output layer first, float64[k, L]."""
        clients, fleet = situation.clients, self.problem.fleet
        samples: np.ndarray = work.batch
        if self.options.rates == "ideal":
            samples = np.where(work.wanted > 0, work.wanted, work.batch)
        flops = samples * float(self.problem.cost.step_flops())
        return fleet.stage_times(clients, flops, self.layers.number, situation.now_s, situation.rng)

    def attempt(self, situation: Situation, work: Workload) -> Attempt:
        """Draws the number of layers that each client finishes.

        A client computes until all layers are finished, or until it must upload. A client without a
        finished layer computes until it has one, and misses the deadline.

        Args:
          situation: cohort and time of the round.
          work: workload of the round.
        """
        finished_s = self.layer_times(situation, work)
        depth = depths_reached(finished_s, work.window_s)
        until_s = np.where(depth == 0, finished_s[:, 0], work.last_moment_s)
        until_s = np.where(depth == self.layers.number, finished_s[:, -1], until_s)
        return Attempt(self.missed(work), depth, until_s)

    def layered_tasks(
        self, situation: Situation, merge: LayerMerge, work: Workload, tried: Attempt
    ) -> tuple[Plan, np.ndarray]:
        """The plan of a round, and the depths that reach the server, int64[k].

        A client whose link is slower than expected misses the deadline with all its layers.

        Args:
          situation: cohort and time of the round.
          merge: merge of the layers.
          work: workload of the round.
          tried: layers that each client finishes.
        """
        rows, shared = merge.inputs(tried.missed)
        rows["first_layer"] = (self.layers.number - tried.depth).astype(np.int32)
        tasks = self.tasks(situation, work, tried.depth, tried.compute_s, rows=rows, shared=shared)
        return tasks, np.where(tasks.timing.total_s <= work.deadline_s, tried.depth, 0)

    def tasks(
        self,
        situation: Situation,
        work: Workload,
        depth: np.ndarray,
        compute_s: np.ndarray,
        **fields: Any,
    ) -> Plan:
        """The plan of the round with priced tasks.

        Args:
          situation: cohort and time of the round.
          work: workload of the round.
          depth: number of layers that each client trains, int64[k].
          compute_s: compute time of each client in seconds, float64[k].
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
            learning_rate_scale=self.options.step_scale(situation.round),
            deadline_s=work.deadline_s,
            **fields,
        )


def prepare(problem: Problem, options: Layered) -> Setting:
    """Derives the setting of ADEL-FL and its baselines from the problem.

    Raises:
      InputError: if the options do not fit the problem.
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
    # Links have their expected rates here; actual times are drawn with every task.
    links = fleet.timing(
        np.arange(problem.num_clients),
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
