"""FIARSE: every device trains the largest weights of the model, by their magnitude."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Count
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import Sums, masked_mean
from fedjax_het.contract.algorithm import (
    Aggregator,
    Algorithm,
    Chunk,
    ClientResult,
    Merged,
    Task,
    Variables,
)
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.contract.submodels import SubModels
from fedjax_het.data.batches import DeviceData
from fedjax_het.fleet.cost import price
from fedjax_het.local.importance import effective_weights, kth_largest
from fedjax_het.models.weights import layer_parameters
from fedjax_het.problem import Problem

# Tolerance for rounding, so that a device of speed 1/4 affords the size 1/4.
_SLACK = 1e-9


class SubNetworks(NamedTuple):
    """The sub-networks of a model of parameters theta, one for every size; `Plan.shared`.

    Attributes:
      threshold: smallest magnitude of each size's weights, float32[sizes], rising.
      levels: number of sizes whose sub-network holds each weight, int8, one array per prunable
        tensor of the blocks, in the order of their leaves.
    """

    threshold: jax.Array
    levels: list[jax.Array]


class Pruning(NamedTuple):
    """The prunable part of a model, and the numbers of weights that each size holds.

    Attributes:
      structure: shapes of the parameters.
      prunable: whether each tensor of the blocks may be pruned, see `layer_parameters`.
      weights: number N of prunable weights.
      counts: number of weights of each size, int64[sizes].
    """

    structure: PyTree
    prunable: PyTree
    weights: int
    counts: np.ndarray

    def leaves(self, params: PyTree) -> list[Any]:
        """The prunable tensors of parameters."""
        chosen = jax.tree.leaves(self.prunable)
        found = zip(jax.tree.leaves(params["blocks"]), chosen, strict=True)
        return [leaf for leaf, keep in found if keep]

    def changed(self, params: PyTree, leaves: Sequence[Any]) -> PyTree:
        """The parameters with these prunable tensors."""
        new = iter(leaves)
        blocks = jax.tree.map(
            lambda leaf, prune: next(new) if prune else leaf, params["blocks"], self.prunable
        )
        return {**params, "blocks": blocks}

    def sub_networks(self, params: PyTree) -> SubNetworks:
        """The sub-networks of these parameters; traced."""
        sizes = [jnp.abs(leaf) for leaf in self.leaves(params)]
        threshold = kth_largest(sizes, self.counts.astype(np.int32))
        held = [sum((leaf >= value).astype(jnp.int8) for value in threshold) for leaf in sizes]
        return SubNetworks(threshold, held)

    def mask(self, shared: SubNetworks, level: jax.Array) -> PyTree:
        """Mask of the sub-network of a size; heads after blocks do not train."""
        everything = jax.tree.map(lambda _: jnp.asarray(True), self.structure["blocks"])
        held = [leaf > level.astype(jnp.int8) for leaf in shared.levels]
        heads = jax.tree.map(lambda _: jnp.asarray(False), self.structure["exits"])
        return self.changed({"blocks": everything, "exits": heads}, held)


def pruning(problem: Problem, sizes: Sequence[float]) -> Pruning:
    """The prunable part of the problem's model; `InputError` if there is none."""
    structure = problem.model.shapes.params
    prunable = layer_parameters(structure["blocks"])
    empty = Pruning(structure, prunable, 0, np.zeros(0, np.int64))
    weights = sum(leaf.size for leaf in empty.leaves(structure))
    require(
        weights > 0,
        f"model {problem.model.name!r}",
        "has no layer of weights to prune",
        "use a model with linear layers or convolutions",
    )
    counts = np.asarray([max(int(size * weights + _SLACK), 1) for size in sizes], np.int64)
    return empty._replace(weights=weights, counts=counts)


