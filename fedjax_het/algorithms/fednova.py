"""FedNova: updates are normalised by the number of local steps of each client."""

from typing import Unpack

from fedjax_het.algorithms.parts import full_model
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import barrier
from fedjax_het.problem import Problem
from fedjax_het.transforms import server


@register
def fednova(problem: Problem, **training: Unpack[TrainingKeywords]) -> Algorithm:
    """FedAvg with `server.normalised`.

    Args:
      problem: model, data and fleet.
      **training: fields of `TrainingOptions`.

    References:
      Wang et al., *Tackling the Objective Inconsistency Problem*, 2020, for plain SGD.
    """
    base = full_model("fednova", problem, TrainingOptions.parse(training), pace=barrier())
    return server.normalised()(base)
