"""FedDrop: every device trains a new random sub-network, thinned to its capacity."""

import dataclasses
import functools
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Task, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.data.batches import DeviceData
from fedjax_het.fleet.device import Fleet
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block
from fedjax_het.problem import Problem

# Largest dropout rate; it keeps about one unit in a hundred.
MAX_RATE = 0.99


class ThinCost(NamedTuple):
    """Prices of a network whose hidden units are kept with probability (or in share) `keep`.

    A contraction between two thinned layers costs `keep_in * keep_out` of the full contraction.
    Biases and norms scale with their own layer only.

    Attributes:
      forward_flops, input_grad_flops, weight_grad_flops: float64[L], full prices per sample.
      matrix_bytes: float64[L], bytes of tensors with two or more axes.
      vector_bytes: float64[L], bytes of the other tensors.
      stats_bytes: float64[L], bytes of running statistics.
      heads_bytes: bytes of the exit heads, which are downloaded with every model and never thinned.
      uploads_stats: whether running statistics are sent to the server.
    """

    forward_flops: np.ndarray
    input_grad_flops: np.ndarray
    weight_grad_flops: np.ndarray
    matrix_bytes: np.ndarray
    vector_bytes: np.ndarray
    stats_bytes: np.ndarray
    heads_bytes: int
    uploads_stats: bool

    def step_flops(self, keep: np.ndarray) -> np.ndarray:
        """FLOPs per sample of a training step.

        Args:
          keep: kept share of each block's output units (1 for the last block), float64[..., L].
        """
        flops = self.forward_flops + self.input_grad_flops + self.weight_grad_flops
        flops = flops - np.eye(len(flops))[0] * self.input_grad_flops
        return np.sum(flops * _inputs(keep) * keep, axis=-1)

    def download_bytes(self, keep: np.ndarray) -> np.ndarray:
        """Bytes of a downloaded sub-network, statistics and heads; `keep` as in `step_flops`."""
        matrices = self.matrix_bytes * _inputs(keep) * keep
        vectors = (self.vector_bytes + self.stats_bytes) * keep
        return np.ceil(np.sum(matrices + vectors, axis=-1) + self.heads_bytes)

    def upload_bytes(self, keep: np.ndarray) -> np.ndarray:
        """Bytes that a client uploads; `keep` as in `step_flops`."""
        matrices = self.matrix_bytes * _inputs(keep) * keep
        vectors = (self.vector_bytes + self.stats_bytes * self.uploads_stats) * keep
        return np.ceil(np.sum(matrices + vectors, axis=-1))


def _inputs(keep: np.ndarray) -> np.ndarray:
    """Kept share of each block's input units, the output units of the block before it."""
    return np.concatenate([np.ones_like(keep[..., :1]), keep[..., :-1]], axis=-1)


def thin_cost(problem: Problem) -> ThinCost:
    """Prices of the problem's model, separated by how they scale."""
    shapes = problem.model.shapes.params["blocks"]

    def total(block: PyTree, matrices: bool) -> float:
        leaves = [x for x in jax.tree.leaves(block) if (x.ndim >= 2) == matrices]
        return float(sum(x.size * x.dtype.itemsize for x in leaves))

    cost = problem.cost
    return ThinCost(
        cost.forward_flops,
        cost.input_grad_flops,
        cost.weight_grad_flops,
        np.asarray([total(block, True) for block in shapes]),
        np.asarray([total(block, False) for block in shapes]),
        cost.stats_bytes.astype(np.float64),
        cost.download_bytes() - int((cost.param_bytes + cost.stats_bytes).sum()),
        cost.uploads_stats,
    )


def capacity_rate(cost: ThinCost, dropped: np.ndarray, capacity: float) -> float:
    """The smallest dropout rate p whose expected sub-network costs `capacity` of the full network.

    Args:
      cost: prices of the network.
      dropped: blocks whose output units are dropped, bool[L].
      capacity: share kappa of the full training cost.

    Returns:
      The rate p in [0, MAX_RATE]; MAX_RATE if no rate suffices.
    """

    def excess(rate: float) -> float:
        share = cost.step_flops(np.where(dropped, 1.0 - rate, 1.0))
        return float(share / cost.step_flops(np.ones(len(dropped))) - capacity)

    if excess(0.0) <= 1e-12:
        return 0.0
    if excess(MAX_RATE) >= 0:
        return MAX_RATE
    return float(brentq(excess, 0.0, MAX_RATE, xtol=1e-12))


