"""Sub-FedAvg: every client prunes the weights that it does not need, and trains what is left."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.client_memory import LAST_STEP, require_room, row_of
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Unlimited
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import (
    Aggregator,
    Algorithm,
    Chunk,
    ClientResult,
    Merged,
    Report,
    Task,
    Variables,
)
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.memory import Buffers, Memory
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.data.batches import DeviceData, gather, steps_per_epoch
from fedjax_het.fleet.cost import price
from fedjax_het.objectives.metric import Metric
from fedjax_het.problem import Problem

# The masks of a client: one bool array per weight tensor, in the order of the parameters.
Masks = list[jax.Array]


class State(NamedTuple):
    """What is known of the clients' masks.

    Attributes:
      masks: masks of all clients, bool[n, ...] per weight tensor; buffers of the merge, None while
        they are merged.
      kept: number of weights that each client has left, int64[n]; on the host, for prices.
    """

    masks: Any
    kept: np.ndarray


class Acc(NamedTuple):
    """Accumulator of a merge: the sums of the mean, and the masks of all clients."""

    sums: PyTree
    masks: Any


@dataclass(frozen=True)
class SubFedAvgTraining(UniformTraining):
    """`UniformTraining` with the five local epochs of the authors."""

    epochs: int = 5


@register(options=SubFedAvgTraining)
def sub_fedavg(
    problem: Problem,
    *,
    prune_share: float = 0.1,
    target: float = 0.3,
    least_accuracy: float = 0.5,
    least_distance: float = 1e-4,
    memory_bytes: Unlimited = 16e9,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""Sub-FedAvg with unstructured pruning: personal masks, and a mean over those who hold.

    Client k starts from the server's weights times its mask and trains them masked. After its first
    and after its last epoch, `candidate` is the mask without the smallest weights of each tensor.
    The client adopts the second candidate if the two differ by a Hamming distance above
    `least_distance` (the share of a tensor, mean over the tensors), its pruned network is right on
    more than `least_accuracy` of the client's samples, and the target is not reached. It never
    takes a weight back. Weights have two axes or more; biases and norms are not pruned. The server
    takes the mean of every weight over the clients that hold it after their training, and keeps a
    weight that no client of the cohort holds.

    Here a client measures the accuracy on its training samples, because clients need not have
    others; the authors use its test samples. The last adoption prunes to the target, or up to one
    weight per tensor more; the authors' limit of 5 % for it is left out, and the target is a share
    of the weights, not of all parameters. If a client has a single epoch, both candidates are the
    same and it prunes nothing.

    A transfer costs 4 bytes for every value left and a bit for every weight, or the whole model if
    that is less; an upload is priced by the mask before the training. Training costs the FLOPs of
    the whole network, since devices do not skip single weights, and a client below its target runs
    its samples forward once more. The simulation keeps a byte per weight and client, and trains the
    first epoch of such clients twice, which the clock does not count.

    The paper reports personal models, the client's pruned network after its training: the run
    options `client_eval` and `personal` record them as `personal_<metric>`.

    Args:
      problem: model, data and fleet; the objective has a metric "accuracy".
      prune_share: share of the weights left in a tensor that an adoption prunes, in [0, 1).
      target: share of all weights that are pruned in the end, in [0, 1).
      least_accuracy: accuracy that a pruned network must exceed, in [0, 1].
      least_distance: distance of the candidates that must be exceeded, in [0, 1].
      memory_bytes: limit of the bytes of all clients' masks.
      **training: fields of `SubFedAvgTraining`; `weighting="samples"` weighs the mean by samples.

    Returns:
      The algorithm. `info` has `mean_density`, the share of weights left, mean over all clients,
      and `adopted_clients`, the number of clients of the step that pruned.

    References:
      Vahidian, Morafah and Lin, *Personalized Federated Learning by Structured and Unstructured
      Pruning under Data Heterogeneity*, 2021; https://github.com/MMorafah/Sub-FedAvg.
    """
    for name, value in (("prune_share", prune_share), ("target", target)):
        require(0 <= value < 1, f"{name} = {value}", "must lie in [0, 1)", "use 0.1 and 0.3")
    for name, value in (("least_accuracy", least_accuracy), ("least_distance", least_distance)):
        require(0 <= value <= 1, f"{name} = {value}", "must lie in [0, 1]", "use 0.5 and 1e-4")
    options = SubFedAvgTraining.parse(training)
    require(
        options.epochs > 1 or options.local_steps is not None,
        f"epochs = {options.epochs}",
        "must be at least 2: a client compares its weights after the first and the last epoch",
        "use 5, the authors' number",
    )
    require(
        not problem.model.exits,
        f"model {problem.model.name!r} with {len(problem.model.exits)} exit heads",
        "sub_fedavg prunes the network that it trains, of which heads are no part",
        "leave the heads out (exits = False)",
    )
    accuracy = _accuracy(problem)
    parts.require_memory(problem, options, 0)
    like, n = problem.model.shapes.params, problem.num_clients
    shapes = _weights(like)
    total = sum(math.prod(leaf.shape) for leaf in shapes)
    require_room(problem, "sub_fedavg", memory_bytes, each=total)
    # Fewest weights that a client has left.
    least = total - math.floor(target * total + 1e-9)
    cost, last = problem.cost, problem.model.num_blocks - 1
    train = options.local_update(problem)

    def init(variables: Variables, key: Any) -> State:
        del variables, key
        return State([jnp.ones((n, *a.shape), bool) for a in shapes], np.full(n, total))

    def plan(state: State, variables: Variables, situation: Situation) -> tuple[Plan, State]:
        del variables
        clients = situation.clients
        sizes, kept = problem.data.sizes[clients], state.kept[clients]
        samples = options.samples(sizes, options.steps(sizes))
        measured = np.where((kept > least) & (prune_share > 0), sizes, 0)
        less = np.maximum(4 * (total - kept) - -(-total // 8), 0)
        timing = price(
            cost,
            problem.fleet.at(situation.round),
            clients,
            0,
            last,
            samples,
            situation.now_s,
            situation.rng,
            flops=samples * cost.step_flops() + measured * cost.forward_pass_flops(),
            bytes_down=cost.download_bytes() - less,
            bytes_up=cost.upload_bytes() - less,
        )
        return parts.plan_tasks(problem, options, situation, timing=timing), state

    def right(variables: Variables, data: DeviceData, task: Task, steps: jax.Array) -> jax.Array:
        """Accuracy on the samples of the first batches of an epoch, without augmentation."""
        pipeline = problem.data.pipeline._replace(augment=None)
        most = options.largest_batch(problem)

        def add(t: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            batch = gather(data, pipeline, task.client, t, task.batch, most, task.key)
            outputs, _ = problem.model.apply(variables, batch.x)
            value, weight = accuracy.measure(outputs, batch)
            weight = weight * batch.weight
            return sums[0] + jnp.sum(value * weight), sums[1] + jnp.sum(weight)

        zero = jnp.zeros((), jnp.float32)
        hits, count = jax.lax.fori_loop(0, steps, add, (zero, zero))
        return hits / jnp.where(count > 0, count, 1.0)

    def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        held: Masks = task.kept
        left = _count(held)
        spare = left - least
        share = jnp.minimum(prune_share, spare.astype(jnp.float32) / left.astype(jnp.float32))
        mask = _whole(like, held)
        masked = start._replace(params=masks.apply(mask, start.params))
        task = task._replace(mask=mask)
        epoch = steps_per_epoch(data.count[task.client], task.batch)
        # No steps for clients that have reached their target.
        early = jnp.where(share > 0, jnp.minimum(epoch, task.steps), 0)
        begun = train(route, masked, data, task._replace(steps=early, loop_steps=early))
        result = train(route, masked, data, task)
        first, final = (
            jax.tree.map(jnp.add, masked.params, each.delta) for each in (begun, result)
        )
        earlier, later = candidate(held, first, share), candidate(held, final, share)
        differ = (share > 0) & (distance(earlier, later) > least_distance)
        pruned = Variables(masks.apply(_whole(like, later), final), result.stats)
        exact = right(pruned, data, task, jnp.where(differ, epoch, 0))
        adopted = differ & (exact > least_accuracy)
        new = [jnp.where(adopted, b, a) for a, b in zip(held, later, strict=True)]
        own = masks.apply(_whole(like, new), final)
        # To the client's own network, which the merge takes at the weights that it holds.
        delta = jax.tree.map(jnp.subtract, own, start.params)
        info = {"kept": _count(new), "adopted": adopted}
        # The engine keeps numbers for results that wait, no bools.
        aux = jax.tree.map(lambda keep: keep.astype(jnp.int8), _whole(like, new))
        return result._replace(delta=delta, aux=aux, info=info)

    def observe(
        state: State, variables: Variables, report: Report
    ) -> tuple[State, Variables, dict[str, Any]]:
        kept, merged = state.kept.copy(), report.merged
        kept[report.plan.clients[merged]] = report.client_info["kept"][merged]
        info = {
            "mean_density": float(np.mean(kept)) / total,
            "adopted_clients": int(np.sum(report.client_info["adopted"][merged])),
        }
        return state._replace(kept=kept), variables, info

    return Algorithm(
        name="sub_fedavg",
        init=init,
        plan=plan,
        mask=None,
        local=local,
        merge=_merge(shapes),
        update=parts.replace,
        observe=observe,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        sends="the weights of a pruned network",
        paces=Paces(stop="a task ends with a measurement of the pruned network", overlap=LAST_STEP),
    )


def candidate(held: Masks, params: PyTree, share: jax.Array) -> Masks:
    r"""The masks without the smallest weights of each tensor, traced.

    Of m weights left in a tensor, those below the percentile `share` of their magnitudes are
    pruned: $\lceil (m - 1)\, share \rceil$, or fewer if several are equal.

    Args:
      held: masks.
      params: parameters after the training.
      share: share of the weights left that is pruned, float32[] in [0, 1).
    """

    def of(mask: jax.Array, weight: jax.Array) -> jax.Array:
        # The bits of floats that are not negative have the order of the floats; halving their range
        # is faster than sorting them.
        size = jax.lax.bitcast_convert_type(jnp.abs(weight), jnp.int32)
        most = jnp.sum(mask.astype(jnp.int32)) - 1
        place = jnp.ceil(most.astype(jnp.float32) * share).astype(jnp.int32)

        def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = low + (high - low) // 2
            enough = jnp.sum((mask & (size <= middle)).astype(jnp.int32)) > place
            return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

        limit, _ = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), jnp.int32(2**31 - 1)))
        return mask & (size >= limit)

    return [of(mask, weight) for mask, weight in zip(held, _weights(params), strict=True)]


