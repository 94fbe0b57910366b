"""The local update: a pure function of (start, data, task), which the engine maps over clients."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import ClientResult, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.data.batches import Batch, DeviceData, Pipeline, gather, steps_per_epoch
from fedjax_het.models.base import BlockModel
from fedjax_het.objectives.objective import Objective
from fedjax_het.runtime.chunking import choose_parts

LocalUpdate = Callable[[Route, Variables, DeviceData, Task], ClientResult]
# (trained parameters, statistics, batch, key) -> (loss, (new statistics, scalars to report))
Loss = Callable[
    [PyTree, PyTree, Batch, jax.Array],
    tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]],
]


def _select(active: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(active, a, b), new, old)


def training_outputs(
    model: BlockModel,
    route: Route,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    live: jax.Array | None,
    exit: jax.Array,
) -> tuple[jax.Array, PyTree]:
    """Outputs in train mode of the head that gives a client's loss, and the new statistics.

    Args:
      model: model that the client trains.
      route: route that is compiled in.
      variables: variables of the model.
      batch: mini-batch.
      key: typed PRNG key of the step, for dropout.
      live: blocks that the client trains, see `BlockModel.apply`; None for all.
      exit: block after which the client's loss is taken, `Task.exit`.
    """
    if route.exit is None:
        outputs, stats = model.apply_exits(
            variables, batch.x, train=True, key=key, live=live, weight=batch.weight
        )
        return outputs[exit], stats
    return model.apply(
        variables,
        batch.x,
        train=True,
        key=key,
        first=route.first,
        exit=route.exit,
        live=live,
        weight=batch.weight,
    )


def _parts(model: BlockModel, batch: int) -> int:
    """Number of parts of a mini-batch; one if the model computes statistics of the batch."""
    if jax.tree.leaves(model.shapes.stats):
        return 1
    param_bytes, output_bytes = (
        sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
        for tree in (model.shapes.params, model.activation_shapes(1))
    )
    return choose_parts(jax.default_backend(), output_bytes, param_bytes, batch)


def _in_parts(
    gradient: Callable[..., Any],
    parts: int,
    objective: Objective,
    params: PyTree,
    stats: PyTree,
    batch: Batch,
    key: jax.Array,
) -> tuple[tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]], PyTree]:
    """`gradient(params, stats, batch, key)` of the objective's mean, from parts of the batch."""
    if parts == 1:
        return gradient(params, stats, batch, key)
    split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
    total = objective.total(batch)

    def part(samples: Batch, index: jax.Array) -> PyTree:
        share = objective.total(samples) / jnp.where(total > 0, total, 1.0)
        (loss, (_, measured)), grads = gradient(
            params, stats, samples, jax.random.fold_in(key, index)
        )
        return jax.tree.map(lambda a: share * a, (loss, measured, grads))

    def add(total: PyTree, samples: tuple[Batch, jax.Array]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, part(*samples)), None

    first = jax.tree.map(lambda a: a[0], split)
    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(part, first, jnp.int32(0)))
    (loss, measured, grads), _ = jax.lax.scan(add, zero, (split, jnp.arange(parts)))
    return (loss, (stats, measured)), grads