def latency_rate(latency_s: float, fixed_s: float, scaled_s: float) -> float:
    r"""The smallest p that meets a round latency: $T_{fix} + (1-p)^2 T_{scaled} \le T$.

    Args:
      latency_s: latency T of a round in seconds.
      fixed_s: seconds of the layers that are never thinned (the paper: convolutions).
      scaled_s: seconds of the fully connected layers at full width.

    Returns:
      The rate p in [0, 1); `InputError` if T does not exceed the fixed part.
    """
    require(
        latency_s > fixed_s,
        f"latency_s = {latency_s}",
        f"must exceed the {fixed_s:.6g} s of the layers that are never thinned",
        "allow more time",
    )
    if latency_s >= fixed_s + scaled_s:
        return 0.0
    return 1.0 - float(np.sqrt((latency_s - fixed_s) / scaled_s))


def thinned(model: BlockModel, factors: PyTree) -> BlockModel:
    """The model with the output units of its blocks multiplied by `factors`.

    Args:
      model: model of L blocks.
      factors: dictionary from block index (as text) to float32[channels]: 0 drops a unit, 1/(1-p)
        keeps its scale of the evaluation (inverted dropout).
    """

    def scaled(block: Block, factor: jax.Array) -> Block:
        def apply(params: PyTree, stats: PyTree, x: jax.Array, **mode: Any) -> Any:
            y, stats = block.apply(params, stats, x, **mode)
            return y * jnp.broadcast_to(factor, y.shape).astype(y.dtype), stats

        return block._replace(apply=apply)

    blocks = tuple(
        scaled(block, factors[str(b)]) if str(b) in factors else block
        for b, block in enumerate(model.blocks)
    )
    return dataclasses.replace(model, blocks=blocks)


