r"""Split training with local losses, as one pass over the network with a stopped gradient.

    z = h(x)              blocks 0..cut, train mode
    client:  (1 - a) F(head(z), y) + a dCor(x, z)       trains blocks 0..cut and the head
    server:  F(g(stop_gradient(z')), y)                  trains blocks cut+1..L-1, on its own copy

F is the objective; z' is z, or z shuffled (`local.privacy`). No gradient passes the cut, so the
gradient of the sum of both losses is that of each loss on its own half, and both losses use the
weights before the step.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import ClientResult, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.data.batches import Batch, DeviceData, Pipeline
from fedjax_het.local.privacy import Privacy, distance_correlation
from fedjax_het.local.training import LocalUpdate, training_loop
from fedjax_het.models.base import BlockModel
from fedjax_het.objectives.objective import Objective

_OPEN = Privacy()
# The key of shuffling differs from those of dropout, which are fold_in(key, block).
_SHUFFLE = 2**20


def split_training(
    model: BlockModel,
    pipeline: Pipeline,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    max_batch: int,
    privacy: Privacy = _OPEN,
    server_reset: Literal["round", "batch"] = "round",
    proximal: float = 0.0,
) -> LocalUpdate:
    """The local update of a network that is cut after block `Task.row["cut"]`, int32.

    Args:
      model: model with exit heads, which serve as auxiliary heads.
      pipeline: preprocessing of the samples.
      optimizer: optimiser of both sides. It must treat every coordinate independently, as SGD and
        Adam do, so that one state over the whole network equals the two states of client and
        server.
      objective: objective of the problem, the loss of both sides.
      max_batch: largest number of samples in a mini-batch.
      privacy: options of the activations' protection; `Task.row["alpha"]`, float32, is the weight
        of a distance correlation.
      server_reset: interval after which the server's optimiser starts new: "round", as the
        client's, or "batch", as in DTFL's code, which reduces Adam's steps to signs.
      proximal: factor of the proximal term of both sides, see `training_loop`.

    Returns:
      A local update. `ClientResult.loss` is the sum of both losses; `info` has both.

    Raises:
      InputError: if `privacy` does not fit the model's samples or activations.
    """
    privacy.require_usable(model)
    last = model.num_blocks - 1
    measures = ["client_loss", "server_loss", *["correlation"] * privacy.correlates]

    def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        trained, frozen = masks.split(start.params, route)
        # The cut is static on a tier's own route, and traced if all tiers share a program.
        cut = task.row["cut"] if route.cut is None else route.cut

        def loss(
            params: PyTree, stats: PyTree, batch: Batch, key: jax.Array
        ) -> tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]:
            variables = Variables(masks.join(params, frozen), stats)
            zero = jnp.zeros((), jnp.float32)
            seen = {"client_loss": zero, "correlation": zero}

            def visit(b: int, z: jax.Array) -> jax.Array:
                if b == last or (route.cut is not None and b != route.cut):
                    return z
                here = jnp.equal(b, cut)
                outputs = model.apply_exit(variables, z, b, train=True, key=key)
                own = objective.mean(outputs, batch)
                seen["client_loss"] += jnp.where(here, own, 0.0)
                if privacy.correlates:
                    told = distance_correlation(batch.x, z, batch.weight, squared=privacy.squared)
                    seen["correlation"] += jnp.where(here, told, 0.0)
                sent = privacy.sent(jax.random.fold_in(key, _SHUFFLE), z)
                return jnp.where(here, jax.lax.stop_gradient(sent), z)

            outputs, stats = model.walk(
                variables, batch.x, visit, train=True, key=key, weight=batch.weight
            )
            server = objective.mean(outputs, batch)
            client = seen["client_loss"]
            if privacy.correlates:
                alpha = task.row["alpha"]
                client = (1.0 - alpha) * client + alpha * seen["correlation"]
            values = {**seen, "server_loss": server}
            return client + server, (stats, {name: values[name] for name in measures})

        return training_loop(
            pipeline,
            optimizer if server_reset == "round" else _reset_behind(optimizer, cut),
            objective,
            loss,
            max_batch,
            trained=trained,
            mask=None if task.mask is None else masks.split(task.mask, route)[0],
            stats=start.stats,
            data=data,
            task=task,
            measures=measures,
            proximal=proximal,
        )

    return local


def _reset_behind(
    optimizer: optax.GradientTransformation, cut: jax.Array | int
) -> optax.GradientTransformation:
    """The optimiser with a new state at every step for the blocks after `cut`."""

    def update(grads: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        kept, state = optimizer.update(grads, state, params)
        fresh, _ = optimizer.update(grads, optimizer.init(params), params)

        def behind(b: int, fresh: PyTree, kept: PyTree) -> PyTree:
            return jax.tree.map(lambda f, k: jnp.where(jnp.greater(b, cut), f, k), fresh, kept)

        blocks = zip(fresh["blocks"], kept["blocks"], strict=True)
        return {**kept, "blocks": tuple(behind(b, *pair) for b, pair in enumerate(blocks))}, state

    return optax.GradientTransformation(optimizer.init, update)
