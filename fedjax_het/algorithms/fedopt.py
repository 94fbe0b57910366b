"""FedAvg with an optimiser on the server: FedAvgM, FedAdam, FedYogi and optax optimisers."""

from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms.parts import full_model
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import check_options
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Merged, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.local import optimizers
from fedjax_het.local.optimizers import Choice
from fedjax_het.problem import Problem

# The paper's own rules, which differ from optax's.
_PAPER = ("yogi", "adam")


def scale_by_fedopt(
    moment: str, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    r"""The adaptive server steps of Reddi et al., as an optax transformation.

    $m = \beta_1 m + (1-\beta_1) g$; Yogi has $v = v - (1-\beta_2) g^2 \mathrm{sign}(v - g^2)$ and
    Adam $v = \beta_2 v + (1-\beta_2) g^2$; the step is $m / (\sqrt v + \tau)$, with $v_0 = \tau^2$.

    Warning: optax's own `scale_by_yogi` and `scale_by_adam` correct the bias of both moments. The
    paper does not, and its default step sizes assume uncorrected moments.

    Args:
      moment: rule of the second moment, "yogi" or "adam".
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      tau: constant added to the root; large values approach plain server momentum.

    References:
      Reddi et al., *Adaptive Federated Optimization*, 2021, Algorithm 2.
    """
    require_known(moment, _PAPER, "server_optimizer")
    require(tau > 0, f"tau = {tau}", "must be positive", "try 0.001")
    for label, value in (("b1", b1), ("b2", b2)):
        require(0 <= value < 1, f"{label} = {value}", "must lie in [0, 1)", "try 0.9 and 0.99")

    def second(v: jax.Array, g: jax.Array) -> jax.Array:
        if moment == "yogi":
            return v - (1 - b2) * g * g * jnp.sign(v - g * g)
        return b2 * v + (1 - b2) * g * g

    def init(params: PyTree) -> PyTree:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, jax.tree.map(lambda p: jnp.full_like(p, tau**2), params)

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        m = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state[0], grads)
        v = jax.tree.map(second, state[1], grads)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), m, v), (m, v)

    return optax.GradientTransformation(init, update)


@register
def fedopt(
    problem: Problem,
    *,
    server_optimizer: Choice,
    server_learning_rate: float | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""FedAvg with a server optimiser that uses $-\Delta$ as the gradient.

    Running statistics are averaged.

    Args:
      problem: model, data and fleet.
      server_optimizer: optimiser of the server. "yogi" (FedYogi) and "adam" (FedAdam) are the
        paper's, with the options of `scale_by_fedopt`; every other name of
        `optimizers.OPTIMIZERS` is optax's, e.g. "sgd" (FedAvg at a step size of 1), "momentum"
        (FedAvgM). Options are given as in `{"name": "yogi", "tau": 0.01}`. Or an optax
        transformation with its own step size.
      server_learning_rate: step size of an optimiser by name.
      **training: fields of `TrainingOptions`.

    References:
      Reddi et al., *Adaptive Federated Optimization*, 2021, Algorithms 1 and 2.
    """
    rate, ready = server_learning_rate, isinstance(server_optimizer, optax.GradientTransformation)
    require(
        not (ready and rate is not None),
        f"server_learning_rate = {rate} with an optax transformation as server_optimizer",
        "belongs to the transformation",
        "leave it out, or name an optimiser",
    )
    require(
        ready or (rate is not None and np.isfinite(rate) and rate > 0),
        f"server_learning_rate = {rate}",
        "must be positive and finite",
        "try 0.01 for yogi and adam, 1.0 for sgd",
    )
    name, server = _server(server_optimizer, rate)

    def init(variables: Variables, key: jax.Array) -> PyTree:
        del key
        return server.init(variables.params)

    def update(state: PyTree, old: Variables, merged: Merged) -> tuple[PyTree, Variables]:
        params, stats = merged.variables
        pseudo_gradient = jax.tree.map(jnp.subtract, old.params, params)
        updates, state = server.update(pseudo_gradient, state, old.params)
        return state, Variables(optax.apply_updates(old.params, updates), stats)

    base = full_model(name, problem, TrainingOptions.parse(training), pace=barrier())
    return base._replace(init=init, update=update)


def _server(choice: Choice, rate: float | None) -> tuple[str, optax.GradientTransformation]:
    """Name of the method in records, and the server's optimiser."""
    if isinstance(choice, optax.GradientTransformation):
        server = optimizers.relaxed(choice)
        optimizers.trace(server, "server_optimizer")
        return "fedopt", server
    assert rate is not None
    moment, options = optimizers.named(choice, "server_optimizer")
    if moment not in _PAPER:
        return "fedopt", optimizers.make(choice, rate, what="server_optimizer")
    check_options(options, f"option of {moment!r}", scale_by_fedopt, derived=("moment",))
    scale = scale_by_fedopt(moment, **options)
    return f"fed{moment}", optax.chain(scale, optax.scale_by_learning_rate(rate))


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
    server = {"name": "yogi", "b1": b1, "b2": b2, "tau": tau}
    rate = server_learning_rate
    return fedopt(problem, server_optimizer=server, server_learning_rate=rate, **training)


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
    server = {"name": "adam", "b1": b1, "b2": b2, "tau": tau}
    rate = server_learning_rate
    return fedopt(problem, server_optimizer=server, server_learning_rate=rate, **training)
