r"""Training at several exits at once: every head learns from the labels and from the other heads.

With the heads $1..d$ of a client, their outputs $z_i$ and $p_i = \mathrm{softmax}(z_i)$::

    sum_i F(z_i, y)  +  c / (d - 1)  sum_i sum_{j != i} KL( p_j || p_i )

F is the objective. The teacher $p_j$ of a pair is constant. A client with one head has no second
term.
"""

from collections.abc import Callable, Sequence

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
    distill: bool,
    proximal: float = 0.0,
    linear: Callable[[Task], PyTree] | None = None,
) -> LocalUpdate:
    """The local update of a sub-model with the heads of all of `exits` up to `Task.exit`.

    `Task.shared["distillation"]`, float32, is the factor c of the distillation.

    Args:
      model: model with exit heads.
      pipeline: preprocessing of the samples.
      optimizer: optimiser of the client; its state is new every round.
      objective: objective of the problem; with logits as outputs if `distill`.
      exits: blocks whose heads give losses, in ascending order. A route that is not the full one
        has its own among them as `exit`, and all before as `heads`.
      max_batch: largest number of samples in a mini-batch.
      distill: whether there is the second term.
      proximal: factor of the proximal term, see `training_loop`.
      linear: function of the task for the gradient of a linear term, see `local_training`.

    Returns:
      A local update. `ClientResult.loss` is the sum of both terms.
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
            value = jnp.sum(jnp.where(held, own, 0.0))
            if distill and len(blocks) > 1:
                told = mutual_distillation(outputs, held, batch.weight)
                value = value + task.shared["distillation"] * told
            return value, (stats, {})

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
