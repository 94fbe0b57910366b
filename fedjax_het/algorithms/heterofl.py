"""HeteroFL: every device trains the first units of every layer, as many as it affords."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.networks import Networks, networks
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm, Task
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem


@register(options=UniformTraining)
def heterofl(
    problem: Problem,
    *,
    rates: Sequence[float] = (1.0, 0.5, 0.25, 0.125, 0.0625),
    levels: Sequence[Count] | None = None,
    shares: Sequence[float] | None = None,
    dynamic: bool = False,
    scaler: bool = True,
    masked_loss: bool | None = None,
    static_norm: bool | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""HeteroFL: nested sub-networks by width, averaged where clients hold a coordinate.

    A client of rate r trains the first $\lceil r K \rceil$ units of every group of K hidden units;
    inputs and classes are complete. The server takes the mean of each coordinate over the clients
    that hold it; a coordinate that nobody holds keeps its value. With all rates 1, without the
    masked loss, it is FedAvg.

    Args:
      problem: model, data and fleet.
      rates: shares of the hidden units that clients may train; the paper's levels a to e.
      levels: index into `rates` of every client; None for the widest that its device affords.
      shares: share of the clients at each rate; see `Networks.assignment`.
      dynamic: whether clients draw their rate anew in every round, with these shares (equal ones if
        none are given), as in the authors' "dynamic" mode.
      scaler: whether hidden layers divide their outputs by the rate in training, before the norm.
        The evaluation does not.
      masked_loss: whether the logits of classes of which a client has no samples are 0 in its loss,
        and it does not count in the mean of their rows in the last layer. None does so if the
        objective takes logits of classes and a client lacks a class.
      static_norm: whether batch norms use statistics of the batch in training and those of all
        training samples in evaluations, which happens outside of the virtual clock (see
        `StaticNorm`); None for True if the model has running statistics.
      **training: fields of `UniformTraining`.

    Returns:
      The algorithm. Its `submodels` are the networks of all rates.

    References:
      Diao, Ding and Tarokh, *HeteroFL: Computation and Communication Efficient Federated Learning
      for Heterogeneous Clients*, ICLR 2021. The models of the library have group norm unless
      they are built with `norm="batch"`.
    """
    options = UniformTraining.parse(training)
    own = networks(problem, rates, static_norm=static_norm)
    assigned = own.assignment(options, levels=levels, shares=shares, dynamic=dynamic)
    held = _classes(problem, masked_loss)

    def tasks(situation: Situation) -> Plan:
        rows = None if held is None else {"classes": held[situation.clients]}
        return own.plan(options, situation, assigned(situation), rows=rows)

    def mask(row: PyTree, shared: PyTree) -> PyTree:
        del shared
        return last_rows(problem.model, own, row["classes"])

    return Algorithm(
        name="heterofl",
        init=parts.stateless,
        plan=Schedule(tasks, apart=True),
        mask=None if held is None else mask,
        local=own.local_update(
            options, scaled=scaler, wrapped=None if held is None else _without_absent
        ),
        merge=masked_mean(),
        update=parts.replace,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        calibrate=own.calibrate,
        paces=Paces(overlap=True),
        widths=own.widths(),
        submodels=own.submodels(assigned),
    )


def _classes(problem: Problem, masked_loss: bool | None) -> np.ndarray | None:
    """Whether each client has samples of each class, bool[n, classes]; None to ignore it."""
    logits = problem.objective.outputs == "logits"
    require(
        logits or not masked_loss,
        f"masked_loss = True with the objective {problem.objective.name!r}",
        "leaves out the logits of absent classes, and its outputs are none",
        "leave it out",
    )
    if not logits or masked_loss is False:
        return None
    counts = problem.data.label_counts()
    held = np.zeros((problem.num_clients, problem.model.num_classes), bool)
    held[:, : counts.shape[1]] = counts > 0
    return None if masked_loss is None and bool(held.all()) else held


def last_rows(model: BlockModel, own: Networks, classes: jax.Array) -> PyTree:
    """The mask of everything but the rows of absent classes in the layer that returns the outputs.

    Args:
      model: model whose last layer has an axis of classes, the last one of its tensors.
      own: its sub-networks.
      classes: classes that the client has, bool[num_classes].
    """
    params, axes = model.shapes.params, own.layout.axes.params
    last = len(params["blocks"]) - 1

    def of(leaf: Any, spans: Any, outputs: bool) -> jax.Array:
        rows = outputs and leaf.ndim > 0 and leaf.shape[-1] == len(classes)
        return classes if rows and spans.spans[-1][0].group is None else jnp.asarray(True)

    def part(name: str, b: int) -> PyTree:
        outputs = name == "exits" or b == last
        return jax.tree.map(
            lambda leaf, spans: of(leaf, spans, outputs), params[name][b], axes[name][b]
        )

    return {name: tuple(part(name, b) for b in range(len(params[name]))) for name in params}


def _without_absent(model: BlockModel, task: Task) -> BlockModel:
    """The model with logits of 0 for the classes that the client lacks."""
    classes = task.row["classes"]

    def outputs(block: Any) -> Any:
        def apply(params: PyTree, stats: PyTree, x: jax.Array, **mode: Any) -> Any:
            y, stats = block.apply(params, stats, x, **mode)
            return y * jnp.broadcast_to(classes.astype(y.dtype), y.shape), stats

        return block._replace(apply=apply)

    blocks = (*model.blocks[:-1], outputs(model.blocks[-1]))
    return replace(model, blocks=blocks, exits=tuple(map(outputs, model.exits)))
