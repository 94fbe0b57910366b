"""FedAvg, and its relatives that differ in the pace or in the clients' objective."""

from typing import Any

import numpy as np

from fedjax_het.algorithms import common
from fedjax_het.algorithms.common import Training
from fedjax_het.common.errors import require
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm, Plan, Schedule, Situation
from fedjax_het.contract.clock import Pace, barrier, deadline
from fedjax_het.problem import Problem


def full_model(
    name: str,
    problem: Problem,
    training: Training,
    *,
    pace: Pace,
    deadline_s: float = float("inf"),
    proximal: float = 0.0,
    check_memory: bool = True,
) -> Algorithm:
    """Everyone trains the whole model and the server takes the weighted mean.

    Args:
      name: for records.
      problem: model, data and fleet.
      training: the clients' options.
      pace: when the server merges.
      deadline_s: for a deadline pace, virtual seconds after dispatch.
      proximal: FedProx's mu.
      check_memory: whether every device must hold the whole model.
    """
    if check_memory:
        common.require_memory(problem, training, 0)

    def tasks(situation: Situation) -> Plan:
        return common.plan_tasks(problem, training, situation, deadline_s=deadline_s)

    return Algorithm(
        name=name,
        init=common.stateless,
        plan=Schedule(tasks),
        mask=None,
        local=training.local_update(problem, proximal=proximal),
        merge=masked_mean(),
        update=common.replace,
        pace=pace,
        cohort_size=training.cohort_size(problem),
    )


def fedavg(problem: Problem, **training: Any) -> Algorithm:
    r"""Federated averaging: $w \leftarrow \sum_i n_i w_i / \sum_i n_i$ over the cohort.

    Args:
      problem: model, data and fleet.
      **training: see `Training`; `learning_rate` is required.

    Returns:
      The algorithm.

    References:
      McMahan et al., *Communication-Efficient Learning of Deep Networks from Decentralized Data*,
      2017, Algorithm 1.
    """
    return full_model("fedavg", problem, Training.parse(training), pace=barrier())


def fedprox(
    problem: Problem, *, mu: float = 0.1, deadline_s: float = float("inf"), **training: Any
) -> Algorithm:
    r"""FedProx: minimises $F_i(w) + \frac{\mu}{2} \lVert w - w_t \rVert^2$, partial work kept.

    With a deadline, a slow device returns the steps it managed instead of being dropped. `mu=0`
    without a deadline is FedAvg, bit for bit.

    Args:
      problem: model, data and fleet.
      mu: strength of the pull towards the round's model; the paper tries 0.001 to 1.
      deadline_s: virtual seconds after which the server closes the round.
      **training: see `Training`.

    References:
      Li et al., *Federated Optimization in Heterogeneous Networks*, 2020, Algorithm 2.
    """
    require(np.isfinite(mu) and mu >= 0, f"mu = {mu}", "must be at least 0", "try 0.001 to 1")
    options = Training.parse(training)
    common.require_feasible(problem, options, deadline_s, whole=False)
    pace = deadline("partial") if np.isfinite(deadline_s) else barrier()
    return full_model("fedprox", problem, options, pace=pace, deadline_s=deadline_s, proximal=mu)


def drop_stragglers(problem: Problem, *, deadline_s: float, **training: Any) -> Algorithm:
    """FedAvg with a deadline: who is not back in time is left out of the mean.

    A round that nobody finishes leaves the model as it is.

    Args:
      problem: model, data and fleet.
      deadline_s: virtual seconds after which the server closes the round.
      **training: see `Training`.

    References:
      The "drop" arm of Li et al. 2020 and of the SALF and ADEL-FL papers; here the mean is taken
      over those who finished (the code of the latter divides by everyone).
    """
    options = Training.parse(training)
    common.require_feasible(problem, options, deadline_s, whole=True)
    return full_model(
        "drop_stragglers", problem, options, pace=deadline("drop"), deadline_s=deadline_s
    )