def distance(one: Masks, other: Masks) -> jax.Array:
    """Hamming distance: the share of a tensor that differs, mean over the tensors; float32[]."""
    shares = [jnp.mean((a != b).astype(jnp.float32)) for a, b in zip(one, other, strict=True)]
    return jnp.mean(jnp.stack(shares))


def _weights(tree: PyTree) -> list[Any]:
    """The tensors that are pruned: weights, not biases or scales."""
    return [leaf for leaf in jax.tree.leaves(tree) if len(leaf.shape) >= 2]


def _whole(like: PyTree, held: Masks) -> PyTree:
    """The mask of all parameters; those that are never pruned have a single True."""
    own = iter(held)
    return jax.tree.map(lambda a: next(own) if len(a.shape) >= 2 else jnp.asarray(True), like)


def _count(held: Masks) -> jax.Array:
    """Number of weights left, int32[]."""
    return jnp.sum(jnp.stack([jnp.sum(mask.astype(jnp.int32)) for mask in held]))


def _accuracy(problem: Problem) -> Metric:
    """The metric "accuracy" of the objective; `InputError` if it has none."""
    objective = problem.objective
    found = [m for m in objective.metrics if m.name == "accuracy" and m.kind == "mean"]
    require(
        bool(found),
        f"objective {objective.name!r} with the metrics {[m.name for m in objective.metrics]}",
        "has no accuracy, from which the clients of sub_fedavg decide whether they prune",
        'use an objective of classes with metrics=("accuracy",)',
    )
    return found[0]


