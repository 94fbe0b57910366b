"""ScaleFL: sub-models by width and depth at once, whose last exit teaches the earlier ones."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Unpack

import numpy as np

from fedjax_het.algorithms import depths, parts
from fedjax_het.algorithms.networks import Networks, networks
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions, UniformTraining
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.types import PyTree
from fedjax_het.contract import widths
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Task, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.contract.submodels import SubModels
from fedjax_het.data.batches import DeviceData
from fedjax_het.local.exits import exits_training, from_last
from fedjax_het.models.base import BlockModel
from fedjax_het.models.exits import truncated
from fedjax_het.problem import Problem

# Width and number of the exit of the paper's levels before the complete network.
_LEVELS = ((0.7, 1), (0.7, 2), (0.75, 3))


class Levels(NamedTuple):
    """The D sub-models of a run, the smallest first.

    Attributes:
      names: names in records.
      width: index of each into the levels of `Networks`, int64[D].
      exit: last block, int64[D].
      heads: blocks before it whose heads also give a loss, bool[D, L].
      flops: FLOPs of a training step per sample, float64[D].
      bytes_down: bytes of its blocks, statistics and heads, int64[D].
      bytes_up: bytes of what it uploads, int64[D].
    """

    names: tuple[str, ...]
    width: np.ndarray
    exit: np.ndarray
    heads: np.ndarray
    flops: np.ndarray
    bytes_down: np.ndarray
    bytes_up: np.ndarray


@register(options=UniformTraining)
def scalefl(
    problem: Problem,
    *,
    submodels: Sequence[tuple[float, int]] | None = None,
    exits: Sequence[Count] | None = None,
    levels: Sequence[Count] | str | None = None,
    capacity: Sequence[float] | Callable[[int], np.ndarray] | None = None,
    gamma: float = 0.05,
    temperature: float = 3.0,
    scaler: bool = False,
    static_norm: bool | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""ScaleFL: sub-models by width and depth, averaged where clients hold a coordinate.

    A client of the level (r, J) has the first $\lceil r K \rceil$ of every K hidden units in the
    blocks up to the J-th exit and in the heads at the exits 1..J, which is also all that it
    downloads and uploads. It minimises

    $$\sum_{j=1}^{J} \frac{2 j}{J (J + 1)} \left( F_j
    + \gamma T^2 KL_T(p_J \| p_j) \right), \qquad KL_T(p_J \| p_J) = 0,$$

    in which the teacher $p_J$ is constant. The server takes the mean of each coordinate over the
    clients that hold it; a coordinate that nobody holds keeps its value.

    Departures from the authors' code: there the teacher is not constant, the divergence is a mean
    over the classes as well, and it begins after a quarter of the rounds. Its heads are three
    convolutions; those of `with_exits` are a mean over positions and a linear layer. It drops
    fractions of units. Evaluations record `<metric>[width_<r>_depth_<j>]` of every level; the
    metrics of a run are those of the complete network.

    Args:
      problem: model, data and fleet; the model needs exit heads.
      submodels: width r in (0, 1] and number J of the last exit, from 1, of each level, the
        smallest first. None for the paper's (0.7, 1), (0.7, 2), (0.75, 3) and the complete network,
        the last of them only if there are fewer than four exits.
      exits: exit blocks, the last block last; None for four evenly by cost
        (`depths.exit_blocks`), or all blocks if there are fewer.
      levels: level 1..D of every client; "even" for 1..D in turn over the clients, so that every
        level has the same share (25 % of four in the paper). None for the largest that a client
        affords by `capacity`, or else the smallest, whose devices will be late.
      capacity: compute capacity of each client in (0, 1], relative to the cost of the largest
        level, or a function of the round; None for each device's speed relative to the fastest, in
        every round if devices are re-drawn.
      gamma: factor of the distillation. The default is that of the authors' one command that
        distils. The default of their code is 0, which leaves out one of the paper's two mechanisms.
        An objective without logits of classes needs 0.
      temperature: temperature T of the distillation.
      scaler: whether hidden layers divide their outputs by the width in training, before the norm,
        as those of the authors do (in evaluation as well).
      static_norm: whether batch norms use statistics of the batch in training and those of all
        training samples in evaluations, in place of running statistics; see `StaticNorm`. None does
        so if the model has running statistics that are trained. The authors' batch norms use
        statistics of the batch in evaluations, too.
      **training: fields of `UniformTraining`; the authors have learning_rate=0.1 with a tenth of it
        from rounds 100 and 200, momentum=0.9, weight_decay=5e-4, epochs=5, batch_size=16.

    Returns:
      The algorithm. Its `info` has the number of devices below the cost of the first level as
      `infeasible_clients`.

    References:
      Ilhan, Su and Liu, *ScaleFL: Resource-Adaptive Federated Learning with Heterogeneous Clients*,
      CVPR 2023, and the authors' code.
    """
    options = UniformTraining.parse(training)
    ends = depths.checked_exits(problem, exits)
    _require_usable(problem, gamma, temperature)
    chosen = _checked_submodels(submodels, len(ends))
    rates = sorted({rate for rate, _ in chosen}, reverse=True)
    own = networks(problem, rates, static_norm=static_norm)
    each = _levels(own, chosen, ends)
    routes = [
        Route(0, int(ends[number - 1]), width=int(width), heads=tuple(ends[: number - 1].tolist()))
        for (_, number), width in zip(chosen, each.width, strict=True)
    ]
    fixed = depths.given_levels(problem, levels, capacity, len(chosen))

    def levels_at(round: int) -> tuple[np.ndarray, int]:
        """Index of the level of every client, int64[n], and the number of infeasible clients."""
        level, infeasible = fixed, 0
        if level is None:
            kappa = parts.capacities(problem, capacity, round)
            level, infeasible = depths.affordable_levels(each.flops, kappa)
        _require_memory(own, options, each, level)
        return level, infeasible

    start, _ = levels_at(0)
    # Clients of one level in every round can be judged by the network that they have.
    changing = fixed is None and (callable(capacity) or problem.fleet.redraw is not None)

    def tasks(situation: Situation) -> Plan:
        level, infeasible = levels_at(situation.round)
        level = level[situation.clients]
        sizes = problem.data.sizes[situation.clients]
        timing = problem.fleet.at(situation.round).timing(
            situation.clients,
            each.flops[level] * options.samples(sizes, options.steps(sizes)),
            each.bytes_down[level],
            each.bytes_up[level],
            situation.now_s,
            situation.rng,
        )
        rows = {"exit": each.exit[level].astype(np.int32)}
        plan = parts.plan_tasks(problem, options, situation, rows=rows, timing=timing)
        return plan._replace(
            routes=[routes[d] for d in level.tolist()], info={"infeasible_clients": infeasible}
        )

    def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        train = exits_training(
            own.network(route, task.width, scaled=scaler),
            problem.data.pipeline,
            options.optimizer(),
            problem.objective,
            exits=ends.tolist(),
            max_batch=options.largest_batch(problem),
            combine=from_last(gamma, temperature),
            proximal=options.proximal,
        )
        return own.unsent(train(route, start, data, task), start)

    return Algorithm(
        name="scalefl",
        init=parts.stateless,
        plan=Schedule(tasks),
        mask=depths.prefix_mask(problem.model, ends.tolist()),
        local=local,
        merge=masked_mean(),
        update=parts.replace,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        paces=Paces(overlap=True),
        widths=own.widths(),
        submodels=_submodels(own, each, None if changing else start),
        calibrate=own.calibrate,
    )


