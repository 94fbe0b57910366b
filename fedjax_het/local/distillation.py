r"""Distillation over a cut: client and server each learn from the logits of the other.

client:  F(head(h(x)), y) + a T^2 KL_T( client || server's logits )
server:  a F(g(z), y)     +   T^2 KL_T( server || client's logits ),   z = h(x) in eval mode
         or F(g(z), y) alone

Here F is the objective, whose outputs must be the logits of classes, h is the client's half of a
block model, with its head, and g is the server's half.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import ClientResult, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.data.batches import Batch, DeviceData, Pipeline, prepare
from fedjax_het.local.training import LocalUpdate, training_loop
from fedjax_het.models.base import BlockModel
from fedjax_het.objectives.objective import Objective


class Halves(NamedTuple):
    """Routes of the two networks into which a model is cut.

    Attributes:
      edge: route of the blocks of the client's network and its head.
      server: route of the blocks of the server's network.
    """

    edge: Route
    server: Route

    def own(self, variables: Variables, route: Route) -> Variables:
        """The variables of `route`; None for all others."""
        return Variables(*(masks.split(part, route)[0] for part in variables))

    def put(self, variables: Variables, part: Variables, route: Route) -> Variables:
        """The variables, with those of `route` replaced by `part`."""
        rest = (masks.split(whole, route)[1] for whole in variables)
        return Variables(*(masks.join(new, old) for new, old in zip(part, rest, strict=True)))


def halves(num_blocks: int, cut: int) -> Halves:
    """The halves of a cut: blocks 0..cut and the head after them; and all deeper blocks."""
    return Halves(Route(0, cut), Route(cut + 1, num_blocks - 1))


def distillation(
    student: jax.Array, teacher: jax.Array, weight: jax.Array, temperature: float
) -> jax.Array:
    r"""$T^2 KL(\mathrm{softmax}(t / T) \| \mathrm{softmax}(s / T))$, a weighted mean over samples.

    Args:
      student: logits s of the trained network, float32[n, ..., classes]; a sample with several
        positions counts with their mean.
      teacher: logits t of the other network, in the same shape.
      weight: weight of each sample, float32[n], 0 for padding.
      temperature: temperature T of both softmaxes.

    References:
      Hinton, Vinyals and Dean, *Distilling the Knowledge in a Neural Network*, 2015.
    """
    wanted = jax.nn.softmax(teacher / temperature)
    losses = optax.losses.kl_divergence(jax.nn.log_softmax(student / temperature), wanted)
    losses = jnp.mean(losses.reshape(losses.shape[0], -1), axis=1)
    return temperature**2 * jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def edge_training(
    model: BlockModel,
    pipeline: Pipeline,
    parts: Halves,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    max_batch: int,
    temperature: float,
    alpha: float,
    proximal: float = 0.0,
) -> LocalUpdate:
    """The local update of a client's network.

    `Task.row["edge"]` is the network, and `Task.row["taught"]` states whether there are logits of
    the server for its samples. `Task.shared["logits"]`, float32[N, classes], holds those of all
    samples.

    Args:
      model: model with exit heads.
      pipeline: preprocessing of the samples.
      parts: halves of the model.
      optimizer: optimiser of the client; its state is new every round.
      objective: objective of the problem, with logits as outputs.
      max_batch: largest number of samples in a mini-batch.
      temperature: temperature T of the distillation.
      alpha: weight of the server's logits.
      proximal: factor of the proximal term to the client's own network, see `training_loop`.

    Returns:
      A local update that does not change the global model; `info` is the trained network.
    """

    def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        edge = task.row["edge"]
        own = parts.put(start, edge, parts.edge)
        frozen = masks.split(start.params, parts.edge)[1]

        def loss(
            params: PyTree, stats: PyTree, batch: Batch, key: jax.Array
        ) -> tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]:
            variables = Variables(masks.join(params, frozen), stats)
            logits, stats = model.apply(
                variables,
                batch.x,
                train=True,
                key=key,
                exit=parts.edge.exit,
                weight=batch.weight,
            )
            teacher = task.shared["logits"][batch.sample]
            told = distillation(logits, teacher, batch.weight, temperature)
            told = jnp.where(task.row["taught"], told, 0.0)
            return objective.mean(logits, batch) + alpha * told, (stats, {})

        result = training_loop(
            pipeline,
            optimizer,
            objective,
            loss,
            max_batch,
            trained=edge.params,
            mask=None,
            stats=own.stats,
            data=data,
            task=task,
            proximal=proximal,
        )
        trained = Variables(
            jax.tree.map(jnp.add, edge.params, result.delta),
            masks.split(result.stats, parts.edge)[0],
        )
        finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trained)])
        return ClientResult(
            delta=jax.tree.map(jnp.zeros_like, masks.split(start.params, route)[0]),
            stats=start.stats,
            loss=jnp.where(jnp.all(finite), result.loss, jnp.nan),
            samples=result.samples,
            info=trained,
            square_loss=result.square_loss,
        )

    return local


def server_training(
    model: BlockModel,
    pipeline: Pipeline,
    parts: Halves,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    batch_size: int,
    temperature: float,
    alpha: float,
    distill: bool = True,
) -> Callable[..., tuple[Variables, PyTree, jax.Array, jax.Array]]:
    """A function that trains the server's network on the clients' activations; for `jax.jit`.

    Activations are computed from the clients' networks when they are needed. The results are the
    same as with stored activations of every sample, which would not fit into memory.

    Args:
      model: model with exit heads.
      pipeline: preprocessing of the samples; augmentation is not applied.
      parts: halves of the model.
      optimizer: optimiser of the server.
      objective: objective of the problem, with logits as outputs.
      batch_size: samples per batch.
      temperature: temperature T of the distillation.
      alpha: weight of the labels beside the clients' logits.
      distill: whether the server learns from the clients' logits; otherwise from labels alone.

    Returns:
      A function `(variables, optimizer state, edges, clients, logits, data, epochs, key, scale) ->
      (variables, optimizer state, logits, loss)`, with `edges` stacked over `clients`, and `scale`,
      float32, a factor on the step size. Batches keep the order of the clients and of their
      samples.
    """
    cut = parts.server.first - 1

    def batch_of(data: DeviceData, client: jax.Array, t: jax.Array) -> Batch:
        place = t * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        inside = place < data.count[client]
        ids = data.order[data.start[client] + jnp.where(inside, place, 0)]
        x = prepare(jax.tree.map(lambda a: a[ids], data.x), pipeline)
        return Batch(x, data.y[ids], inside.astype(jnp.float32), ids)

    def train(
        variables: Variables,
        state: PyTree,
        edges: Variables,
        clients: jax.Array,
        logits: jax.Array,
        data: DeviceData,
        epochs: jax.Array,
        key: jax.Array,
        scale: jax.Array,
    ) -> tuple[Variables, PyTree, jax.Array, jax.Array]:
        frozen = masks.split(variables.params, parts.server)[1]

        def sent(j: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
            edge = jax.tree.map(lambda a: a[j], edges)
            own = parts.put(variables, edge, parts.edge)
            z, _ = model.forward_to(own, batch.x, cut)
            return z, model.apply_exit(own, z, cut)

        def loss_of(
            params: PyTree, stats: PyTree, z: jax.Array, taught: jax.Array, batch: Batch, key: Any
        ) -> tuple[jax.Array, PyTree]:
            whole = Variables(masks.join(params, frozen), stats)
            logits, stats = model.forward_from(
                whole, z, cut, train=True, key=key, weight=batch.weight
            )
            labels = objective.mean(logits, batch)
            if not distill:
                return labels, stats
            told = distillation(logits, taught, batch.weight, temperature)
            return told + alpha * labels, stats

        def step(j: jax.Array, t: jax.Array, carry: PyTree) -> PyTree:
            params, stats, state, count, _ = carry
            batch = batch_of(data, clients[j], t)
            z, taught = sent(j, batch)
            noise = jax.random.fold_in(key, count)
            (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(
                params, stats, z, taught, batch, noise
            )
            updates, state = optimizer.update(grads, state, params)
            updates = jax.tree.map(lambda u: u * scale, updates)
            return optax.apply_updates(params, updates), stats, state, count + 1, loss

        def answer(j: jax.Array, t: jax.Array, carry: PyTree) -> PyTree:
            whole, logits = carry
            batch = batch_of(data, clients[j], t)
            told, _ = model.forward_from(whole, sent(j, batch)[0], cut)
            return whole, logits.at[batch.sample].set(told)

        def over_clients(visit: Callable[..., PyTree], carry: PyTree) -> PyTree:
            def one(j: jax.Array, carry: PyTree) -> PyTree:
                steps = (data.count[clients[j]] + (batch_size - 1)) // batch_size
                return jax.lax.fori_loop(0, steps, lambda t, c: visit(j, t, c), carry)

            return jax.lax.fori_loop(0, clients.shape[0], one, carry)

        own = masks.split(variables.params, parts.server)[0]
        zero = jnp.zeros((), jnp.float32)
        carry = (own, variables.stats, state, jnp.zeros((), jnp.int32), zero)
        params, stats, state, _, loss = jax.lax.fori_loop(
            0, epochs, lambda _, c: over_clients(step, c), carry
        )
        variables = Variables(masks.join(params, frozen), stats)
        _, logits = over_clients(answer, (variables, logits))
        return variables, state, logits, loss

    return train
