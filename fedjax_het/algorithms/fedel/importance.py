r"""What a tensor is worth to a client: its own probe, blended with how the global model moved.

Local (ElasticTrainer; specification 1.7): on one mini-batch, with gradient $g_0$ at $w$, take one
real optimiser step $\Delta w$ on all tensors and the gradient $g_1$ at $w + \Delta w$; then
$I_k \propto -\sum g_{1,k} \Delta w_k$, divided by the largest magnitude. The step is thrown away.

Global (FedEL; specification 3): $\sum (w_{r+1,k} - w_{r,k})^2$ over a tensor, divided by the
largest; the learning rate of the paper's formula cancels. Only these K numbers need to be sent.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.data.batches import DeviceData, Pipeline, gather
from fedjax_het.models.base import BlockModel
from fedjax_het.objectives.classification import cross_entropy

Array = jax.Array
Probe = Literal["full", "exit"]


def per_tensor(index: tuple[PyTree, ...], blocks: tuple[PyTree, ...]) -> Array:
    """Puts one number per tensor into the order of `TensorTimes`.

    Args:
      index: `TensorTimes.index`.
      blocks: scalars, one per parameter tensor, in the structure of `params["blocks"]`.

    Returns:
      float32[K].
    """
    places = jax.tree.leaves(index)
    values = jax.tree.leaves(blocks)
    order = sorted(range(len(places)), key=lambda i: places[i])
    return jnp.stack([values[i] for i in order])


def normalise(raw: Array) -> Array:
    """Divides by the largest magnitude along the last axis; zeros stay zeros."""
    largest = jnp.max(jnp.abs(raw), axis=-1, keepdims=True)
    return raw / jnp.where(largest > 0, largest, 1.0)


def step_products(
    loss: Callable[[PyTree], Array], optimizer: optax.GradientTransformation, params: PyTree
) -> PyTree:
    r"""$\sum g_1 \Delta w$ of every tensor: one real step $\Delta w$, and the gradient after it.

    The optimiser's state is new and thrown away, as is the step: nothing has to be restored.

    Args:
      loss: params -> scalar.
      optimizer: the client's optimiser.
      params: where the step starts.

    Returns:
      Scalars in the structure of `params`; negative for a tensor whose step reduces the loss.
    """
    step, _ = optimizer.update(jax.grad(loss)(params), optimizer.init(params), params)
    after = jax.grad(loss)(optax.apply_updates(params, step))
    return jax.tree.map(lambda g, d: jnp.sum(g * d), after, step)


def local_probe(
    model: BlockModel,
    pipeline: Pipeline,
    optimizer: optax.GradientTransformation,
    index: tuple[PyTree, ...],
    *,
    max_batch: int,
    path: Probe = "full",
) -> Callable[..., Array]:
    """The probe of one client, to be mapped over a cohort.

    Args:
      model: the network.
      pipeline: how raw samples become inputs.
      optimizer: the client's optimiser.
      index: `TensorTimes.index`.
      max_batch: samples a mini-batch has room for.
      path: "full" takes the loss at the network's own head, "exit" at the client's window.

    Returns:
      `(variables, data, client, batch, exit, key) -> float32[K]`, normalised local importance;
      zero behind the exit. A probe that is not finite counts as zero everywhere.
    """

    def probe(
        variables: Variables, data: DeviceData, client: Array, batch: Array, exit: Array, key: Array
    ) -> Array:
        batch_key, noise_key = jax.random.split(key)
        samples = gather(data, pipeline, client, jnp.int32(0), batch, max_batch, batch_key)

        def loss(params: PyTree) -> Array:
            here = Variables(params, variables.stats)
            if path == "full":
                logits, _ = model.apply(here, samples.x, train=True, key=noise_key)
            else:
                every, _ = model.apply_exits(here, samples.x, train=True, key=noise_key)
                logits = every[exit]
            return cross_entropy(logits, samples)

        products = step_products(loss, optimizer, variables.params)
        raw = -per_tensor(index, products["blocks"])
        return normalise(jnp.where(jnp.all(jnp.isfinite(raw)), raw, 0.0))

    return probe


def movement(index: tuple[PyTree, ...], old: Variables, new: Variables) -> Array:
    r"""$\sum (\Delta w_k)^2$ of every tensor between two global models, float32[K]."""
    squares = jax.tree.map(
        lambda a, b: jnp.sum(jnp.square(b - a)), old.params["blocks"], new.params["blocks"]
    )
    return per_tensor(index, squares)


def blend(local: Array, moved: Array, beta: float, adaptive: bool) -> Array:
    r"""$\beta I_{loc} + (1 - \beta) I_g$, both divided by their largest magnitude.

    Args:
      local: float32[n, K], normalised.
      moved: float32[K], from `movement`; all zero before the first merge, when only the local
        signal counts.
      beta: weight of the local signal.
      adaptive: a tensor that nobody moved has no global signal: it takes the local one whole
        instead of being held down by it (an extension of the paper).

    Returns:
      float32[n, K].
    """
    known = moved > 0
    use = known if adaptive else jnp.broadcast_to(jnp.any(known), known.shape)
    share = jnp.where(use, beta, 1.0)[None]
    return share * local + (1.0 - share) * normalise(moved)[None]
