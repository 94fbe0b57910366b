r"""Split training with local losses, as one pass over the network with a wall in it.

    z = h(x)              blocks 0..cut, train mode
    client:  (1 - a) CE(head(z), y) + a dCor(x, z)      trains blocks 0..cut and the head
    server:  CE(g(stop_gradient(z')), y)                 trains blocks cut+1..L-1, on its own copy

z' is z, or z with its patches shuffled. Nothing flows back through the wall, so the gradient of the
sum of both losses is that of each on its own half, and both see the weights from before the step.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import ClientResult, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.data.batches import Batch, DeviceData, Pipeline
from fedjax_het.local import distance_correlation, shuffle_channels, shuffle_patches
from fedjax_het.local.training import LocalUpdate, training_loop
from fedjax_het.models.base import BlockModel
from fedjax_het.objectives.classification import cross_entropy

Shuffle = Literal["none", "space", "channel"]


class Privacy(NamedTuple):
    """What the clients do to keep their samples to themselves.

    Attributes:
      squared: distance correlation of squared distances.
      correlation: whether any client uses it; its weight is `Task.row["alpha"]`.
      shuffle: "none"; "space" permutes patches of the map; "channel" permutes channels.
      patch: side of a patch.
    """

    correlation: bool = False
    squared: bool = False
    shuffle: Shuffle = "none"
    patch: int = 4


OPEN = Privacy()


def check_privacy(privacy: Privacy, model: BlockModel) -> None:
    """Raises `InputError` unless the model's activations can be treated so."""
    require_known(privacy.shuffle, ("none", "space", "channel"), "shuffle")
    require(privacy.patch >= 1, f"patch = {privacy.patch}", "must be at least 1", "use 4")
    require(
        not privacy.correlation or jnp.issubdtype(model.input_dtype, jnp.floating),
        f"dcor with model {model.name!r} of {jnp.dtype(model.input_dtype)} inputs",
        "the distance of two samples is that of their numbers, which symbols are not",
        "set dcor = 0",
    )
    flat = [z.shape for z in model.activation_shapes(1)[:-1] if len(z.shape) != 4]
    require(
        privacy.shuffle != "space" or not flat,
        f"shuffle = 'space' with activations of shapes {flat}",
        "needs maps [height, width, channels] after every block",
        "use shuffle = 'channel'",
    )


def split_training(
    model: BlockModel,
    pipeline: Pipeline,
    optimizer: optax.GradientTransformation,
    *,
    max_batch: int,
    privacy: Privacy = OPEN,
    server_reset: Literal["round", "batch"] = "round",
) -> LocalUpdate:
    """The local update; `Task.row` has `cut` int32 and, with correlation, `alpha` float32.

    Args:
      model: with exit heads, which serve as auxiliary heads.
      pipeline: how raw samples become inputs.
      optimizer: of either side; it must treat every coordinate on its own, as SGD and Adam do, so
        that one state over the whole network is the two states of client and server.
      max_batch: samples a mini-batch has room for.
      privacy: see `Privacy`.
      server_reset: "round": the server's state lasts as long as the client's; "batch": it is new
        at every batch, as in the authors' code, which makes Adam's steps signs.

    Returns:
      A local update. `ClientResult.loss` is the sum of both losses, `info` has either of them.
    """
    last = model.num_blocks - 1

    def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        trained, frozen = masks.split(start.params, route)
        # Static on a tier's own route, traced where all tiers share a program.
        cut = task.row["cut"] if route.cut is None else route.cut

        def objective(
            params: PyTree, stats: PyTree, batch: Batch, key: jax.Array
        ) -> tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]:
            variables = Variables(masks.join(params, frozen), stats)
            zero = jnp.zeros((), jnp.float32)
            parts = {"client_loss": zero, "correlation": zero}

            def wall(b: int, z: jax.Array) -> jax.Array:
                if b == last or (route.cut is not None and b != route.cut):
                    return z
                here = jnp.equal(b, cut)
                logits = model.apply_exit(variables, z, b, train=True, key=key)
                entropy = cross_entropy(logits, batch)
                parts["client_loss"] += jnp.where(here, entropy, 0.0)
                if privacy.correlation:
                    told = distance_correlation(batch.x, z, batch.weight, squared=privacy.squared)
                    parts["correlation"] += jnp.where(here, told, 0.0)
                return jnp.where(here, jax.lax.stop_gradient(_sent(privacy, key, z)), z)

            logits, stats = model.walk(variables, batch.x, wall, train=True, key=key)
            server = cross_entropy(logits, batch)
            client = parts["client_loss"]
            if privacy.correlation:
                alpha = task.row["alpha"]
                client = (1.0 - alpha) * client + alpha * parts["correlation"]
            told = {"correlation": parts["correlation"]} if privacy.correlation else {}
            measured = {"client_loss": parts["client_loss"], "server_loss": server, **told}
            return client + server, (stats, measured)

        measures = ["client_loss", "server_loss", *["correlation"] * privacy.correlation]
        return training_loop(
            pipeline,
            optimizer if server_reset == "round" else _reset_behind(optimizer, cut),
            objective,
            max_batch,
            trained=trained,
            mask=None if task.mask is None else masks.split(task.mask, route)[0],
            stats=start.stats,
            data=data,
            task=task,
            measures=measures,
        )

    return local


def _sent(privacy: Privacy, key: jax.Array, z: jax.Array) -> jax.Array:
    """What the server is given of `z`."""
    if privacy.shuffle == "none":
        return z
    # Apart from the keys of dropout, which are fold_in(key, block).
    key = jax.random.fold_in(key, 2**20)
    if privacy.shuffle == "channel":
        return shuffle_channels(key, z)
    return shuffle_patches(key, z, privacy.patch)


def _reset_behind(
    optimizer: optax.GradientTransformation, cut: jax.Array | int
) -> optax.GradientTransformation:
    """The optimiser with a new state at every step for the blocks behind `cut`."""

    def update(grads: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        kept, state = optimizer.update(grads, state, params)
        fresh, _ = optimizer.update(grads, optimizer.init(params), params)

        def behind(b: int, fresh: PyTree, kept: PyTree) -> PyTree:
            return jax.tree.map(lambda f, k: jnp.where(jnp.greater(b, cut), f, k), fresh, kept)

        blocks = zip(fresh["blocks"], kept["blocks"], strict=True)
        return {**kept, "blocks": tuple(behind(b, *pair) for b, pair in enumerate(blocks))}, state

    return optax.GradientTransformation(optimizer.init, update)