def _levels(own: Networks, chosen: Sequence[tuple[float, int]], ends: np.ndarray) -> Levels:
    width = np.asarray([own.rates.index(rate) for rate, _ in chosen])
    number = np.asarray([number for _, number in chosen])
    exit = ends[number - 1]
    heads = depths.earlier_heads(ends, own.problem.model.num_blocks)[number - 1]
    rows = [(own.costs[w], e, h) for w, e, h in zip(width, exit, heads, strict=True)]
    return Levels(
        names=tuple(f"width_{rate:g}_depth_{number}" for rate, number in chosen),
        width=width,
        exit=exit,
        heads=heads,
        flops=np.asarray([float(cost.step_flops(0, e, h)) for cost, e, h in rows]),
        bytes_down=np.asarray([int(cost.held_bytes(e, h)) for cost, e, h in rows]),
        bytes_up=np.asarray([int(cost.upload_bytes(0, e, h)) for cost, e, h in rows]),
    )


def _submodels(own: Networks, each: Levels, level: np.ndarray | None) -> SubModels:
    """The networks of all levels; `level` is that of every client, if it stays the same."""
    cuts = [truncated(own.models[w], int(e)) for w, e in zip(each.width, each.exit, strict=True)]

    def models(state: PyTree, variables: Variables) -> dict[str, tuple[BlockModel, Variables]]:
        del state
        found = {}
        for name, (model, cut), w in zip(each.names, cuts, each.width, strict=True):
            mine = cut(widths.take(own.layout, own.counts[w], variables, None))
            found[name] = model, mine if own.static is None else own.static(model, mine)
        return found

    return SubModels(models, None if level is None else tuple(each.names[d] for d in level))


def _require_memory(
    own: Networks, options: TrainingOptions, each: Levels, level: np.ndarray
) -> None:
    """Raises `InputError` if a device has too little memory for its level, int64[n]."""
    for w in np.unique(each.width[level]).tolist():
        parts.require_memory(
            replace(own.problem, cost_override=own.costs[w]),
            options,
            0,
            clients=np.flatnonzero(each.width[level] == w),
            exit=each.exit[level],
            heads=each.heads[level],
        )


def _require_usable(problem: Problem, gamma: float, temperature: float) -> None:
    """Raises `InputError` for options that do not fit the problem."""
    require(
        np.isfinite(gamma) and gamma >= 0,
        f"gamma = {gamma}",
        "must be at least 0",
        "use 0.05, or 0 for no distillation",
    )
    require(
        gamma == 0 or problem.objective.outputs == "logits",
        f"objective {problem.objective.name!r} with {problem.objective.outputs}",
        "has no logits of classes, by which the last exit teaches the others",
        "use a classification, or gamma=0",
    )
    require(
        np.isfinite(temperature) and temperature > 0,
        f"temperature = {temperature}",
        "must be positive",
        "use 3",
    )


def _checked_submodels(
    submodels: Sequence[tuple[float, int]] | None, exits: int
) -> list[tuple[float, int]]:
    """Width and number of the exit of every level."""
    if submodels is None:
        return [*_LEVELS[: exits - 1], (1.0, exits)]
    given = [tuple(pair) for pair in submodels]
    require(
        bool(given)
        and all(
            len(pair) == 2 and 0 < pair[0] <= 1 and pair[1] in range(1, exits + 1) for pair in given
        ),
        f"submodels = {given}",
        f"must be pairs of a width in (0, 1] and the number of an exit in 1..{exits}",
        "use ((0.5, 1), (1.0, 2)), or leave it out",
    )
    ordered = all(a != b and a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(given))
    require(
        ordered,
        f"submodels = {given}",
        "must grow in width or depth from each to the next, and shrink in neither",
        "put the smallest first",
    )
    return [(float(rate), int(number)) for rate, number in given]
