r"""Training at several exits at once: every head learns from the labels and from other heads.

With the heads $1..d$ of a client, their outputs $z_i$ and $p_i = \mathrm{softmax}(z_i)$, `mutual`
is the loss of DepthFL (Kim et al., ICLR 2023) and `from_last` that of ScaleFL (Ilhan et al., CVPR
2023)::

    sum_i F(z_i, y)  +  c / (d - 1)  sum_i sum_{j != i} KL( p_j || p_i )

    sum_i 2 i / (d (d + 1))  ( F(z_i, y)  +  gamma T^2 KL_T( p_d || p_i ) )

F is the objective. Teachers, the first of a pair, are constant. A client with one head has no
second term.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import ClientResult, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.data.batches import Batch, DeviceData, Pipeline
from fedjax_het.local.distillation import distillation
from fedjax_het.local.training import LocalUpdate, training_loop
from fedjax_het.models.base import BlockModel
from fedjax_het.objectives.objective import Objective


class Heads(NamedTuple):
    """What the h heads of a route give for a mini-batch, in ascending order of depth.

    Attributes:
      losses: objective of each, float32[h].
      outputs: outputs of each, float32[h, batch, ..., classes].
      held: whether the client has each head, bool[h]; the first d are True.
      weight: weight of each sample, float32[batch], 0 for padding.
    """

    losses: jax.Array
    outputs: jax.Array
    held: jax.Array
    weight: jax.Array


# The loss of a client from its heads, float32 scalar.
Combine = Callable[[Heads, Task], jax.Array]


def summed(heads: Heads, task: Task) -> jax.Array:
    """The sum of the losses of the heads that the client has."""
    del task
    return jnp.sum(jnp.where(heads.held, heads.losses, 0.0))


def mutual(heads: Heads, task: Task) -> jax.Array:
    """The sum, and the factor `Task.shared["distillation"]` times `mutual_distillation`."""
    value = summed(heads, task)
    if len(heads.losses) == 1:
        return value
    told = mutual_distillation(heads.outputs, heads.held, heads.weight)
    return value + task.shared["distillation"] * told


def from_last(gamma: float, temperature: float) -> Combine:
    """The loss in which later heads weigh more, and the last one teaches all others.

    Args:
      gamma: factor of the distillation; with 0 the outputs need not be logits.
      temperature: temperature T of both softmaxes.
    """

    def combine(heads: Heads, task: Task) -> jax.Array:
        del task
        losses = heads.losses
        if gamma and len(losses) > 1:
            losses = losses + gamma * distillation_from_last(
                heads.outputs, heads.held, heads.weight, temperature
            )
        return jnp.sum(jnp.where(heads.held, head_weights(heads.held) * losses, 0.0))

    return combine


def head_weights(held: jax.Array) -> jax.Array:
    """Weights 2i / (d (d + 1)) of the heads i = 1..d that are held, bool[h]; 0 for the others."""
    place = jnp.cumsum(held.astype(jnp.float32))
    return jnp.where(held, place, 0.0) * (2.0 / (place[-1] * (place[-1] + 1.0)))


def distillation_from_last(
    outputs: jax.Array, held: jax.Array, weight: jax.Array, temperature: float
) -> jax.Array:
    r"""$T^2 KL_T(p_d \| p_i)$ of every head i before the last one that is held, d.

    Args:
      outputs: logits of the heads, float32[h, batch, ..., classes].
      held: whether the client has each head, bool[h]; the first d are True.
      weight: weight of each sample, float32[batch], 0 for padding.
      temperature: temperature T of both softmaxes.

    Returns:
      The weighted means over the samples, float32[h]; 0 for the last head and those that are not
      held. No gradient flows back through $p_d$.
    """
    last = jnp.sum(held.astype(jnp.int32)) - 1
    teacher = jax.lax.stop_gradient(outputs[last])
    told = jax.vmap(lambda student: distillation(student, teacher, weight, temperature))(outputs)
    return jnp.where(jnp.arange(len(held), dtype=jnp.int32) < last, told, 0.0)


def mutual_distillation(outputs: jax.Array, held: jax.Array, weight: jax.Array) -> jax.Array:
    r"""$\frac{1}{d - 1} \sum_i \sum_{j \ne i} KL(p_j \| p_i)$ over the heads that are held.

    Args:
      outputs: logits of the heads, float32[h, batch, ..., classes].
      held: whether the client has each head, bool[h]; d of them are True.
      weight: weight of each sample, float32[batch], 0 for padding.

    Returns:
      The weighted mean over the samples, float32 scalar; 0 for one head. No gradient flows back
      through the $p_j$.
    """
    teachers = jax.lax.stop_gradient(outputs)

    def against(student: jax.Array) -> jax.Array:
        return jax.vmap(lambda teacher: distillation(student, teacher, weight, 1.0))(teachers)

    told = jax.vmap(against)(outputs)
    pairs = held[:, None] & held[None, :] & ~jnp.eye(held.shape[0], dtype=bool)
    others = jnp.maximum(jnp.sum(held.astype(jnp.float32)) - 1.0, 1.0)
    return jnp.sum(jnp.where(pairs, told, 0.0)) / others


def exits_training(
    model: BlockModel,
    pipeline: Pipeline,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    exits: Sequence[int],
    max_batch: int,
    combine: Combine,
    proximal: float = 0.0,
    linear: Callable[[Task], PyTree] | None = None,
) -> LocalUpdate:
    """The local update of a sub-model with the heads of all of `exits` up to `Task.exit`.

    Args:
      model: model with exit heads.
      pipeline: preprocessing of the samples.
      optimizer: optimiser of the client; its state is new every round.
      objective: objective of the problem; with logits as outputs if `combine` distils.
      exits: blocks whose heads give losses, in ascending order. A route that is not the full one
        has its own among them as `exit`, and all before as `heads`.
      max_batch: largest number of samples in a mini-batch.
      combine: loss of a client from those of its heads: `summed`, `mutual` or `from_last(...)`.
      proximal: factor of the proximal term, see `training_loop`.
      linear: function of the task for the gradient of a linear term, see `local_training`.

    Returns:
      A local update. `ClientResult.loss` is the value of `combine`.
    """

    def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        trained, frozen = masks.split(start.params, route)
        mask = None if task.mask is None else masks.split(task.mask, route)[0]
        live = None if task.mask is None else masks.live_blocks(task.mask)
        blocks = tuple(exits) if route.exit is None else (*route.heads, route.exit)
        # On the full route there are the outputs of heads that this client does not have.
        held = jnp.asarray(blocks, jnp.int32) <= task.exit

        def loss(
            params: PyTree, stats: PyTree, batch: Batch, key: jax.Array
        ) -> tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]:
            outputs, stats = model.apply_exits(
                Variables(masks.join(params, frozen), stats),
                batch.x,
                train=True,
                key=key,
                first=route.first,
                live=live,
                weight=batch.weight,
                exits=blocks,
            )
            own = jnp.stack([objective.mean(each, batch) for each in outputs])
            return combine(Heads(own, outputs, held, batch.weight), task), (stats, {})

        return training_loop(
            pipeline,
            optimizer,
            objective,
            loss,
            max_batch,
            trained=trained,
            mask=mask,
            stats=start.stats,
            data=data,
            task=task,
            proximal=proximal,
            linear=None if linear is None else masks.split(linear(task), route)[0],
        )

    return local
