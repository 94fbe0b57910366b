r"""Importance of a tensor for a client: its own probe and the movement of the global model.

Local (ElasticTrainer; methods/fedel.md 1.7): on one mini-batch, with gradient $g_0$ at $w$, take
one optimiser step $\Delta w$ on all tensors and the gradient $g_1$ at $w + \Delta w$. Then
$I_k \propto -\sum g_{1,k} \Delta w_k$, divided by the largest magnitude. The step is discarded. Or
the squared norm $\sum g_{0,k}^2$, which it approaches for small steps of SGD.

Global (FedEL; methods/fedel.md 3): $\sum (w_{r+1,k} - w_{r,k})^2$ over a tensor, divided by the
largest of these sums. The learning rate of the paper's formula cancels. Only K numbers are sent.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common.errors import require
from fedjax_het.common.options import check_types
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.plan import Question
from fedjax_het.data.batches import DeviceData, Pipeline, gather
from fedjax_het.models.base import BlockModel
from fedjax_het.objectives.objective import Objective
from fedjax_het.problem import Problem
from fedjax_het.runtime.chunking import choose_chunk

Array = jax.Array


@dataclass(frozen=True)
class Probe:
    """Options of a client's measurement of its tensors' importance (methods/fedel.md 1.7).

    Attributes:
      head: head of the loss: "full", the network's own head, or "exit", that of the client's
        window.
      measure: "step", the change of the loss by an optimiser step as in ElasticTrainer, or
        "gradient", the squared norm of the gradient, which is never negative.
      step: factor on the client's step in the measure "step"; 1 is the whole step. At rates at
        which it overshoots, useful tensors get a negative importance and do not train: watch
        `positive_share` in the records, and lower the learning rate if it is below 0.8
        (methods/fedel.md 1.7).
    """

    head: Literal["full", "exit"] = "full"
    measure: Literal["step", "gradient"] = "step"
    step: float = 1.0

    def __post_init__(self) -> None:
        check_types(vars(self), "option of probe", type(self))
        require(
            0 < self.step <= 1,
            f"probe.step = {self.step}",
            "must lie in (0, 1]",
            "use 1 for a real step, or measure = 'gradient' for gradient norms",
        )


def per_tensor(index: tuple[PyTree, ...], blocks: tuple[PyTree, ...]) -> Array:
    """One number per tensor in the order of `TensorTimes`.

    Args:
      index: position of each tensor, `TensorTimes.index`.
      blocks: scalars, one per parameter tensor, in the structure of `params["blocks"]`.

    Returns:
      The numbers, float32[K].
    """
    places = jax.tree.leaves(index)
    values = jax.tree.leaves(blocks)
    order = sorted(range(len(places)), key=lambda i: places[i])
    return jnp.stack([values[i] for i in order])


def normalise(raw: Array) -> Array:
    """Values divided by the largest magnitude along the last axis; zeros stay zeros."""
    largest = jnp.max(jnp.abs(raw), axis=-1, keepdims=True)
    return raw / jnp.where(largest > 0, largest, 1.0)


def step_products(
    loss: Callable[[PyTree], Array], optimizer: optax.GradientTransformation, params: PyTree
) -> PyTree:
    r"""$\sum g_1 \Delta w$ of every tensor: one step $\Delta w$, and the gradient after it.

    The optimiser's state is new, and state and step are discarded, so nothing must be restored.

    Args:
      loss: function from parameters to a scalar.
      optimizer: optimiser of the client.
      params: parameters before the step.

    Returns:
      Scalars in the structure of `params`; negative for a tensor whose step reduces the loss.
    """
    step, _ = optimizer.update(jax.grad(loss)(params), optimizer.init(params), params)
    after = jax.grad(loss)(optax.apply_updates(params, step))
    return jax.tree.map(lambda g, d: jnp.sum(g * d), after, step)


def squared_gradients(loss: Callable[[PyTree], Array], params: PyTree) -> PyTree:
    """The squared norm of the gradient of every tensor, scalars in the structure of `params`."""
    return jax.tree.map(lambda g: jnp.sum(jnp.square(g)), jax.grad(loss)(params))


def local_probe(
    model: BlockModel,
    pipeline: Pipeline,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    index: tuple[PyTree, ...],
    *,
    max_batch: int,
    head: Literal["full", "exit"] = "full",
    measure: Literal["step", "gradient"] = "step",
) -> Callable[..., Array]:
    """The probe of one client, which can be mapped over a cohort.

    Args:
      model: network to probe.
      pipeline: preprocessing of the samples.
      optimizer: optimiser of the client.
      objective: objective of the problem.
      index: position of each tensor, `TensorTimes.index`.
      max_batch: largest number of samples in a mini-batch.
      head: head of the loss, see `Probe`.
      measure: what is measured, see `Probe`.

    Returns:
      A function `(variables, data, client, batch, exit, key, scale) -> float32[K]`, the normalised
      local importance, which is zero after the exit; `scale` is a factor on the step size. A probe
      that is not finite counts as zero everywhere.
    """

    def probe(
        variables: Variables,
        data: DeviceData,
        client: Array,
        batch: Array,
        exit: Array,
        key: Array,
        scale: Array,
    ) -> Array:
        batch_key, noise_key = jax.random.split(key)
        samples = gather(data, pipeline, client, jnp.int32(0), batch, max_batch, batch_key)

        def loss(params: PyTree) -> Array:
            here = Variables(params, variables.stats)
            mode: dict[str, Any] = {"train": True, "key": noise_key, "weight": samples.weight}
            if head == "full":
                outputs, _ = model.apply(here, samples.x, **mode)
            else:
                every, _ = model.apply_exits(here, samples.x, **mode)
                outputs = every[exit]
            return objective.mean(outputs, samples)

        if measure == "gradient":
            raw = per_tensor(index, squared_gradients(loss, variables.params)["blocks"])
        else:
            stepped = optax.chain(optimizer, optax.scale(scale))
            products = step_products(loss, stepped, variables.params)
            raw = -per_tensor(index, products["blocks"])
        return normalise(jnp.where(jnp.all(jnp.isfinite(raw)), raw, 0.0))

    return probe


def measurement(
    problem: Problem, training: TrainingOptions, index: tuple[PyTree, ...], probe: Probe
) -> Callable[[Variables, DeviceData, Question], Array]:
    """The probe of one client as `Algorithm.measure`; its rows have `batch` and `exit`.

    The arguments are those of `cohort_probe`.
    """
    one = local_probe(
        problem.model,
        problem.data.pipeline,
        optax.chain(training.optimizer(), optax.scale(probe.step)),
        problem.objective,
        index,
        max_batch=training.largest_batch(problem),
        head=probe.head,
        measure=probe.measure,
    )

    def measure(variables: Variables, data: DeviceData, asked: Question) -> Array:
        row, scale = asked.row, asked.learning_rate_scale
        return one(variables, data, asked.client, row["batch"], row["exit"], asked.key, scale)

    return measure


def cohort_probe(
    problem: Problem, training: TrainingOptions, index: tuple[PyTree, ...], probe: Probe
) -> Callable[[Variables, Question], Array]:
    """The probe of a cohort on the device, compiled at the first use of each cohort size.

    Args:
      problem: model and data.
      training: options of the clients, for batch size and optimiser.
      index: position of each tensor, `TensorTimes.index`.
      probe: options of the probe.

    Returns:
      A function from the model and the `Question` of a cohort, whose rows have `batch` and `exit`,
      int64[k], to float32[k, K]; see `local_probe`.
    """
    measure = measurement(problem, training, index, probe)
    cost = problem.cost
    step_flops = float(cost.step_flops()) * training.largest_batch(problem)
    param_bytes = int(np.sum(cost.param_bytes + cost.exit_param_bytes))
    chunk = choose_chunk(jax.default_backend(), step_flops, param_bytes)

    @jax.jit
    def every(variables: Variables, data: DeviceData, rows: Any, key: Array, scale: Array) -> Array:
        def of(row: Any) -> Array:
            client, own = row
            asked = Question(client, jax.random.fold_in(key, client), own, scale)
            return measure(variables, data, asked)

        # Without vmap, convolutions and matrix products keep their faster, unbatched form.
        return jax.lax.map(of, rows, batch_size=chunk if chunk > 1 else None)

    on_device = functools.cache(problem.data.device)

    def run(variables: Variables, asked: Question) -> Array:
        rows = jax.tree.map(lambda a: jnp.asarray(a.astype(np.int32)), (asked.client, asked.row))
        scale = jnp.float32(asked.learning_rate_scale)
        return every(variables, on_device(), rows, asked.key, scale)

    return run


def positive_share(local: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Share of positive importances among the tensors that each client's probe reached, float64[n].

    Args:
      local: local importances, float32[n, K].
      reached: mask of the tensors before the head of the loss, bool[n, K].
    """
    return np.sum((local > 0) & reached, axis=1) / np.maximum(np.sum(reached, axis=1), 1)


def movement(index: tuple[PyTree, ...], old: Variables, new: Variables) -> Array:
    r"""Movement $\sum (\Delta w_k)^2$ of every tensor between two global models, float32[K]."""
    squares = jax.tree.map(
        lambda a, b: jnp.sum(jnp.square(b - a)), old.params["blocks"], new.params["blocks"]
    )
    return per_tensor(index, squares)


def blend(local: Array, moved: Array, beta: float, adaptive: bool) -> Array:
    r"""Importance $\beta I_{loc} + (1 - \beta) I_g$, both divided by their largest magnitude.

    Args:
      local: normalised local importance, float32[n, K].
      moved: movement from `movement`, float32[K]; zeros before the first merge, when only the local
        importance counts.
      beta: weight of the local importance.
      adaptive: whether a tensor without movement gets its local importance unreduced, because it
        has no global importance (an extension of the paper).

    Returns:
      The importance, float32[n, K].
    """
    known = moved > 0
    use = known if adaptive else jnp.broadcast_to(jnp.any(known), known.shape)
    share = jnp.where(use, beta, 1.0)[None]
    return share * local + (1.0 - share) * normalise(moved)[None]
