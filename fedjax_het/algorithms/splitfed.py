"""SplitFed: one cut of the network for all clients; the server returns gradients."""

from typing import Unpack

import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.numbers import Count, Unlimited
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.fleet import splits
from fedjax_het.problem import Problem
from fedjax_het.transforms.plateau import on_plateau


@register
def splitfed(
    problem: Problem,
    *,
    client_blocks: Count = 2,
    server_flops_per_s: Unlimited | None = None,
    plateau: Count | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    """End-to-end split training: activations up and their gradients down, for every batch.

    The server trains a copy of its half per client, and both halves are averaged every round, so
    the model equals that of FedAvg with the same optimiser. Only time and traffic differ: client
    and server wait for each other, and the gradient of every activation is sent. The norm that
    `clip_norm` needs of both halves is one number a batch, which is not charged.

    Args:
      problem: model, data and fleet.
      client_blocks: number of blocks on the client; the paper of DTFL cuts after the second block.
      server_flops_per_s: speed of the server on each client's copy; None for that of the fastest
        device.
      plateau: number of rounds without a better test accuracy after which the step size is reduced
        by 10 %; None for a constant step size.
      **training: fields of `TrainingOptions`.

    References:
      Thapa et al., *SplitFed: When Federated Learning Meets Split Learning*, 2022, SFLV1;
      methods/baselines.md 12.
    """
    options = TrainingOptions.parse(training)
    cut = splits.single_cut(problem.model.num_blocks, client_blocks)
    table = splits.price_tiers(problem.cost, cut, returned=True)
    speed = splits.server_speed(server_flops_per_s, problem.fleet)
    labels = int(np.prod(problem.data.y.shape[1:]))

    def tasks(situation: Situation) -> Plan:
        clients = situation.clients
        sizes = problem.data.sizes[clients]
        samples = options.samples(sizes, options.steps(sizes))
        only = np.zeros_like(samples)
        prices, _ = splits.split_timing(
            problem.fleet.at(situation.round),
            clients,
            table.client_flops[only] * samples,
            table.server_flops[only] * samples / speed,
            splits.split_bytes(table, only, samples, labels, returned=True),
            situation.now_s,
            situation.rng,
            parallel=False,
        )
        return parts.plan_tasks(problem, options, situation, timing=prices)

    whole = parts.full_model("splitfed", problem, options, pace=barrier(), check_memory=False)
    sends = "activations and its part of the network"
    paces = Paces(
        stop="its activations are uploaded at every step, so the traffic grows with the steps",
        overlap="the server averages its copies of all clients at the end of a round",
    )
    return on_plateau(whole._replace(plan=Schedule(tasks), paces=paces, sends=sends), plateau)