@register(options=UniformTraining)
def fiarse(
    problem: Problem,
    *,
    sizes: Sequence[float] = (1, 1 / 4, 1 / 16, 1 / 64),
    levels: Sequence[Count] | None = None,
    holders: Literal["mask", "nonzero"] = "mask",
    flops: Literal["dense", "ideal"] = "dense",
    server_learning_rate: float = 1.0,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""Importance-aware sub-models: a device of size s trains the s N largest weights of the model.

    In every round, the sub-network of size s has the $k = \lfloor s N \rfloor$ weights and biases
    of convolutions, linear layers and embeddings with the largest magnitude over all layers; norms
    belong to every sub-network. The smallest of these magnitudes is the threshold $\tau$ of the
    whole local training, which computes with $\theta 1[|\theta| \ge \tau]$ and moves weights by
    `effective_weights`' gradient. A weight that falls below $\tau$ meanwhile is pruned as well, and
    gets no gradient. The server moves every weight by the mean update of the clients that hold it:
    $w \leftarrow w + \eta_g \sum_i m_i \Delta_i / \sum_i m_i$.

    With the only size 1 it is not FedAvg, for the gradient keeps its factor (up to 1.5). Weights of
    equal magnitude are held together, so a sub-network may be larger than k, as with biases that
    begin with zero.

    Evaluations measure the sub-network of every size as "size_<s>".

    The clock charges 4 bytes per held weight and a bit per prunable weight for their places, in
    both directions, but never more than the whole model. A sparse network without structure does
    not save time on most devices, and none here: a device pays the FLOPs and needs the memory of
    the whole network, unless `flops` says otherwise.

    Args:
      problem: model, data and fleet.
      sizes: sizes s of the sub-networks, shares in (0, 1], falling.
      levels: index of each client's size in `sizes`. None gives every client the largest size that
        is not above its speed relative to the fastest, as the devices are in round 0, or else the
        smallest size.
      holders: clients over which the mean of a weight is taken: those whose "mask" holds it, or,
        as in the author's code, those whose update of it is "nonzero".
      flops: FLOPs of a task: "dense", those of the whole network, or "ideal", in proportion to the
        size, as if a device skipped every pruned weight.
      server_learning_rate: step size eta_g of the server. Running statistics are averaged without
        it (the author's code has it there too; the values agree for 1).
      **training: fields of `UniformTraining`.

    References:
      Wu et al., *FIARSE: Model-Heterogeneous Federated Learning via Importance-Aware Submodel
      Extraction*, NeurIPS 2024, and the author's code. Sizes by speed, bytes and FLOPs are our
      choices.
    """
    options = UniformTraining.parse(training)
    names = [f"size_{size:g}" for size in sizes]
    require(
        0 < len(sizes) < 128
        and all(0 < size <= 1 for size in sizes)
        and all(a > b for a, b in itertools.pairwise(sizes))
        and len({*names}) == len(names),
        f"sizes = {sizes}",
        "must be different shares in (0, 1], the largest first",
        "use (1, 0.25)",
    )
    require_known(holders, ("mask", "nonzero"), "holders")
    require_known(flops, ("dense", "ideal"), "flops")
    require(
        np.isfinite(server_learning_rate) and server_learning_rate > 0,
        f"server_learning_rate = {server_learning_rate}",
        "must be positive and finite",
        "use 1",
    )
    parts.require_memory(problem, options, 0)
    level = _levels(problem, sizes, levels)
    net = pruning(problem, sizes)
    sub_networks = jax.jit(net.sub_networks)
    cost = problem.cost
    saved = _saved_bytes(net)

    def plan(state: PyTree, variables: Variables, situation: Situation) -> tuple[Plan, PyTree]:
        clients = situation.clients
        own = level[clients]
        held = problem.data.sizes[clients]
        samples = options.samples(held, options.steps(held))
        share = np.asarray(sizes, np.float64)[own] if flops == "ideal" else 1.0
        timing = price(
            cost,
            problem.fleet.at(situation.round),
            clients,
            0,
            None,
            samples,
            situation.now_s,
            situation.rng,
            flops=samples * cost.step_flops() * share,
            bytes_down=cost.download_bytes() - saved[own],
            bytes_up=cost.upload_bytes() - saved[own],
        )
        tasks = parts.plan_tasks(
            problem, options, situation, rows={"level": own.astype(np.int32)}, timing=timing
        )
        return tasks._replace(shared=sub_networks(variables.params)), state

    def mask(row: PyTree, shared: SubNetworks) -> PyTree:
        return net.mask(shared, jnp.asarray(row["level"]))

    def effective(params: PyTree, task: Task) -> PyTree:
        threshold = task.shared.threshold[task.row["level"]]
        leaves = [effective_weights(leaf, threshold) for leaf in net.leaves(params)]
        return net.changed(params, leaves)

    train = options.local_update(problem, effective=effective)

    def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        # A client holds its sub-network only, which matters to optimisers that look at norms.
        held = Variables(masks.apply(task.mask, start.params), start.stats)
        return train(route, held, data, task)

    def update(state: PyTree, variables: Variables, merged: Merged) -> tuple[PyTree, Variables]:
        params = jax.tree.map(
            lambda old, new: old + server_learning_rate * (new - old),
            variables.params,
            merged.variables.params,
        )
        return state, merged.variables._replace(params=params)

    @jax.jit
    def cut(params: PyTree) -> list[PyTree]:
        found, leaves = net.sub_networks(params), net.leaves(params)
        return [
            net.changed(params, [effective_weights(leaf, value) for leaf in leaves])
            for value in found.threshold
        ]

    def models(state: PyTree, variables: Variables) -> dict[str, tuple[Any, Variables]]:
        del state
        found = cut(variables.params)
        return {
            name: (problem.model, variables._replace(params=params))
            for name, params in zip(names, found, strict=True)
        }

    return Algorithm(
        name="fiarse",
        init=parts.stateless,
        plan=plan,
        mask=mask,
        local=local,
        merge=masked_mean() if holders == "mask" else _mean_of_moved(),
        update=parts.replace if server_learning_rate == 1 else update,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        paces=Paces(overlap=True),
        submodels=SubModels(models, tuple(names[i] for i in level)),
    )


def _levels(problem: Problem, sizes: Sequence[float], levels: Sequence[int] | None) -> np.ndarray:
    """Index of the size of every client, int64[n]."""
    n = problem.num_clients
    if levels is None:
        speed = problem.fleet.at(0).flops_per_s
        allowed = np.asarray(sizes)[None, :] <= (speed / np.max(speed))[:, None] * (1 + _SLACK)
        return np.where(allowed.any(axis=1), np.argmax(allowed, axis=1), len(sizes) - 1)
    given = np.asarray(levels)
    require(
        given.shape == (n,)
        and given.dtype.kind in "iu"
        and bool(np.all((given >= 0) & (given < len(sizes)))),
        f"levels of shape {given.shape} and type {given.dtype}",
        f"must be an index of the {len(sizes)} sizes for each of the {n} clients",
        "leave it out for sizes by speed",
    )
    return given.astype(np.int64)


def _saved_bytes(net: Pruning) -> np.ndarray:
    """Bytes of the model that a transfer of each size leaves out, int64[sizes]."""
    leaves = net.leaves(net.structure)
    dense = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    held = 4 * net.counts + -(-net.weights // 8)
    return np.maximum(dense - held, 0)


def _mean_of_moved() -> Aggregator:
    """The mean of every coordinate over the clients whose update of it is not zero."""
    inner = masked_mean()

    def init(state: PyTree, variables: Variables, mask_shapes: PyTree) -> Sums:
        del mask_shapes
        return inner.init(state, variables, variables.params)

    def add(acc: Sums, chunk: Chunk) -> Sums:
        moved = jax.tree.map(
            lambda keep, delta: keep if delta is None else delta != 0, chunk.mask, chunk.delta
        )
        return inner.add(acc, chunk._replace(mask=moved))

    return Aggregator(init, add, inner.finalize)
