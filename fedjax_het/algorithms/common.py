"""What the published systems share: training options, priced plans, the plain server step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import jax
import numpy as np
import optax

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import check_options, check_types
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Plan, ServerStep, Situation, Timing, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.fleet.cost import price
from fedjax_het.local.training import LocalUpdate, local_training
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem


@dataclass(frozen=True)
class Training:
    """How clients are sampled, train and are weighed; the options every method takes.

    Attributes:
      learning_rate: step of the client's optimiser.
      momentum: of the client's SGD; its memory is new every round.
      client_optimizer: "sgd", or "amsgrad" (DTFL); optax takes AMSGrad's maximum over second
        moments after the correction of their bias, torch before it.
      weight_decay: coupled L2 decay, added to the gradient.
      batch_size: samples per mini-batch; the last batch of an epoch may be smaller.
      epochs: passes over the client's samples per round; ignored when `local_steps` is given.
      local_steps: mini-batches per round, the same for every client; None counts epochs.
      clients_per_round: cohort size, sampled without replacement; None takes everyone.
      weighting: "samples" weighs a client by its number of samples, "uniform" all alike.
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
        """Clients per round; `InputError` if there are not as many."""
        n = problem.num_clients
        k = n if self.clients_per_round is None else self.clients_per_round
        require(
            k <= n,
            f"clients_per_round = {k}",
            f"must be at most the {n} clients",
            "leave it out for full participation",
        )
        return k

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
        """Arrays per parameter that the client's optimiser keeps."""
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
          proximal: FedProx's mu.
          model: trains this network in place of the problem's, with the same parameters.
          observe: see `local_training`.
        """
        room = min(self.batch_size, int(np.max(problem.data.sizes)))
        return local_training(
            problem.model if model is None else model,
            problem.data.pipeline,
            self.optimizer(),
            max_batch=room,
            proximal=proximal,
            observe=observe,
        )


def amsgrad(learning_rate: float) -> optax.GradientTransformation:
    """`optax.amsgrad`, also where JAX promotes no types of its own accord."""
    inner = optax.amsgrad(learning_rate)

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        # It raises a Python float to the power of an integer array.
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(grads, state, params)

    return optax.GradientTransformation(inner.init, update)


def plan_tasks(
    problem: Problem,
    training: Training,
    situation: Situation,
    *,
    first: np.ndarray | int = 0,
    rows: PyTree = None,
    learning_rate_scale: float = 1.0,
    deadline_s: float = float("inf"),
    timing: Timing | None = None,
) -> Plan:
    """Prices the cohort's tasks: block `first` and all deeper ones train, the rest runs forward.

    Args:
      problem: the setting.
      training: the local workload.
      situation: who is sampled, and when.
      first: int64[k] or one value, shallowest trained block (0 = everything).
      rows: see `Plan.rows`.
      learning_rate_scale: see `Plan`.
      deadline_s: see `Plan`.
      timing: prices of the tasks; None prices the suffix that starts at `first`.
    """
    clients = situation.clients
    k = len(clients)
    sizes = problem.data.sizes[clients]
    steps = training.steps(sizes)
    last = problem.model.num_blocks - 1
    first = np.broadcast_to(np.asarray(first, np.int64), (k,))
    if timing is None:
        timing = price(
            problem.cost,
            problem.fleet.at(situation.round),
            clients,
            first,
            np.full(k, last),
            training.samples(sizes, steps),
            situation.now_s,
            situation.rng,
        )
    by_samples = training.weighting == "samples"
    routes = {f: Route(f, last) for f in np.unique(first).tolist()}
    return Plan(
        clients=clients,
        routes=[routes[f] for f in first.tolist()],
        steps=steps,
        batch=np.minimum(training.batch_size, sizes),
        weight=sizes.astype(np.float32) if by_samples else np.ones(k, np.float32),
        timing=timing,
        rows=rows,
        learning_rate_scale=learning_rate_scale,
        deadline_s=deadline_s,
    )


def require_memory(problem: Problem, training: Training, first: np.ndarray | int) -> None:
    """Raises `InputError` if a device cannot hold the sub-model it is meant to train."""
    n = problem.num_clients
    last = problem.model.num_blocks - 1
    first = np.broadcast_to(np.asarray(first, np.int64), (n,))
    batch = np.minimum(training.batch_size, problem.data.sizes)
    need = problem.cost.memory_bytes(first, np.full(n, last), batch, training.optimizer_slots)
    short = np.flatnonzero(need > problem.fleet.memory_bytes)
    require(
        short.size == 0,
        f"clients {short[:5].tolist()} (of {short.size}) with {np.max(need):.4g} bytes to hold",
        f"exceed the memory of their devices, {problem.fleet.memory_bytes[short[:5]]} bytes",
        "use smaller batches, or a method that trains sub-models (fedpmt)",
    )


def require_constant_fleet(problem: Problem, method: str) -> None:
    """Raises `InputError` for devices that are re-drawn, to a method that prices them once."""
    require(
        problem.fleet.redraw is None,
        f"redraw_every on the fleet of {method}",
        "is not known to this method: it plans with the devices of round 0 throughout",
        "leave it out, or use dtfl, fedavg or another method that prices every round",
    )


def require_feasible(
    problem: Problem, training: Training, deadline_s: float, *, whole: bool
) -> None:
    """Raises `InputError` if no device can meet the deadline with its whole task (or one step)."""
    sizes = problem.data.sizes
    clients = np.arange(problem.num_clients)
    steps = training.steps(sizes) if whole else np.ones_like(sizes)
    cost = problem.cost
    last = problem.model.num_blocks - 1
    total_s = problem.fleet.timing(
        clients,
        cost.step_flops(0, last) * training.samples(sizes, steps),
        cost.download_bytes(),
        cost.upload_bytes(0, last),
        now_s=0.0,
        rng=None,
    ).total_s
    require(
        deadline_s >= np.min(total_s),
        f"deadline_s = {deadline_s}",
        f"must be at least the {np.min(total_s):.6g} s that the fastest device needs",
        f"a deadline of {np.median(total_s):.6g} s lets half of the devices finish",
    )


def step_scale(schedule: str, t: Any, decay_rounds: float) -> Any:
    r"""Factor on the step size after t rounds, for `Plan.learning_rate_scale`.

    Args:
      schedule: "constant", or "inverse" for $1 / (1 + t / t_0)$ as in O(1/T) analyses.
      t: rounds behind, a number or an array.
      decay_rounds: t_0, time constant of the inverse schedule.
    """
    require_known(schedule, ("constant", "inverse"), "schedule")
    require(decay_rounds > 0, f"decay_rounds = {decay_rounds}", "must be positive", "try 50")
    return 1.0 / (1.0 + t / decay_rounds) if schedule == "inverse" else 1.0 + 0.0 * t


def _replace(state: PyTree, variables: Variables, merged: Variables) -> tuple[PyTree, Variables]:
    del variables
    return state, merged


# The plain server step: the merged model is the new model.
replace = ServerStep(_replace)


def stateless(variables: Variables, key: Any) -> PyTree:
    """`Algorithm.init` of a method that keeps nothing between rounds."""
    del variables, key
    return ()
