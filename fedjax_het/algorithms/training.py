"""Options that every method takes: sampling, training and weights of the clients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Required, Self, TypedDict

import numpy as np
import optax

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import check_options, check_types
from fedjax_het.common.types import PyTree
from fedjax_het.local.optimizers import amsgrad
from fedjax_het.local.training import LocalUpdate, local_training
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem


class TrainingKeywords(TypedDict, total=False):
    """The fields of `TrainingOptions` as keywords of a factory, for editors and type checkers."""

    learning_rate: Required[float]
    momentum: float
    client_optimizer: Literal["sgd", "amsgrad"]
    weight_decay: float
    batch_size: int
    epochs: int
    local_steps: int | None
    clients_per_round: int | None
    weighting: str


@dataclass(frozen=True)
class TrainingOptions:
    """Options that every method takes: sampling, training and weights of the clients.

    Attributes:
      learning_rate: step size of the client's optimiser.
      momentum: momentum of the client's SGD, whose state is new every round.
      client_optimizer: optimiser of the clients: "sgd", or "amsgrad" (DTFL). In AMSGrad optax takes
        the maximum over second moments after the correction of their bias, torch before it.
      weight_decay: factor of coupled L2 decay, which is added to the gradient.
      batch_size: samples per mini-batch; the last batch of an epoch may be smaller.
      epochs: passes over the client's samples per round; ignored if `local_steps` is given.
      local_steps: mini-batches per round, the same for every client; None for `epochs`.
      clients_per_round: cohort size, sampled without replacement; None for all clients.
      weighting: weights of the clients: "samples", the numbers of samples, or "uniform".
    """

    learning_rate: float
    momentum: float = 0.0
    client_optimizer: Literal["sgd", "amsgrad"] = "sgd"
    weight_decay: float = 0.0
    batch_size: int = 20
    epochs: int = 1
    local_steps: int | None = None
    clients_per_round: int | None = None
    weighting: str = "samples"

    def __post_init__(self) -> None:
        check_types(vars(self), "training option", type(self))
        require(
            np.isfinite(self.learning_rate) and self.learning_rate > 0,
            f"learning_rate = {self.learning_rate}",
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
            not self.momentum or self.client_optimizer == "sgd",
            f"momentum = {self.momentum} with client_optimizer = {self.client_optimizer!r}",
            "is an option of SGD",
            "leave it out",
        )
        require(
            np.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"weight_decay = {self.weight_decay}",
            "must be at least 0 and finite",
            "use 0, or 5e-4",
        )
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

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """`cls(**options)` with an `InputError` for unknown or missing names."""
        check_options(options, "training option", cls)
        return cls(**options)

    def steps(self, sizes: np.ndarray) -> np.ndarray:
        """Local steps of clients with `sizes` samples, int64[k]."""
        if self.local_steps is not None:
            return np.full(len(sizes), self.local_steps, np.int64)
        return self.epochs * -(-sizes // self.batch_size)

    def samples(self, sizes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Samples that `steps` mini-batches process, int64[k]."""
        per_epoch = -(-sizes // self.batch_size)
        rest = np.minimum((steps % per_epoch) * self.batch_size, sizes)
        return (steps // per_epoch) * sizes + rest

    def cohort_size(self, problem: Problem) -> int:
        """Number of clients per round; `InputError` if there are fewer clients."""
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
        if self.client_optimizer == "sgd":
            optimizer = optax.sgd(self.learning_rate, self.momentum or None)
        else:
            optimizer = amsgrad(self.learning_rate)
        if not self.weight_decay:
            return optimizer
        return optax.chain(optax.add_decayed_weights(self.weight_decay), optimizer)

    @property
    def optimizer_slots(self) -> int:
        """Number of arrays per parameter that the client's optimiser keeps."""
        return 3 if self.client_optimizer == "amsgrad" else int(self.momentum > 0)

    def local_update(
        self,
        problem: Problem,
        *,
        proximal: float = 0.0,
        model: BlockModel | None = None,
        observe: Callable[[PyTree], PyTree] | None = None,
    ) -> LocalUpdate:
        """Masked training on the problem's data.

        Args:
          problem: model, data and fleet.
          proximal: factor mu of FedProx's proximal term.
          model: network to train in place of the problem's, with the same parameters.
          observe: function of the masked gradients, see `local_training`.
        """
        return local_training(
            problem.model if model is None else model,
            problem.data.pipeline,
            self.optimizer(),
            problem.objective,
            max_batch=self.largest_batch(problem),
            proximal=proximal,
            observe=observe,
        )


@dataclass(frozen=True)
class UniformTraining(TrainingOptions):
    """`TrainingOptions` of methods in which clients have equal weights by default."""

    weighting: str = "uniform"


@dataclass(frozen=True)
class SplitTraining(TrainingOptions):
    """`TrainingOptions` of DTFL and SplitFed, with the authors' optimiser."""

    client_optimizer: Literal["sgd", "amsgrad"] = "amsgrad"
    weight_decay: float = 5e-4
