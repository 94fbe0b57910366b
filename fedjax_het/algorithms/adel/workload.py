"""One round of layered training on a fleet: batches, layer times, and the tasks they make.

`Setting.workload` gives every client a batch, `Setting.attempt` draws how many layers it finishes
before it must send what it has, and `Setting.layered_tasks` prices that.
"""

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
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.local.training import LocalUpdate
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem

Rates = Literal["ideal", "physical"]

# Relative room for rounding between the end of a window and the deadline it was computed from.
_ROUNDING = 2e-15


class LayeredKeywords(TrainingKeywords, total=False):
    """The fields of `Layered` as keywords of a factory, for editors and type checkers."""

    schedule: str
    decay_rounds: float
    granularity: Granularity
    virtual_layers: int
    rates: Rates
    max_batch: int | None


@dataclass(frozen=True, kw_only=True)
class Layered(TrainingOptions):
    """One local step per round, counted in layers; on top of `TrainingOptions`.

    `batch_size` is that of a device of mean power at batch scale 1. Clients take one step and weigh
    the same; momentum, which does not outlive a round, changes nothing.

    Attributes:
      schedule: "inverse" for $lr / (1 + t / t_0)$, t = 1..R, or "constant"; planner and clients use
        the same.
      decay_rounds: t_0; 1 gives the paper's $lr / (t + 1)$.
      granularity, virtual_layers: what a layer is, see `layers_of`.
      rates: "ideal": a layer takes the time that the batch rule aims at, whatever rounding and
        clipping do to the batch (as in the authors' code). "physical": the time of the whole
        samples on the device as it is at that moment (methods/adel_fl.md A4).
      max_batch: largest batch, which programs are compiled for and memory must hold; None takes
        what the rounds ask for (twice that where speeds are learned).
    """

    local_steps: int | None = 1
    weighting: str = "uniform"
    schedule: str = "inverse"
    decay_rounds: float = 1.0
    granularity: Granularity = "module"
    virtual_layers: int = 0
    rates: Rates = "ideal"
    max_batch: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.local_steps == 1 and self.weighting == "uniform",
            f"local_steps = {self.local_steps}, weighting = {self.weighting!r}",
            "must be 1 and 'uniform': the layers of one step are cut off and merged alike",
            "leave both out",
        )
        parts.step_scale(self.schedule, 0, self.decay_rounds)
        most = self.max_batch
        require(
            most is None or most >= 1, f"max_batch = {most}", "must be at least 1", "leave it out"
        )


class Workload(NamedTuple):
    """What the cohort does in one round, before chance has a say.

    Attributes:
      deadline_s: T; inf when the server waits for everyone.
      scale: m of the batch rule.
      batch: S, whole samples, int64[k].
      window_s: time for computing, (T - B)^+, float64[k].
      wanted: S before rounding and clipping, float64[k].
      power: P as the server knows it, samples x layers per second, float64[k].
    """

    deadline_s: float
    scale: float
    batch: np.ndarray
    window_s: np.ndarray
    wanted: np.ndarray
    power: np.ndarray

    @property
    def last_moment_s(self) -> np.ndarray:
        """How long a client may compute and still send what it has by the deadline, float64[k]."""
        return np.maximum(self.window_s - _ROUNDING * self.deadline_s, 0.0)


class Attempt(NamedTuple):
    """How far each client gets in a round.

    Attributes:
      missed: assumed chance that it misses each layer, float64[k, L].
      depth: number of layers that it finishes in its window, int64[k].
      compute_s: time for which it computes, float64[k].
    """

    missed: np.ndarray
    depth: np.ndarray
    compute_s: np.ndarray