@register
def feddrop(
    problem: Problem,
    *,
    scope: str = "all_hidden",
    capacity: np.ndarray | None = None,
    latency_s: float | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""Federated dropout with a rate per device: random thin sub-networks, re-drawn every round.

    A hidden unit is kept with probability $1 - p_k$ and then scaled by $1/(1-p_k)$. Dropped units
    have no gradient, so the server completes every sub-network with the old values and averages all
    clients: $w \leftarrow w - \sum_k \rho_k (m_k \odot \Delta_k)$. With all $p_k = 0$ it is FedAvg.

    The clock charges the FLOPs and bytes of the drawn sub-network. The computation runs at full
    width with zeros, so it takes as much wall time as FedAvg. For the same reason weight decay and
    running statistics also change dropped units, and a device must have the memory for the whole
    network.

    In a fleet whose devices are re-drawn, rates follow the devices of the round.

    Args:
      problem: model, data and fleet.
      scope: thinned blocks: "all_hidden", every block but the last, or "fc", only blocks whose
        output is a vector.
      capacity: share kappa of the full training cost that each client affords; None for the speed
        relative to the fastest device.
      latency_s: latency of a round in seconds that determines the rates instead of a FLOP budget
        (compute and both transfers of the thinned layers scale with (1-p)^2); needs scope "fc".
      **training: fields of `TrainingOptions`.

    References:
      Wen, Jeon and Huang, *Federated Dropout: A Simple Approach for Enabling Federated Learning on
      Resource Constrained Devices*, IEEE WCL 2022 (arXiv 2109.15258). Budgets in FLOPs and the
      merge rule are our interpretation.
    """
    options = TrainingOptions.parse(training)
    require_known(scope, ("all_hidden", "fc"), "scope")
    require(
        latency_s is None or (scope == "fc" and capacity is None),
        f"latency_s = {latency_s} with scope = {scope!r}",
        "the latency rule is that of thinned fully connected layers",
        "set scope='fc' and leave capacity out",
    )
    parts.require_memory(problem, options, 0)
    model = problem.model
    shapes = model.activation_shapes(1)
    dropped = np.asarray([len(s.shape) == 2 or scope == "all_hidden" for s in shapes])
    dropped[-1] = False
    require(
        bool(dropped.any()),
        f"model {model.name!r} with scope = {scope!r}",
        "has no hidden layer to thin",
        "use a model with hidden layers, or scope='all_hidden'",
    )
    cost = thin_cost(problem)

    # A constant fleet is the same object in every round.
    @functools.lru_cache(maxsize=1)
    def rates(fleet: Fleet) -> np.ndarray:
        if latency_s is None:
            return _capacity_rates(fleet, cost, dropped, capacity)
        samples = options.samples(problem.data.sizes, options.steps(problem.data.sizes))
        return _latency_rates(fleet, samples, cost, dropped, latency_s)

    rates(problem.fleet.at(0))

    @jax.jit
    def draw(key: jax.Array, clients: jax.Array, keep: jax.Array) -> dict[str, jax.Array]:
        def one(client: jax.Array, keep: jax.Array) -> dict[str, jax.Array]:
            own = jax.random.fold_in(key, client)
            return {
                str(b): jax.random.bernoulli(jax.random.fold_in(own, b), keep, shapes[b].shape[-1:])
                for b in np.flatnonzero(dropped).tolist()
            }

        return jax.vmap(one)(clients, keep)

    def tasks(situation: Situation) -> Plan:
        clients, fleet = situation.clients, problem.fleet.at(situation.round)
        keep = (1.0 - rates(fleet)[clients]).astype(np.float32)
        kept = jax.device_get(draw(situation.key, jnp.asarray(clients, jnp.int32), keep))
        shares = np.ones((len(clients), model.num_blocks))
        for b, units in kept.items():
            # A layer that lost all its units is charged for one unit, so that no task is free.
            shares[:, int(b)] = np.maximum(np.mean(units, axis=1), 1.0 / units.shape[1])
        sizes = problem.data.sizes[clients]
        timing = fleet.timing(
            clients,
            cost.step_flops(shares) * options.samples(sizes, options.steps(sizes)),
            cost.download_bytes(shares),
            cost.upload_bytes(shares),
            situation.now_s,
            situation.rng,
        )
        factors = {b: units / keep[:, None] for b, units in kept.items()}
        return parts.plan_tasks(problem, options, situation, rows=factors, timing=timing)

    def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        train = options.local_update(problem, model=thinned(model, task.row))
        return train(route, start, data, task)

    return Algorithm(
        name="feddrop",
        init=parts.stateless,
        plan=Schedule(tasks),
        mask=None,
        local=local,
        merge=masked_mean(),
        update=parts.replace,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        paces=Paces(overlap=True),
    )


def _capacity_rates(
    fleet: Fleet, cost: ThinCost, dropped: np.ndarray, capacity: np.ndarray | None
) -> np.ndarray:
    """Rate of each client from its share of the full training cost, float64[n]."""
    speed = fleet.flops_per_s / np.max(fleet.flops_per_s)
    kappa = speed if capacity is None else np.asarray(capacity, np.float64)
    require(
        kappa.shape == speed.shape and bool(np.all((kappa > 0) & (kappa <= 1))),
        f"capacity of shape {kappa.shape} from {np.min(kappa)} to {np.max(kappa)}",
        f"must be one value in (0, 1] for each of the {len(speed)} clients",
        "divide the devices' speeds by the speed that affords the full model",
    )
    values, index = np.unique(kappa, return_inverse=True)
    return np.asarray([capacity_rate(cost, dropped, value) for value in values])[index]


def _latency_rates(
    fleet: Fleet, samples: np.ndarray, cost: ThinCost, dropped: np.ndarray, latency_s: float
) -> np.ndarray:
    """Rate of each client from the times of the fixed layers and the thinned layers, float64[n]."""
    scaled = np.arange(len(dropped)) >= np.flatnonzero(dropped)[0]
    every = cost.forward_flops + cost.input_grad_flops + cost.weight_grad_flops
    sent = cost.matrix_bytes + cost.vector_bytes + cost.stats_bytes * cost.uploads_stats
    received = cost.matrix_bytes + cost.vector_bytes + cost.stats_bytes

    def seconds(part: np.ndarray) -> np.ndarray:
        down_s = np.sum(received[part]) / fleet.downlink_bytes_per_s
        up_s = np.sum(sent[part]) / fleet.uplink_bytes_per_s
        return samples * np.sum(every[part]) / fleet.flops_per_s + down_s + up_s

    heads_s = cost.heads_bytes / fleet.downlink_bytes_per_s
    fixed_s, scaled_s = seconds(~scaled) + heads_s + 2 * fleet.latency_s, seconds(scaled)
    return np.asarray(
        [latency_rate(latency_s, float(a), float(b)) for a, b in zip(fixed_s, scaled_s)]
    )
