"""The usual JAX code for the same clients: a Python loop around jitted code with `lax.conv`.

It gets the same batches that the cohort's program draws, so its averaged model must agree with
ours; `benchmarks.micro.training` prints the difference.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.data.batches import Batch, DeviceData, Pipeline, gather
from fedjax_het.models.base import BlockModel
from fedjax_het.models.lowering import lowering
from fedjax_het.objectives import classification


def client_batches(
    data: DeviceData,
    pipeline: Pipeline,
    key: jax.Array,
    clients: int,
    steps: int,
    batch: int,
) -> tuple[jax.Array, jax.Array]:
    """The mini-batches of a round as `client.local_training` draws them.

    Args:
      data: the federated data set on device; every client has at least `batch` samples.
      pipeline: how samples become inputs.
      key: typed PRNG key of the round.
      clients: clients 0..clients-1.
      steps: local steps.
      batch: samples per mini-batch.

    Returns:
      Inputs float32[clients, steps, batch, ...] and labels int32[clients, steps, batch].
    """

    def one(client: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch_key, _ = jax.random.split(jax.random.fold_in(key, client))
        found = gather(data, pipeline, client, step, jnp.int32(batch), batch, batch_key)
        return found.x, found.y

    over_steps = jax.vmap(one, in_axes=(None, 0))
    every = jax.vmap(over_steps, in_axes=(0, None))
    return jax.jit(every)(jnp.arange(clients, dtype=jnp.int32), jnp.arange(steps, dtype=jnp.int32))


def _mean(total: PyTree | None, one: PyTree, count: int) -> PyTree:
    """Running `total + one / count`, leaf by leaf, outside any compiled program."""
    share = jax.tree.map(lambda a: a / count, one)
    return share if total is None else jax.tree.map(jnp.add, total, share)


def jax_loop(
    model: BlockModel,
    start: Variables,
    x: jax.Array,
    y: jax.Array,
    learning_rate: float,
    *,
    call_per_step: bool,
) -> Callable[[], PyTree]:
    """A Python loop over clients around jitted code with `lax.conv`, averaging in Python.

    Args:
      model: the network, without dropout or running statistics.
      start: the model every client starts from.
      x: as `client_batches` returns them; the first axis says how many clients there are.
      y: their labels.
      learning_rate: of plain SGD.
      call_per_step: one jitted call per mini-batch, with a second Python loop around it; otherwise
        one per client, with the loop over mini-batches compiled in.

    Returns:
      A function that trains the clients and returns the averaged parameters.
    """

    def loss(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        logits, _ = model.apply(Variables(params, start.stats), x, train=True)
        return classification().mean(logits, Batch(x, y, jnp.ones(y.shape, jnp.float32), y))

    def step(params: PyTree, x: jax.Array, y: jax.Array) -> PyTree:
        grads = jax.grad(loss)(params, x, y)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)

    def whole(params: PyTree, x: jax.Array, y: jax.Array) -> PyTree:
        return jax.lax.scan(lambda p, pair: (step(p, *pair), None), params, (x, y))[0]

    jitted = jax.jit(step if call_per_step else whole)

    def run() -> PyTree:
        total = None
        with lowering("lax"):
            for client_x, client_y in zip(x, y, strict=True):
                params = start.params
                if call_per_step:
                    for batch_x, batch_y in zip(client_x, client_y, strict=True):
                        params = jitted(params, batch_x, batch_y)
                else:
                    params = jitted(params, client_x, client_y)
                total = _mean(total, params, len(x))
        return total

    return run
