"""How far the masks of FedEL differ between weights of the local importance, before accuracies."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_het import algorithms
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate


def overlaps(
    problem: Problem,
    options: Mapping[str, Any],
    betas: Sequence[float],
    *,
    rounds: int,
    reference: float = 0.6,
    seed: int = 0,
) -> dict[float, float]:
    """Share of the masks that are those of the reference, by beta.

    FedEL trains with the reference; in every round after the first, when there is a global
    importance, the plan is made for every beta from the same state.

    Args:
      problem: model with exit heads, data and fleet.
      options: options of `fedel` except for `beta`.
      betas: weights of the local importance.
      rounds: number of rounds, at least 2.
      reference: weight with which the model is trained.
      seed: seed of the run.
    """
    method = algorithms.build("fedel", problem, **options, beta=reference)
    others = {beta: algorithms.build("fedel", problem, **options, beta=beta) for beta in betas}
    same: dict[float, list[np.ndarray]] = {beta: [] for beta in betas}

    def plan(state: Any, variables: Variables, situation: Situation) -> tuple[Plan, Any]:
        tasks, after = method.plan(state, variables, situation)
        if situation.round:
            for beta, other in others.items():
                # Only the prices are drawn, of which no mask depends.
                again = situation._replace(rng=np.random.default_rng(0))
                theirs = other.plan(state, variables, again)[0].rows["chosen"]
                same[beta].append(np.all(theirs == tasks.rows["chosen"], axis=1))
        return tasks, after

    simulate(
        method._replace(plan=plan),
        problem,
        rounds=rounds,
        seed=seed,
        eval_every=rounds,
        execution="masked",
    )
    return {beta: float(np.mean(np.concatenate(each))) for beta, each in same.items()}
