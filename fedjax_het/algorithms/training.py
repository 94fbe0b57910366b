"""Options that every method takes: sampling, training and weights of the clients."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypedDict

import numpy as np
import optax
from jax.extend.core import ClosedJaxpr

from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.common.numbers import INT32, Count
from fedjax_het.common.options import check_options, check_types
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Task
from fedjax_het.local import optimizers
from fedjax_het.local.optimizers import Choice
from fedjax_het.local.schedules import StepSchedule
from fedjax_het.local.training import LocalUpdate, local_training
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem


class TrainingKeywords(TypedDict, total=False):
    """The fields of `TrainingOptions` as keywords of a factory, for editors and type checkers."""

    learning_rate: float | None
    momentum: float
    client_optimizer: Choice
    weight_decay: float
    clip_norm: float | None
    proximal: float
    schedule: str | Callable[[int], float]
    decay_rounds: float
    decay_factor: float
    warmup_rounds: Count
    batch_size: Count
    epochs: Count
    local_steps: Count | None
    clients_per_round: Count | None
    weighting: str


@dataclass(frozen=True)
class TrainingOptions:
    r"""Options that every method takes: sampling, training and weights of the clients.

    Attributes:
      learning_rate: step size of the client's optimiser; must be given for an optimiser by name.
      momentum: momentum of "sgd", whose state is new every round.
      client_optimizer: optimiser of the clients: a name of `optimizers.OPTIMIZERS` ("sgd", "adam",
        "adamw", "amsgrad", "yogi" ...); a mapping of the name and its options in optax, e.g.
        `{"name": "adam", "b1": 0.95}`; or an optax transformation with its own step size. In
        AMSGrad optax takes the maximum over second moments after the correction of their bias,
        torch before it.
      weight_decay: factor of the decay: coupled L2 decay, which is added to the gradient, or, for
        optimisers with a decay of their own ("adamw", "lion"), that one; 0 means none, also there.
      clip_norm: largest norm of the gradients of a client's sub-model, to which larger ones are
        scaled before the optimiser; None for no limit.
      proximal: factor mu of FedProx's term $\frac{\mu}{2} \lVert w - w_0 \rVert^2$ to the
        parameters with which a task starts, in addition to that of the method; it has no effect on
        the first local step.
      schedule: schedule of the step size by round, counted in steps of the server: "constant",
        "inverse", "step", "exponential", "cosine", or a function of the round that returns a factor
        on the step size; see `local.schedules`.
      decay_rounds: time constant of the schedule in rounds.
      decay_factor: factor that the step size has after `decay_rounds`; "constant" and "inverse"
        do not use it.
      warmup_rounds: rounds in which the step size rises linearly, before the schedule begins.
      batch_size: samples per mini-batch; the last batch of an epoch may be smaller.
      epochs: passes over the client's samples per round; ignored if `local_steps` is given.
      local_steps: mini-batches per round, the same for every client; None for `epochs`.
      clients_per_round: cohort size, sampled without replacement; None for all clients.
      weighting: weights of the clients: "samples", the numbers of samples, or "uniform".
    """

    learning_rate: float | None = None
    momentum: float = 0.0
    client_optimizer: Choice = "sgd"
    weight_decay: float = 0.0
    clip_norm: float | None = None
    proximal: float = 0.0
    schedule: str | Callable[[int], float] = "constant"
    decay_rounds: float = 50.0
    decay_factor: float = 0.1
    warmup_rounds: Count = 0
    batch_size: Count = 20
    epochs: Count = 1
    local_steps: Count | None = None
    clients_per_round: Count | None = None
    weighting: str = "samples"

    def __post_init__(self) -> None:
        check_types(vars(self), "training option", type(self))
        self._check_optimizer()
        for name in ("batch_size", "epochs", "local_steps", "clients_per_round"):
            value = getattr(self, name)
            optional = name in ("local_steps", "clients_per_round")
            require(
                (optional and value is None) or value >= 1,
                f"{name} = {value!r}",
                "must be a whole number of at least 1",
                "leave it out for its default",
            )
        require_known(self.weighting, ("samples", "uniform"), "weighting")
        self.step_scale(0)

    def _check_optimizer(self) -> None:
        rate, choice = self.learning_rate, self.client_optimizer
        ready = isinstance(choice, optax.GradientTransformation)
        if rate is None and not ready:
            raise InputError(
                "training option 'learning_rate' is missing: must be given, a number; "
                "add learning_rate = ..."
            )
        require(
            rate is None or (np.isfinite(rate) and rate > 0),
            f"learning_rate = {rate}",
            "must be positive and finite",
            "try 0.05",
        )
        require(
            0 <= self.momentum < 1,
            f"momentum = {self.momentum}",
            "must lie in [0, 1)",
            "use 0 for plain SGD, or 0.9",
        )
        require(
            np.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"weight_decay = {self.weight_decay}",
            "must be at least 0 and finite",
            "use 0, or 5e-4",
        )
        require(
            self.clip_norm is None or (np.isfinite(self.clip_norm) and self.clip_norm > 0),
            f"clip_norm = {self.clip_norm}",
            "must be positive and finite",
            "use 1.0, or None for no limit",
        )
        require(
            np.isfinite(self.proximal) and self.proximal >= 0,
            f"proximal = {self.proximal}",
            "must be at least 0 and finite",
            "try 0.001 to 1",
        )
        for name in ("learning_rate", "momentum", "weight_decay"):
            require(
                not (ready and getattr(self, name)),
                f"{name} = {getattr(self, name)} with an optax transformation as client_optimizer",
                "belongs to the transformation",
                "leave it out, or name an optimiser",
            )
        require(
            not self.momentum or ready or optimizers.named(choice, "client_optimizer")[0] == "sgd",
            f"momentum = {self.momentum} with client_optimizer = {choice!r}",
            "is an option of SGD",
            "leave it out",
        )
        # An optimiser that cannot be made, or takes only certain parameters, fails here.
        _ = self._traced if ready else self.optimizer()

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """`cls(**options)` with an `InputError` for unknown or missing names."""
        check_options(options, "training option", cls)
        return cls(**options)

    def steps(self, sizes: np.ndarray) -> np.ndarray:
        """Local steps of clients with `sizes` samples, int64[k]."""
        if self.local_steps is not None:
            return np.full(len(sizes), self.local_steps, np.int64)
        batches = -(-sizes // self.batch_size)
        most = int(np.max(batches, initial=1))
        require(
            self.epochs * most <= INT32,
            f"epochs = {self.epochs} of {most} mini-batches",
            f"must be at most {INT32} local steps, which programs count in 32 bits",
            "use fewer epochs",
        )
        return self.epochs * batches

    def samples(self, sizes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Samples that `steps` mini-batches process, int64[k]."""
        per_epoch = -(-sizes // self.batch_size)
        rest = np.minimum((steps % per_epoch) * self.batch_size, sizes)
        return (steps // per_epoch) * sizes + rest

    def cohort_size(self, problem: Problem) -> int:
        """Number of clients per round; `InputError` if there are fewer, or with too much work."""
        sizes = problem.data.sizes
        most = int(np.max(self.samples(sizes, self.steps(sizes))))
        require(
            most <= INT32,
            f"local_steps = {self.local_steps}, epochs = {self.epochs}, {most:.4g} samples a round",
            f"must be at most {INT32} samples for a client, which programs count in 32 bits",
            "train for fewer steps",
        )
        n = problem.num_clients
        k = n if self.clients_per_round is None else self.clients_per_round
        require(
            k <= n,
            f"clients_per_round = {k}",
            f"must be at most the {n} clients",
            "leave it out for full participation",
        )
        return k

    def largest_batch(self, problem: Problem) -> int:
        """Number of samples in the largest mini-batch of any client."""
        return min(self.batch_size, int(np.max(problem.data.sizes)))

    def optimizer(self) -> optax.GradientTransformation:
        """The client's optimiser."""
        choice = self.client_optimizer
        if isinstance(choice, optax.GradientTransformation):
            optimizer = optimizers.relaxed(choice)
        else:
            assert self.learning_rate is not None
            own: Any = {"momentum": self.momentum} if self.momentum else {}
            optimizer = optimizers.make(
                choice, self.learning_rate, weight_decay=self.weight_decay, **own
            )
        if self.clip_norm is None:
            return optimizer
        clip = optimizers.relaxed(optax.clip_by_global_norm(float(self.clip_norm)))
        return optax.chain(clip, optimizer)

    @functools.cached_property
    def _traced(self) -> ClosedJaxpr:
        return optimizers.trace(self.optimizer())

    @property
    def optimizer_slots(self) -> int:
        """Number of arrays per parameter that the client's optimiser keeps."""
        return optimizers.slots(self._traced)

    def require_separable(self, method: str) -> None:
        """Raises `InputError` unless the optimiser treats every coordinate independently."""
        require(
            not optimizers.couples(self._traced),
            f"clip_norm = {self.clip_norm}, client_optimizer = {self.client_optimizer!r}",
            f"the optimiser of {method} may not couple coordinates: client and server hold "
            "one half of the network each",
            "leave clip_norm out, and use an optimiser such as sgd or adam",
        )

    @functools.cached_property
    def _steps(self) -> StepSchedule:
        return StepSchedule(self.schedule, self.decay_rounds, self.decay_factor, self.warmup_rounds)

    def step_scale(self, round: int) -> float:
        """Factor on the step size in a round, from 0 on; `InputError` if it is not usable."""
        return self._steps.factor(round)

    def local_update(
        self,
        problem: Problem,
        *,
        proximal: float = 0.0,
        linear: Callable[[Task], PyTree] | None = None,
        model: BlockModel | None = None,
        observe: Callable[[PyTree], PyTree] | None = None,
        mean: bool = False,
        effective: Callable[[PyTree, Task], PyTree] | None = None,
    ) -> LocalUpdate:
        """Masked training on the problem's data.

        Args:
          problem: model, data and fleet.
          proximal: factor mu of the method's own proximal term, to which that of the options is
            added.
          linear: gradient of a linear term, see `local_training`.
          model: network to train in place of the problem's, with the same parameters.
          observe: function of the masked gradients, see `local_training`.
          mean: whether its mean over the steps is reported.
          effective: function of the parameters with which the network computes, see
            `local_training`.
        """
        return local_training(
            problem.model if model is None else model,
            problem.data.pipeline,
            self.optimizer(),
            problem.objective,
            max_batch=self.largest_batch(problem),
            proximal=self.proximal + proximal,
            linear=linear,
            observe=observe,
            mean=mean,
            effective=effective,
        )


@dataclass(frozen=True)
class UniformTraining(TrainingOptions):
    """`TrainingOptions` of methods in which clients have equal weights by default."""

    weighting: str = "uniform"
