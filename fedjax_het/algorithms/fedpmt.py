"""FedPMT: every device trains as many of the deepest layers as its capacity allows."""

from collections.abc import Callable, Sequence
from typing import Unpack

import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.fleet.cost import CostTable
from fedjax_het.problem import Problem

# Tolerance for rounding in capacities such as 0.71, so that the last digit excludes no depth.
_SLACK = 1e-9


def assign_depths(
    cost: CostTable, capacity: np.ndarray, allowed: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    r"""The largest depth that each device affords: $d_k = \max\{d : C(d) \le \kappa_k C(L)\}$.

    $C(d)$ is the cost of the whole forward pass and of the backward pass through the last d blocks.
    The forward pass is never skipped, so a capacity below $F_{fwd}/C(L)$ (about 1/3) is infeasible.

    Args:
      cost: prices of the model's L blocks.
      capacity: compute capacity kappa relative to the need of the full model, float64[n].
      allowed: allowed depths, within 1..L.

    Returns:
      The depths int64[n], and a mask bool[n] of the feasible devices. It is False if the smallest
      allowed depth exceeds the capacity; the device gets that depth and will be late.
    """
    last = len(cost.names) - 1
    depths = np.sort(np.asarray(allowed, np.int64))
    share = cost.step_flops(last + 1 - depths, np.full(len(depths), last))
    share = share / cost.step_flops(0, last)
    affordable = share[None, :] <= np.asarray(capacity, np.float64)[:, None] * (1 + _SLACK)
    index = np.max(np.where(affordable, np.arange(len(depths)), -1), axis=1)
    return depths[np.maximum(index, 0)], index >= 0


@register
def fedpmt(
    problem: Problem,
    *,
    depths: Sequence[Count] | None = None,
    capacity: Sequence[float] | Callable[[int], np.ndarray] | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""Partial model training: a suffix of layers per device; averages over the training clients.

    Device k runs the whole forward pass, trains its last $d_k$ blocks and uploads only them. The
    server averages every block over the clients that trained it (weighted by samples):
    $w_l \leftarrow \sum_{k \in S_l} \rho_k w_{k,l} / \sum_{k \in S_l} \rho_k$. A block that no
    client trains keeps its value. If every depth is L it is FedAvg.

    Warning: with non-IID data the fixed point solves $\sum_{k \in S_l} \rho_k \nabla_l f_k = 0$ per
    layer, which is not a minimum of the global objective. If speed and data are correlated, the
    result is biased.

    Args:
      problem: model, data and fleet.
      depths: allowed depths; None allows 1..L. The paper uses 1, 3 and 4 of 4.
      capacity: capacity kappa of each client in (0, 1], relative to the full model's cost, or a
        function of the round for capacities that change. None for each device's speed relative to
        the fastest, in every round if devices are re-drawn.
      **training: fields of `TrainingOptions`; `schedule="inverse"` is that of the O(1/T) analysis.

    Returns:
      The algorithm. Its `info` has the number of devices below the cost of the smallest depth as
      `infeasible_clients`.

    References:
      Wu, Wang and Narayana, arXiv 2311.10002 (IEEE TNSE 2025). The paper's assignment rule and cost
      model were not available; `assign_depths` is our choice.
    """
    options = TrainingOptions.parse(training)
    blocks = problem.model.num_blocks
    allowed = list(range(1, blocks + 1)) if depths is None else sorted({int(d) for d in depths})
    require(
        bool(allowed) and allowed[0] >= 1 and allowed[-1] <= blocks,
        f"depths = {depths}",
        f"must name depths between 1 and the model's {blocks} blocks",
        "leave it out to allow all of them",
    )

    def depths_at(round: int) -> tuple[np.ndarray, np.ndarray]:
        kappa = parts.capacities(problem, capacity, round)
        depth, feasible = assign_depths(problem.cost, kappa, allowed)
        parts.require_memory(problem, options, blocks - depth)
        return depth, feasible

    depths_at(0)

    def tasks(situation: Situation) -> Plan:
        depth, feasible = depths_at(situation.round)
        first = blocks - depth[situation.clients]
        plan = parts.plan_tasks(
            problem,
            options,
            situation,
            first=first,
            rows={"first": first.astype(np.int32)},
        )
        return plan._replace(info={"infeasible_clients": int(np.sum(~feasible))})

    structure = problem.model.shapes.params

    def mask(row: PyTree, shared: PyTree) -> PyTree:
        del shared
        return masks.suffix(structure, jnp.asarray(row["first"]))

    return Algorithm(
        name="fedpmt",
        init=parts.stateless,
        plan=Schedule(tasks, apart=True),
        mask=mask,
        local=options.local_update(problem),
        merge=masked_mean(),
        update=parts.replace,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        paces=Paces(overlap=True),
    )
