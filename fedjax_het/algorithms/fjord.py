"""FjORD: ordered dropout, so that one model holds a good network of every width."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.networks import Networks, networks
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks, widths
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Task, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.contract.widths import Layout
from fedjax_het.data.batches import Batch, DeviceData
from fedjax_het.local.training import LocalUpdate, training_loop, training_outputs
from fedjax_het.models.base import BlockModel
from fedjax_het.models.narrow import sub_network
from fedjax_het.problem import Problem

# Outputs of a network with these variables for a mini-batch.
Outputs = Callable[[BlockModel, Variables], jax.Array]


@register
def fjord(
    problem: Problem,
    *,
    rates: Sequence[float] = (1.0, 0.8, 0.6, 0.4, 0.2),
    levels: Sequence[Count] | None = None,
    shares: Sequence[float] | None = None,
    distill: bool = False,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""FjORD: every mini-batch trains a width that is drawn from those that the device affords.

    A client of the tier $p_{max}$ holds the first $\lceil p_{max} K \rceil$ units of every group of
    K hidden units. Each of its mini-batches draws one p uniformly from the rates up to $p_{max}$
    and uses it in all layers, so that the first units become those that matter most. With
    `distill`, the widest network of the client trains as well and teaches the drawn one:
    $CE(f_{p_{max}}, y) + CE(f_p, softmax(f_{p_{max}}))$, without a gradient to the teacher's
    probabilities. The server averages each coordinate over the clients that hold it, weighted by
    samples, which equals the paper's blocks from wide to narrow.

    The clock charges the expected FLOPs of the drawn widths, and bytes of the widest. A client that
    trains alone on its route computes the drawn width only; for clients side by side, and where
    several tiers share a program, a mini-batch takes as long as all widths, or as the widest one.

    Args:
      problem: model, data and fleet.
      rates: widths p, the largest first.
      levels: index into `rates` of the tier of every client; None for the widest that its device
        affords.
      shares: share of the clients at each tier; see `Networks.assignment`.
      distill: whether the widest network of a client teaches the drawn one. Positions without a
        label are distilled as well.
      **training: fields of `TrainingOptions`. The authors use SGD without momentum.

    Returns:
      The algorithm. Its `submodels` are the networks of all rates. Batch norms use statistics of
      the batch in training; in evaluations every width has its own, those of all training samples
      (`StaticNorm`), where the authors keep one norm of running statistics for each width.

    References:
      Horváth et al., *FjORD: Fair and Accurate Federated Learning under Heterogeneous Targets with
      Ordered Dropout*, NeurIPS 2021.
    """
    options = TrainingOptions.parse(training)
    own = networks(problem, rates)
    require(
        not distill or problem.objective.outputs == "logits",
        f"distill = True with the objective {problem.objective.name!r}",
        "teaches probabilities of classes, and its outputs are none",
        "leave it out",
    )
    assigned = own.assignment(options, levels=levels, shares=shares, dynamic=False)
    work = expected_shares(own, distill)

    def tasks(situation: Situation) -> Plan:
        level = assigned(situation)
        return own.plan(options, situation, level, work=work[level])

    return Algorithm(
        name="fjord",
        init=parts.stateless,
        plan=Schedule(tasks, apart=True),
        mask=None,
        local=_local(own, options, distill),
        merge=masked_mean(),
        update=parts.replace,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        calibrate=own.calibrate,
        paces=Paces(overlap=True),
        widths=own.widths(),
        submodels=own.submodels(assigned),
    )


def expected_shares(own: Networks, distill: bool) -> np.ndarray:
    """Expected FLOPs of a step of each tier relative to the complete network, float64[levels].

    Args:
      own: levels.
      distill: whether the widest network of the tier also trains.
    """
    every = np.full(len(own.rates), np.nan)
    for level in own.allowed:
        drawn = [own.shares[other] for other in own.allowed if other >= level]
        every[level] = np.mean(drawn) + (own.shares[level] if distill else 0.0)
    return every