@dataclass(frozen=True, eq=False)
class Setting:
    """What ADEL-FL and its relatives share: one local step per round, in layers, on a fleet.

    Attributes:
      problem: model, data and fleet.
      layers: the model's layers.
      options: step size, schedule, batch size, what a layer is.
      cohort: clients per round, U.
      power: nominal P, samples x layers per second, float64[n].
      communication_s: expected B, the whole model down and up, float64[n].
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

    @property
    def unbiased(self) -> Rule:
        """The merge rule without bias for these layer times."""
        return "corrected" if self.options.rates == "ideal" else "ipw"

    def step_scale(self, round: Any) -> Any:
        """Factor on the learning rate in round 0, 1, ...: by default 1/2, 1/3, ..."""
        options = self.options
        return parts.step_scale(options.schedule, round + 1, options.decay_rounds)

    def steps(self, rounds: int) -> np.ndarray:
        """The step sizes that the planner assumes and the clients take, float64[R]."""
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
          clients: ids of the cohort, int64[k].
          deadline_s: T.
          scale: m.
          max_batch: largest batch there is room for.
          power: P as the server knows it, float64[n]; None for the nominal one.
        """
        power = (self.power if power is None else power)[clients]
        spent_s = self.communication_s[clients]
        wanted = batch_sizes(scale, power, deadline_s, spent_s)
        batch = whole_batches(wanted, np.minimum(self.problem.data.sizes[clients], max_batch))
        window_s = np.maximum(deadline_s - spent_s, 0.0)
        return Workload(deadline_s, scale, batch, window_s, wanted, power)

    def largest_batch(self, deadlines_s: np.ndarray, scale: float) -> int:
        """Samples the compiled step must have room for: `max_batch`, or what the plan asks for."""
        if self.options.max_batch is not None:
            return self.options.max_batch
        everyone, most = np.arange(self.problem.num_clients), int(np.max(self.problem.data.sizes))
        return int(np.max(self.workload(everyone, float(np.max(deadlines_s)), scale, most).batch))

    def missed(self, work: Workload) -> np.ndarray:
        """Chance to miss each layer, were layer times exponential, float64[k, L]."""
        if self.options.rates == "ideal":
            expected = np.where(work.window_s > 0, work.deadline_s / work.scale, 0.0)
        else:
            expected = work.window_s * work.power / work.batch
        return miss_probability(self.layers.number, expected)

    def layer_times(self, situation: Situation, work: Workload) -> np.ndarray:
        """Seconds after which each layer is really done, output layer first, float64[k, L]."""
        clients, fleet = situation.clients, self.problem.fleet
        samples: np.ndarray = work.batch
        if self.options.rates == "ideal":
            samples = np.where(work.wanted > 0, work.wanted, work.batch)
        flops = samples * float(self.problem.cost.step_flops())
        return fleet.stage_times(clients, flops, self.layers.number, situation.now_s, situation.rng)

    def attempt(self, situation: Situation, work: Workload) -> Attempt:
        """Draws how far each client gets.

        It computes until it is done, or until it must send what it has. A client without a finished
        layer goes on until it has one, and misses the deadline.

        Args:
          situation: who takes part, and when.
          work: the round's workload.
        """
        finished_s = self.layer_times(situation, work)
        depth = depths_reached(finished_s, work.window_s)
        until_s = np.where(depth == 0, finished_s[:, 0], work.last_moment_s)
        until_s = np.where(depth == self.layers.number, finished_s[:, -1], until_s)
        return Attempt(self.missed(work), depth, until_s)

    def layered_tasks(
        self, situation: Situation, merge: LayerMerge, work: Workload, tried: Attempt
    ) -> tuple[Plan, np.ndarray]:
        """The tasks of a round, and the depths that reach the server, int64[k].

        A client whose link is slower than expected misses the deadline with all it has.

        Args:
          situation: who takes part, and when.
          merge: how layers are merged.
          work: the round's workload.
          tried: how far each client gets.
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
        """The round as priced tasks.

        Args:
          situation: who takes part, and when.
          work: the round's workload.
          depth: number of layers that each client trains, int64[k].
          compute_s: time for which it computes, float64[k].
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
    # Links at their expected rates; what they really take is drawn with every task.
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


def require_budget(rounds: int, total_s: float) -> None:
    """Raises `InputError` unless a number of rounds shares a finite time."""
    require(rounds >= 1, f"rounds = {rounds}", "must be at least 1", "plan some rounds")
    require(
        np.isfinite(total_s) and total_s > 0,
        f"total_s = {total_s}",
        "must be a positive number of virtual seconds",
        "give the time that all rounds together may take",
    )


def require_planned(round: int, rounds: int) -> None:
    """Raises `InputError` when a run goes on after its last planned round."""
    require(
        round < rounds,
        f"round {round + 1}",
        f"is beyond the {rounds} rounds that the time was divided among",
        f"set run.rounds = {rounds}, or plan more rounds",
    )
