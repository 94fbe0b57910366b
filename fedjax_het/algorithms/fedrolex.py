"""FedRolex: sub-networks by width that roll over the hidden units from round to round."""

from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.networks import networks
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.problem import Problem


@register(options=UniformTraining)
def fedrolex(
    problem: Problem,
    *,
    rates: Sequence[float] = (1.0, 0.5, 0.25, 0.125, 0.0625),
    levels: Sequence[Count] | None = None,
    shares: Sequence[float] | None = None,
    dynamic: bool = False,
    direction: int = 1,
    scaler: bool = True,
    static_norm: bool | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""FedRolex: a client trains a window of the hidden units, which rolls by one unit a round.

    In round t a client of rate r trains the units $(t + i) \bmod K$ with $i < \lceil rK \rceil$ of
    every group of K units, so that over K rounds every unit is trained equally often. Layers that
    share a residual stream share their window. A coordinate becomes the mean over the clients
    that hold it, and keeps its value if there is none.

    Args:
      problem: model, data and fleet.
      rates: shares of the hidden units that clients may train, see `networks`.
      levels: index into `rates` of every client; None for the widest that its device affords.
      shares: share of the clients at each rate, fastest clients first; see `Networks.assignment`.
      dynamic: whether clients draw their rate anew in every round, with these shares.
      direction: direction of the window; -1 as in the authors' code, which rolls backwards.
      scaler: whether hidden layers divide their outputs by the rate in training, as the authors'
        code does.
      static_norm: whether batch norms use statistics of the batch in training and those of all
        training samples in evaluations, see `heterofl`.
      **training: fields of `UniformTraining`. The authors use lr 2e-4 for ResNet-18, momentum 0.9.

    Returns:
      The algorithm. Clients of rate 1 train the complete network in its natural order.

    References:
      Alam et al., *FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model
      Extraction*, NeurIPS 2022. The authors' code weighs biases and the classifier by past counts
      of updates; here every coordinate is the plain mean.
    """
    options = UniformTraining.parse(training)
    require(direction in (1, -1), f"direction = {direction}", "must be 1 or -1", "use 1")
    own = networks(problem, rates, static_norm=static_norm)
    sizes = own.layout.sizes
    assigned = own.assignment(options, levels=levels, shares=shares, dynamic=dynamic)

    def tasks(situation: Situation) -> Plan:
        shift = {"round": np.int32(situation.round)}
        return own.plan(options, situation, assigned(situation), shared=shift)

    def order(row: PyTree, shared: PyTree) -> dict[str, jax.Array]:
        del row
        return {
            group: (jnp.arange(size, dtype=jnp.int32) + direction * shared["round"]) % size
            for group, size in sizes.items()
        }

    return Algorithm(
        name="fedrolex",
        init=parts.stateless,
        plan=Schedule(tasks, apart=True),
        mask=None,
        local=own.local_update(options, scaled=scaler),
        merge=masked_mean(),
        update=parts.replace,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        calibrate=own.calibrate,
        paces=Paces(overlap=True),
        widths=own.widths(order),
    )
