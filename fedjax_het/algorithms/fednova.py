"""FedNova: clients that take more local steps no longer pull the model further their way."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import common
from fedjax_het.algorithms.common import Training
from fedjax_het.algorithms.fedavg import full_model
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import Sums, align, masked_mean
from fedjax_het.contract.algorithm import (
    Aggregator,
    Algorithm,
    Chunk,
    Plan,
    Schedule,
    Situation,
    Variables,
)
from fedjax_het.contract.clock import barrier
from fedjax_het.problem import Problem


def fednova(problem: Problem, **training: Any) -> Algorithm:
    """FedAvg with normalised averaging (`nova`).

    Args:
      problem: model, data and fleet.
      **training: see `Training`.

    References:
      Wang et al., *Tackling the Objective Inconsistency Problem*, 2020, for plain SGD.
    """
    options = Training.parse(training)
    base = full_model("fednova", problem, options, pace=barrier())

    def tasks(situation: Situation) -> Plan:
        plan = common.plan_tasks(problem, options, situation)
        return plan._replace(rows={"steps": np.asarray(plan.steps, np.float32)})

    return base._replace(plan=Schedule(tasks), merge=nova())


def nova() -> Aggregator:
    r"""Per tensor, the mean update per local step times the mean number of steps.

    Over the clients i that trained tensor k, with $c_i = a_i / \sum a$ and $\tau_i$ local steps,
    $w_k \leftarrow w_k + (\sum_i c_i \tau_i) \sum_i c_i \Delta_{i,k} / \tau_i$: clients with many
    steps no longer pull the model their way. Equal steps give the masked mean. It reads
    `row["steps"]`, float32.

    References:
      Wang et al., *Tackling the Objective Inconsistency Problem*, 2020, for plain SGD.
    """
    mean = masked_mean()

    def init(state: PyTree, variables: Variables, mask_shapes: PyTree) -> tuple[Sums, PyTree]:
        sums = mean.init(state, variables, mask_shapes)
        return sums, jax.tree.map(jnp.zeros_like, sums.den)

    def add(acc: tuple[Sums, PyTree], chunk: Chunk) -> tuple[Sums, PyTree]:
        sums, steps = acc
        taken = chunk.row["steps"]

        def per_step(delta: jax.Array) -> jax.Array:
            return delta / jnp.broadcast_to(
                taken.reshape((-1,) + (1,) * (delta.ndim - 1)), delta.shape
            )

        normalised = chunk._replace(delta=jax.tree.map(per_step, chunk.delta))
        by_steps = mean.add(sums._replace(den=steps), chunk._replace(weight=chunk.weight * taken))
        return mean.add(sums, normalised), by_steps.den

    def finalize(
        acc: tuple[Sums, PyTree], variables: Variables, shared: PyTree
    ) -> tuple[Variables, dict[str, Any]]:
        sums, steps = acc

        def rescale(num: jax.Array, den: jax.Array, steps: jax.Array) -> jax.Array:
            return num * align(steps / jnp.where(den > 0, den, 1.0), num)

        return mean.finalize(
            sums._replace(num=jax.tree.map(rescale, sums.num, sums.den, steps)), variables, shared
        )

    return Aggregator(init, add, finalize)
