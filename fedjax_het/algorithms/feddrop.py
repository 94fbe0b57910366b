"""FedDrop: every device trains a new random sub-network by width, as wide as it affords."""

from collections.abc import Callable, Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.networks import Networks, networks
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import masked_mean, plain_mean
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.contract.widths import Layout
from fedjax_het.models.base import BlockModel
from fedjax_het.models.units import layout_of
from fedjax_het.problem import Problem

RATES = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125)
_MERGES = {"complete": plain_mean, "holders": masked_mean}


@register
def feddrop(
    problem: Problem,
    *,
    rates: Sequence[float] | None = None,
    rate: float | None = None,
    capacity: Sequence[float] | Callable[[int], np.ndarray] | None = None,
    latency_s: float | None = None,
    scope: str = "all_hidden",
    scaler: bool = True,
    merge: str = "complete",
    static_norm: bool = False,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""Federated dropout: random sub-networks by width, re-drawn by every client in every round.

    A client of rate r trains the first $\lceil r K \rceil$ units of a new random permutation of
    every group of K hidden units; inputs and classes are complete. Units that share a residual
    stream share their permutation. A coordinate that nobody holds keeps its value. With all rates 1
    it is FedAvg. The evaluation uses the complete network.

    Args:
      problem: model, data and fleet.
      rates: shares of the hidden units that clients may train; None for 1, 7/8, ... 1/8. Clients
        of every round train the widest that they afford, or the narrowest if they afford none.
      rate: share of the hidden units of all clients, as in Caldas et al., in place of `rates`.
      capacity: share of the full training cost that each client affords, or a function of the
        round; None for the speed relative to the fastest device.
      latency_s: latency of a round in seconds that decides the rates instead of a FLOP budget, by
        the paper's formula (`latency_rates`); needs scope "fc". It takes the cost of all layers
        from the first dropped one on as quadratic in the rate; the first and the last of them are
        linear, so a task may take longer.
      scope: units that may be dropped: "all_hidden", or "fc", only those of fully connected layers,
        in blocks whose output is a vector.
      scaler: whether hidden layers divide their outputs by the rate in training (inverted dropout),
        before the norm if there is one.
      merge: "complete", the mean of all clients' models, which are completed with the old values,
        so that a dropped coordinate counts as unchanged: $w \leftarrow w - \sum_k \rho_k (m_k
        \odot \Delta_k)$; or "holders", the mean over the clients that hold a coordinate. Running
        statistics are always the mean over those that hold them.
      static_norm: whether batch norms use statistics of the batch in training and those of all
        training samples in evaluations instead, see `heterofl`.
      **training: fields of `TrainingOptions`.

    References:
      Wen, Jeon and Huang, *Federated Dropout: A Simple Approach for Enabling Federated Learning on
      Resource Constrained Devices*, IEEE WCL 2022 (arXiv 2109.15258), for rates by device; Caldas,
      Konečný, McMahan and Talwalkar, *Expanding the Reach of Federated Learning by Reducing Client
      Resource Requirements*, 2018 (arXiv 1812.07210), for one rate. They drop every unit at random
      with a probability; here their number is fixed, so that a client knows its cost, as in the
      code of FedRolex (Alam et al., NeurIPS 2022). Budgets in FLOPs and the merge "complete" are
      our reading of Wen et al.
    """
    options = TrainingOptions.parse(training)
    require_known(scope, ("all_hidden", "fc"), "scope")
    require_known(merge, tuple(_MERGES), "merge")
    require(
        latency_s is None or (scope == "fc" and capacity is None),
        f"latency_s = {latency_s} with scope = {scope!r}",
        "the latency rule is that of fully connected layers alone",
        "set scope='fc' and leave capacity out",
    )
    require(
        rate is None or (latency_s is None and capacity is None and rates is None),
        f"rate = {rate} with rates, a capacity or latency_s",
        "is one rate for all clients",
        "leave out rate, or what decides the rates by device",
    )
    layout = layout_of(problem.model)
    dense = dense_groups(problem.model, layout)
    require(
        scope == "all_hidden" or bool(dense),
        f"model {problem.model.name!r} with scope = 'fc'",
        "has no fully connected hidden layer",
        "use scope='all_hidden'",
    )
    kept = () if scope == "all_hidden" else set(layout.sizes) - set(dense)
    grid = tuple(rates or RATES) if rate is None else (rate,)
    own = networks(problem, grid, static_norm=static_norm, kept=kept)

    def levels(round: int) -> np.ndarray:
        if rate is not None:
            level = np.full(problem.num_clients, own.allowed[0])
        elif latency_s is None:
            level = own.affordable(parts.capacities(problem, capacity, round))
        else:
            first = min(dense.values())
            level = own.widest(latency_rates(own, options, first, latency_s, round))
        own.require_memory(options, level)
        return level

    levels(0)

    def tasks(situation: Situation) -> Plan:
        clients = situation.clients
        return own.plan(
            options,
            situation,
            levels(situation.round)[clients],
            rows={"client": clients.astype(np.int32)},
            shared={"key": np.asarray(jax.random.key_data(situation.key))},
        )

    return Algorithm(
        name="feddrop",
        init=parts.stateless,
        plan=Schedule(tasks, apart=True),
        mask=None,
        local=own.local_update(options, scaled=scaler),
        merge=_MERGES[merge](),
        update=parts.replace,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        calibrate=own.calibrate,
        paces=Paces(overlap=True),
        widths=own.widths(_order(own)),
    )


def _order(own: Networks) -> Callable[[PyTree, PyTree], dict[str, jax.Array]]:
    """The units of a client of a round: a permutation of every group, from (round, client, group).

    Args:
      own: sub-networks, whose groups are numbered in their order.

    Returns:
      A function of the row `{"client": int32[]}` and of the shared data of the key of the round.
    """

    def order(row: PyTree, shared: PyTree) -> dict[str, jax.Array]:
        key = jax.random.fold_in(jax.random.wrap_key_data(shared["key"]), row["client"])
        return {
            group: jax.random.permutation(
                jax.random.fold_in(key, i), jnp.arange(size, dtype="int32")
            )
            for i, (group, size) in enumerate(own.layout.sizes.items())
        }

    return order


def dense_groups(model: BlockModel, layout: Layout) -> dict[str, int]:
    """The groups of units of fully connected layers, each with the first block that has it.

    They are the outputs of vectors and matrices of blocks whose output is a vector, unless they are
    also outputs of a convolution or of a block with other outputs.

    Args:
      model: model.
      layout: groups of its units.
    """
    dense: dict[str, int] = {}
    others: set[str] = set()
    for b, shape in enumerate(model.activation_shapes(1)):
        for axes in jax.tree.leaves(layout.axes.params["blocks"][b]):
            groups = {span.group for span in axes.spans[-1] if span.group} if axes.spans else set()
            if len(shape.shape) == 2 and len(axes.spans) <= 2:
                dense.update(dict.fromkeys(groups - set(dense), b))
            else:
                others |= groups
    return {group: b for group, b in dense.items() if group not in others}


def latency_rates(
    own: Networks, training: TrainingOptions, first: int, latency_s: float, round: int
) -> np.ndarray:
    r"""The largest rates r that meet a round latency: $T_{fix} + r^2 T_{scaled} \le T$, float64[n].

    Compute and both transfers of the blocks from `first` on scale with r^2; the paper: fully
    connected layers. The links' latency does not.

    Args:
      own: sub-networks.
      training: options of the clients.
      first: first block of which units are dropped.
      latency_s: latency T of a round in seconds.
      round: number of the round, which decides the devices.

    Returns:
      The rates in (0, 1].

    Raises:
      InputError: if T does not exceed the fixed part of a client.
    """
    cost, fleet, sizes = own.costs[0], own.problem.fleet.at(round), own.problem.data.sizes
    samples = training.samples(sizes, training.steps(sizes))
    flops = cost.forward_flops + cost.weight_grad_flops + cost.input_grad_flops
    flops = flops - np.eye(len(flops))[0] * cost.input_grad_flops
    received = cost.param_bytes + cost.stats_bytes
    sent = cost.param_bytes + cost.stats_bytes * cost.uploads_stats

    def seconds(part: slice, heads_bytes: int = 0) -> np.ndarray:
        down_s = (np.sum(received[part]) + heads_bytes) / fleet.downlink_bytes_per_s
        up_s = np.sum(sent[part]) / fleet.uplink_bytes_per_s
        return samples * np.sum(flops[part]) / fleet.flops_per_s + down_s + up_s

    heads_bytes = cost.download_bytes() - int(received.sum())
    fixed_s = seconds(slice(first), heads_bytes) + 2 * fleet.latency_s
    return squared_rates(latency_s, fixed_s, seconds(slice(first, None)))


def squared_rates(latency_s: float, fixed_s: np.ndarray, scaled_s: np.ndarray) -> np.ndarray:
    r"""The largest r in (0, 1] with $T_{fix} + r^2 T_{scaled} \le T$, float64[n].

    Args:
      latency_s: latency T in seconds.
      fixed_s: seconds that do not depend on the rate, float64[n].
      scaled_s: seconds of the rest at full width, float64[n].

    Raises:
      InputError: if T does not exceed a fixed part.
    """
    require(
        bool(np.all(latency_s > fixed_s)),
        f"latency_s = {latency_s}",
        f"must exceed the {np.max(fixed_s):.6g} s of the layers that are never narrower",
        "allow more time",
    )
    return np.minimum(1.0, np.sqrt((latency_s - fixed_s) / scaled_s))