def training_loop(
    pipeline: Pipeline,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    loss: Loss,
    max_batch: int,
    *,
    trained: PyTree,
    mask: PyTree,
    stats: PyTree,
    data: DeviceData,
    task: Task,
    measures: Sequence[str] = (),
    observe: Callable[[PyTree], PyTree] | None = None,
    mean: bool = False,
    parts: int = 1,
    proximal: float = 0.0,
    linear: PyTree = None,
) -> ClientResult:
    """Mini-batch training of one client: `task.steps` steps of the optimiser on the objective.

    Gradients *and* optimiser updates are masked, so that neither momentum nor weight decay changes
    a frozen coordinate.

    Args:
      pipeline: preprocessing of the samples.
      optimizer: optimiser of the client; its state is new.
      objective: objective of the problem, for the weights of the samples.
      loss: function to minimise, a weighted mean over the samples of a batch.
      max_batch: largest number of samples in a mini-batch.
      trained: parameters to differentiate with respect to; None at every leaf that is not trained.
      mask: mask with the structure of `trained`, or None.
      stats: running statistics at the start.
      data: federated data on the device.
      task: work of the client.
      measures: names of the scalars that the loss reports.
      observe: function of the masked gradients of a step; its value becomes `aux`.
      mean: whether `aux` is the mean over the steps of the value of `observe`; False for that of
        the last step.
      parts: number of parts in which a mini-batch is run; more than 1 only for a loss that is the
        objective's mean.
      proximal: factor of the proximal term. Factor times (parameters - `trained`) is added to the
        gradient, which is faster than differentiating the squared distance. The reported loss does
        not include the term.
      linear: gradient of a linear term, which is added to that of every step, in the structure of
        `trained`; None for no term. The reported loss does not include the term.

    Returns:
      The result; its loss and the scalars in `info`, which the loss reported, are means over the
      processed samples; `aux` is the value of `observe`.
    """
    batch_key, noise_key = jax.random.split(task.key)
    epoch = steps_per_epoch(data.count[task.client], task.batch)

    def observed(seen: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(jnp.add, seen, new) if mean else new

    def step(t: jax.Array, carry: PyTree) -> PyTree:
        params, stats, opt_state, sums, totals, squares, seen = carry
        batch = gather(data, pipeline, task.client, t, task.batch, max_batch, batch_key)
        gradient = jax.value_and_grad(loss, has_aux=True)
        key = jax.random.fold_in(noise_key, t)
        (value, (new_stats, measured)), grads = _in_parts(
            gradient, parts, objective, params, stats, batch, key
        )
        if proximal:
            grads = jax.tree.map(lambda g, w, w0: g + proximal * (w - w0), grads, params, trained)
        if linear is not None:
            grads = jax.tree.map(jnp.add, grads, linear)
        grads = masks.apply(mask, grads)
        updates, new_opt_state = optimizer.update(grads, opt_state, params)
        scale = task.learning_rate_scale
        updates = jax.tree.map(lambda u: u * scale, masks.apply(mask, updates))
        weight = objective.total(batch)
        early = jnp.where(t < epoch, weight, 0.0)
        new = (
            optax.apply_updates(params, updates),
            new_stats,
            new_opt_state,
            jax.tree.map(lambda total, one: total + one * weight, sums, (value, measured)),
            (totals[0] + weight, totals[1] + jnp.sum(batch.weight)),
            (squares[0] + value * value * early, squares[1] + early),
            None if observe is None else observed(seen, observe(grads)),
        )
        # Clients that have done all their steps do not change in the rest of the loop.
        return _select(t < task.steps, new, carry)

    zero = jnp.zeros((), jnp.float32)
    sums = (zero, dict.fromkeys(measures, zero))
    seen = None
    if observe is not None:
        seen = jax.tree.map(jnp.zeros_like, jax.eval_shape(observe, trained))
    carry = (trained, stats, optimizer.init(trained), sums, (zero, zero), (zero, zero), seen)
    params, stats, _, sums, totals, squares, seen = jax.lax.fori_loop(
        0, task.loop_steps, step, carry
    )
    delta = jax.tree.map(jnp.subtract, params, trained)
    weight, samples = totals
    final, measured = jax.tree.map(lambda total: total / jnp.where(weight > 0, weight, 1.0), sums)
    if mean:
        seen = jax.tree.map(lambda total: total / task.steps.astype(jnp.float32), seen)
    square, early = squares
    return ClientResult(
        delta,
        stats,
        final,
        samples.astype(jnp.int32),
        aux=seen,
        info=measured or None,
        square_loss=square / jnp.where(early > 0, early, 1.0),
    )


def local_training(
    model: BlockModel,
    pipeline: Pipeline,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    max_batch: int,
    proximal: float = 0.0,
    linear: Callable[[Task], PyTree] | None = None,
    observe: Callable[[PyTree], PyTree] | None = None,
    mean: bool = False,
    effective: Callable[[PyTree, Task], PyTree] | None = None,
) -> LocalUpdate:
    r"""Mini-batch training of the masked parameters from the given start.

    Minimises $F_i(w) + \frac{\mu}{2} \lVert w - w_0 \rVert^2$ over the coordinates of the mask; see
    `training_loop`. The optimiser's state covers only the blocks of the route and is new for every
    task.

    Args:
      model: model to train.
      pipeline: preprocessing of the samples (`FederatedData.pipeline`).
      optimizer: optimiser of the client, e.g. `optax.sgd(0.05)`.
      objective: objective of the problem.
      max_batch: largest number of samples in a mini-batch; `Task.batch` may be less. A mini-batch
        may be run in parts, which changes rounding only (`chunking.choose_parts`).
      proximal: factor mu of the proximal term of FedProx (Li et al. 2020); 0 means no term. The
        reported loss does not include the term.
      linear: function of the task for the gradient of a linear term, in the structure of the
        parameters; None for no term. The reported loss does not include it.
      observe: function of the masked gradients of a step; its value in the last step becomes
        `ClientResult.aux`.
      mean: whether that is the mean over the steps instead.
      effective: function `(parameters, task) -> parameters` of those with which the network
        computes, through which gradients flow; it gets the trained leaves, and None for the others.
        None computes with the parameters themselves.

    Returns:
      Local update; `ClientResult.delta` is None at every leaf that the route does not train.
    """
    parts = _parts(model, max_batch)

    def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        trained, frozen = masks.split(start.params, route)
        mask = None if task.mask is None else masks.split(task.mask, route)[0]
        live = None if task.mask is None else masks.live_blocks(task.mask)

        def loss(
            params: PyTree, stats: PyTree, batch: Batch, key: jax.Array
        ) -> tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]:
            used = params if effective is None else effective(params, task)
            variables = Variables(masks.join(used, frozen), stats)
            outputs, stats = training_outputs(model, route, variables, batch, key, live, task.exit)
            return objective.mean(outputs, batch), (stats, {})

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
            observe=observe,
            mean=mean,
            parts=parts,
            proximal=proximal,
            linear=None if linear is None else masks.split(linear(task), route)[0],
        )

    return local
