"""FedNova: updates are normalised by the number of local steps of each client."""

from typing import Unpack

import numpy as np

from fedjax_het.algorithms.parts import full_model
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.contract.aggregation import normalised_mean
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.problem import Problem


@register
def fednova(problem: Problem, **training: Unpack[TrainingKeywords]) -> Algorithm:
    """FedAvg with normalised averaging (`contract.aggregation.normalised_mean`).

    Args:
      problem: model, data and fleet.
      **training: fields of `TrainingOptions`.

    References:
      Wang et al., *Tackling the Objective Inconsistency Problem*, 2020, for plain SGD.
    """
    options = TrainingOptions.parse(training)

    def with_steps(situation: Situation, plan: Plan) -> Plan:
        del situation
        return plan._replace(rows={"steps": np.asarray(plan.steps, np.float32)})

    base = full_model("fednova", problem, options, pace=barrier(), amend=with_steps)
    paces = Paces(stop="it normalises by the planned numbers of steps", overlap=True)
    return base._replace(merge=normalised_mean(), paces=paces)
