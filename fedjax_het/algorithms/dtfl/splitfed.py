"""SplitFed: the network is cut at one place for all, and the server returns the gradients."""

from typing import Unpack

import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.dtfl import timing
from fedjax_het.algorithms.dtfl.tiers import cuts, split
from fedjax_het.algorithms.parts import full_model
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import SplitTraining, TrainingKeywords
from fedjax_het.common.errors import require
from fedjax_het.contract.algorithm import Algorithm, Schedule
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.problem import Problem
from fedjax_het.transforms.plateau import on_plateau


@register(options=SplitTraining)
def splitfed(
    problem: Problem,
    *,
    client_blocks: int = 2,
    server_flops_per_s: float | None = None,
    plateau: int | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    """Split training end to end: activations up, their gradients down, at every batch.

    The server trains a copy of its half per client, and both halves are averaged every round, so
    the model is exactly that of FedAvg with the same optimiser; only time and traffic differ:
    client and server wait for each other, and the gradient of every activation is sent.

    Args:
      problem: model, data and fleet.
      client_blocks: blocks on the client; the paper cuts after md2.
      server_flops_per_s: of the server, on each client's copy; None for the fastest device's.
      plateau: see `dtfl`.
      **training: see `SplitTraining`.

    References:
      Thapa et al., *SplitFed: When Federated Learning Meets Split Learning*, 2022, SFLV1.
    """
    options = SplitTraining.parse(training)
    boundaries = cuts(problem.model.num_blocks)
    require(
        1 <= client_blocks <= len(boundaries),
        f"client_blocks = {client_blocks}",
        f"must be between 1 and {len(boundaries)} of the model's {problem.model.num_blocks} blocks",
        "use 2 as in the paper",
    )
    table = split(problem.cost, boundaries[[client_blocks - 1]], returned=True)
    speed = timing.server_speed(server_flops_per_s, problem.fleet)
    labels = int(np.prod(problem.data.y.shape[1:]))

    def tasks(situation: Situation) -> Plan:
        clients = situation.clients
        sizes = problem.data.sizes[clients]
        samples = options.samples(sizes, options.steps(sizes))
        only = np.zeros_like(samples)
        prices, _ = timing.timing(
            problem.fleet.at(situation.round),
            clients,
            table.client_flops[only] * samples,
            table.server_flops[only] * samples / speed,
            timing.split_bytes(table, only, samples, labels, returned=True),
            situation.now_s,
            situation.rng,
            parallel=False,
        )
        return parts.plan_tasks(problem, options, situation, timing=prices)

    algorithm = full_model("splitfed", problem, options, pace=barrier(), check_memory=False)
    return on_plateau(algorithm._replace(plan=Schedule(tasks)), plateau)
