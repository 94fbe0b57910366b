"""FedAvg with an optimiser on the server: FedAvgM, FedAdam, FedYogi and optax optimisers."""

from typing import Unpack

import optax

from fedjax_het.algorithms.parts import full_model
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import barrier
from fedjax_het.local import optimizers
from fedjax_het.local.optimizers import Choice
from fedjax_het.problem import Problem
from fedjax_het.transforms import server


@register
def fedopt(
    problem: Problem,
    *,
    server_optimizer: Choice,
    server_learning_rate: float | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""FedAvg with `server.optimizer`, which uses $-\Delta$ as the gradient.

    Running statistics are averaged.

    Args:
      problem: model, data and fleet.
      server_optimizer: optimiser of the server. "yogi" (FedYogi) and "adam" (FedAdam) are the
        paper's, with the options of `server.scale_by_fedopt`; every other name of
        `optimizers.OPTIMIZERS` is optax's, e.g. "sgd" (FedAvg at a step size of 1), "momentum"
        (FedAvgM). Options are given as in `{"name": "yogi", "tau": 0.01}`. Or an optax
        transformation with its own step size.
      server_learning_rate: step size of an optimiser by name.
      **training: fields of `TrainingOptions`.

    References:
      Reddi et al., *Adaptive Federated Optimization*, 2021, Algorithms 1 and 2.
    """
    step = server.optimizer(server_optimizer, learning_rate=server_learning_rate)
    ready = isinstance(server_optimizer, optax.GradientTransformation)
    rule = None if ready else optimizers.named(server_optimizer, "server_optimizer")[0]
    name = f"fed{rule}" if rule in server.FEDOPT else "fedopt"
    return step(full_model(name, problem, TrainingOptions.parse(training), pace=barrier()))


@register
def fedyogi(
    problem: Problem,
    *,
    server_learning_rate: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    """FedAvg with Yogi on the server; see `fedopt` and `scale_by_fedopt`."""
    rule = {"name": "yogi", "b1": b1, "b2": b2, "tau": tau}
    rate = server_learning_rate
    return fedopt(problem, server_optimizer=rule, server_learning_rate=rate, **training)


@register
def fedadam(
    problem: Problem,
    *,
    server_learning_rate: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    """FedAvg with Adam on the server; see `fedopt` and `scale_by_fedopt`."""
    rule = {"name": "adam", "b1": b1, "b2": b2, "tau": tau}
    rate = server_learning_rate
    return fedopt(problem, server_optimizer=rule, server_learning_rate=rate, **training)
