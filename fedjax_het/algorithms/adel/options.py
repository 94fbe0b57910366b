"""Options that ADEL-FL and its relatives share, and the checks that need nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.adel.layers import Granularity
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common.errors import require, require_known

Rates = Literal["ideal", "physical"]
Solver = Literal["water_filling", "trust_constr"]


@dataclass(frozen=True, kw_only=True)
class Layered(TrainingOptions):
    """One local step per round, counted in layers; on top of `TrainingOptions`.

    `batch_size` is that of a device of mean power at batch scale 1. Clients take one step and weigh
    the same; momentum, which does not outlive a round, changes nothing.

    Attributes:
      schedule: "inverse" for $lr / (1 + t / t_0)$, t = 1..R, or "constant"; planner and clients use
        the same.
      decay_rounds: t_0; 1 gives the paper's $lr / (t + 1)$.
      granularity: what a layer is, see `layers_of`.
      virtual_layers: the same.
      rates: "ideal": a layer takes the time that the batch rule aims at, whatever rounding and
        clipping do to the batch (as in the authors' code). "physical": the time of the whole
        samples on the device as it is at that moment.
      max_batch: largest batch; None takes what the rounds ask for (twice that where speeds are
        learned). Programs are compiled for it, so it also bounds memory.
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


@dataclass(frozen=True, kw_only=True)
class Budgeted(Layered):
    """A number of rounds that share a time; on top of `Layered`.

    Attributes:
      rounds: R; a run cannot be longer than what was planned for it.
      total_s: T_max, virtual seconds for all rounds together.
    """

    rounds: int
    total_s: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.rounds >= 1, f"rounds = {self.rounds}", "must be at least 1", "plan some rounds"
        )
        require(
            np.isfinite(self.total_s) and self.total_s > 0,
            f"total_s = {self.total_s}",
            "must be a positive number of virtual seconds",
            "give the time that all rounds together may take",
        )


@dataclass(frozen=True, kw_only=True)
class Planned(Budgeted):
    """What the planner of deadlines is told; on top of `Budgeted`.

    Attributes:
      batch_scale: least and largest m, in units of the time that a device of mean power takes for a
        layer of `batch_size` samples: at scale 1 it gets about that many.
      max_miss: p_max < 1/2, largest probability that nobody finishes the input layer.
      shortest_s: least deadline; None leaves every client some time after its communication. Below
        a client's communication time it leaves that client out of the rounds that are too short.
      constants: of the bound, see `Constants`.
      solver: "water_filling" or "trust_constr".
    """

    batch_scale: Sequence[float] = (0.5, 1.2)
    max_miss: float = 0.45
    shortest_s: float | None = None
    constants: Mapping[str, Any] | None = None
    solver: Solver = "water_filling"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self.solver, ("water_filling", "trust_constr"), "solver")
        scale = self.batch_scale
        require(
            len(scale) == 2 and 0 < scale[0] <= scale[1] < np.inf,
            f"batch_scale = {tuple(scale)}",
            "must be the least and the largest scale, both positive",
            "use (0.5, 1.2)",
        )


@dataclass(frozen=True, kw_only=True)
class Waiting(Layered):
    """Wait-for-all; on top of `Layered`.

    Attributes:
      batch_scale: m, fixed: batches are $m P_u$, in the unit of `Planned.batch_scale`.
    """

    batch_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_scale(self.batch_scale)


@dataclass(frozen=True, kw_only=True)
class EqualDeadlines(Budgeted):
    """Rounds of equal length T_max / R; on top of `Budgeted`.

    Attributes:
      batch_scale: as in `Waiting`.
    """

    batch_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_scale(self.batch_scale)


def _require_scale(batch_scale: float) -> None:
    require(
        0 < batch_scale < np.inf,
        f"batch_scale = {batch_scale}",
        "must be positive",
        "use 1.0 for batches of about batch_size",
    )