def _merge(shapes: list[Any]) -> Aggregator:
    """The mean over the clients that hold a weight, and the masks of all clients."""
    mean = masked_mean()

    def init(state: State, variables: Variables, mask_shapes: PyTree) -> Acc:
        del mask_shapes
        # Masks of one client: whole tensors, and a single value where nothing is pruned.
        masked = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape if a.ndim >= 2 else (), bool), variables.params
        )
        return Acc(mean.init((), variables, masked), state.masks)

    def add(acc: Acc, chunk: Chunk) -> Acc:
        mask = jax.tree.map(lambda keep: keep != 0, chunk.aux)
        new = [leaf for leaf in jax.tree.leaves(mask) if leaf.ndim > 1]
        at = jnp.where(chunk.weight > 0, chunk.client, acc.masks[0].shape[0])
        kept = [
            every.at[at].set(own, mode="drop") for every, own in zip(acc.masks, new, strict=True)
        ]
        return Acc(mean.add(acc.sums, chunk._replace(mask=mask)), kept)

    def finalize(acc: Acc, variables: Variables, shared: PyTree) -> Merged:
        return mean.finalize(acc.sums, variables, shared)

    like = [jax.ShapeDtypeStruct(a.shape, bool) for a in shapes]
    buffers = Buffers(
        lambda acc: acc.masks, lambda state, kept: state._replace(masks=kept), Memory(row_of, like)
    )
    return Aggregator(init, add, finalize, buffers)