def drawn(own: Networks, key: jax.Array, tier: Any) -> jax.Array:
    """Position in `own.allowed` of the level of a mini-batch, uniform from `tier` on, int32[]."""
    first = jnp.sum(jnp.asarray(own.allowed, jnp.int32) < tier, dtype=jnp.int32)
    return jax.random.randint(key, (), first, len(own.allowed), jnp.int32)


def _at_drawn(
    own: Networks, route: Route, position: jax.Array, variables: Variables, outputs: Outputs
) -> jax.Array:
    """Outputs of the first units of the route's tensors, of the level at `position`."""
    if route.padded:
        level = jnp.asarray(own.allowed, jnp.int32)[position]
        return _inside(own, route, level, variables, outputs)
    tier = route.width
    layout = Layout(own.counts[tier], own.layout.axes)

    def at(level: int) -> Callable[[Variables], jax.Array]:
        return lambda whole: outputs(
            own.models[level], widths.take(layout, own.counts[level], whole, None)
        )

    wider = sum(level < tier for level in own.allowed)
    branches = [at(level) for level in own.allowed[wider:]]
    return jax.lax.switch(position - wider, branches, variables)


def _at_tier(
    own: Networks, route: Route, tier: Any, variables: Variables, outputs: Outputs
) -> jax.Array:
    """Outputs of the widest network of a client."""
    if route.padded:
        return _inside(own, route, tier, variables, outputs)
    return outputs(own.models[tier], variables)


def _inside(
    own: Networks, route: Route, level: jax.Array, variables: Variables, outputs: Outputs
) -> jax.Array:
    """Outputs of a traced level, computed at the width of a padded route."""
    counts = own.counts[route.width]
    live = {
        group: jnp.asarray([each[group] for each in own.counts], jnp.int32)[level]
        for group in own.layout.sizes
    }
    model = sub_network(own.problem.model, own.layout, counts, live=live)
    held = widths.live(own.layout, counts, live)
    return outputs(model, masks.apply(held, variables))


def _local(own: Networks, options: TrainingOptions, distill: bool) -> LocalUpdate:
    """Training in which every mini-batch draws its width."""
    problem = own.problem
    objective = problem.objective

    def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        trained, frozen = masks.split(start.params, route)
        mask = None if task.mask is None else masks.split(task.mask, route)[0]
        live = None if task.mask is None else masks.live_blocks(task.mask)
        tier = task.width if route.padded else route.width

        def loss(
            params: PyTree, stats: PyTree, batch: Batch, key: jax.Array
        ) -> tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]:
            # One draw for all layers; dropout is the same for both networks of the distillation.
            width_key, noise_key = jax.random.split(key)

            def outputs(model: BlockModel, variables: Variables) -> jax.Array:
                ends = (batch, noise_key, live, task.exit)
                return training_outputs(model, route, variables, *ends)[0]

            variables = Variables(masks.join(params, frozen), stats)
            student = _at_drawn(own, route, drawn(own, width_key, tier), variables, outputs)
            if not distill:
                return objective.mean(student, batch), (stats, {})
            teacher = _at_tier(own, route, tier, variables, outputs)
            wanted = jax.nn.softmax(jax.lax.stop_gradient(teacher))
            told = optax.losses.softmax_cross_entropy(student, wanted)
            told = jnp.mean(told.reshape(told.shape[0], -1), axis=1)
            weight = batch.weight * objective.weight(batch)
            total = jnp.sum(weight)
            taught = jnp.sum(told * weight) / jnp.where(total > 0, total, 1.0)
            return objective.mean(teacher, batch) + taught, (stats, {})

        return training_loop(
            problem.data.pipeline,
            options.optimizer(),
            objective,
            loss,
            options.largest_batch(problem),
            trained=trained,
            mask=mask,
            stats=start.stats,
            data=data,
            task=task,
            proximal=options.proximal,
        )

    return local
