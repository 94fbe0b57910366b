"""DepthFL: every device trains as many of the first blocks as it affords, with several exits."""

from collections.abc import Callable, Sequence
from typing import Unpack

import numpy as np

from fedjax_het.algorithms import depths, parts
from fedjax_het.algorithms.client_memory import require_room
from fedjax_het.algorithms.dynamic import pull_back, regularised
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count, Unlimited
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.contract.submodels import SubModels
from fedjax_het.fleet.cost import price
from fedjax_het.local.exits import exits_training, mutual, summed
from fedjax_het.models.base import BlockModel
from fedjax_het.models.exits import ensemble, truncated
from fedjax_het.problem import Problem


def distillation_factor(round: int, ramp_rounds: int) -> float:
    r"""The factor $\lambda(t) = \exp(-5 (1 - \min(t, T) / T)^2)$, which rises to 1 in T rounds."""
    return float(np.exp(-5.0 * (1.0 - min(round, ramp_rounds) / ramp_rounds) ** 2))


def submodels(
    problem: Problem, exits: Sequence[int], levels: Sequence[int] | None = None
) -> SubModels:
    """The networks by which DepthFL is judged.

    They are `depth_1` to `depth_D`, the network that ends at each exit, and `ensemble`, the mean of
    the outputs of all exits, which is the prediction of the paper.

    Args:
      problem: model, data and fleet.
      exits: exit blocks of the levels 1..D.
      levels: level of every client, if it has the same in every round.
    """
    networks = {f"depth_{i}": truncated(problem.model, b) for i, b in enumerate(exits, 1)}
    networks["ensemble"] = ensemble(problem.model, exits)

    def models(state: PyTree, variables: Variables) -> dict[str, tuple[BlockModel, Variables]]:
        del state
        return {name: (model, own(variables)) for name, (model, own) in networks.items()}

    return SubModels(models, None if levels is None else tuple(f"depth_{d}" for d in levels))


@register(options=UniformTraining)
def depthfl(
    problem: Problem,
    *,
    exits: Sequence[Count] | None = None,
    levels: Sequence[Count] | str | None = None,
    capacity: Sequence[float] | Callable[[int], np.ndarray] | None = None,
    distill: bool = True,
    ramp_rounds: Count = 300,
    alpha: float = 0.1,
    memory_bytes: Unlimited = 16e9,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""DepthFL: sub-models by depth, whose exits teach one another, merged with FedDyn.

    A client of level d has the blocks up to the exit block $e_d$ and the heads at $e_1, ..., e_d$,
    which is also all that it downloads and uploads. It minimises

    $$\sum_{i \le d} F_i + \frac{\lambda(t)}{d - 1} \sum_i \sum_{j \ne i} KL(p_j \| p_i)
    - \langle g_k, w \rangle + \frac{\alpha}{2} \lVert w - w_t \rVert^2$$

    with $\lambda(t) = \exp(-5 (1 - \min(t, T) / T)^2)$ in round t, teachers $p_j$ that are constant
    and no second term for d = 1; then $g_k \leftarrow g_k - \alpha (w - w_t)$. Every tensor goes to
    the mean $\bar w$ over the c clients that have it and, with n clients in all,

    $$h \leftarrow h - \alpha \frac{c}{n} (\bar w - w), \qquad w \leftarrow \bar w - h / \alpha.$$

    A tensor that nobody has keeps its value; running statistics are averaged only. A device holds
    one array per parameter of its sub-model more, the simulation n models.

    The heads are those of `with_exits`, a mean over positions and a linear layer; those of the
    authors are attention bottlenecks. The paper predicts by the mean of the logits of all heads,
    which evaluations record as `<metric>[ensemble]`, beside `<metric>[depth_<d>]` of every exit;
    the metrics of a run are those of the last head. A model may have more blocks than levels, so
    the exits are a choice here, and the level of a device follows from its speed.

    Args:
      problem: model, data and fleet; the model needs exit heads.
      exits: exit blocks $e_1 < ... < e_D$ of the levels, the last block last; None for four evenly
        by cost (`depths.exit_blocks`), or all blocks if there are fewer.
      levels: level 1..D of every client; "even" for 1..D in turn over the clients, so that every
        level has the same share (25 % of four in the paper). None for the largest that a client
        affords by `capacity`, or else the smallest, whose devices will be late.
      capacity: compute capacity of each client in (0, 1], relative to the cost of the largest
        level, or a function of the round; None for each device's speed relative to the fastest, in
        every round if devices are re-drawn.
      distill: whether the heads teach one another. An objective without logits of classes needs
        False. Positions without a label are distilled as well.
      ramp_rounds: number T of rounds in which $\lambda$ rises to 1.
      alpha: factor of FedDyn's terms; 0 for the plain mean over the clients that have a tensor.
      memory_bytes: limit of the bytes of all clients' gradients $g_k$.
      **training: fields of `UniformTraining`; the paper has learning_rate=0.1 with a factor of
        0.998 a round, weight_decay=1e-3, epochs=5, batch_size=50. `weighting="samples"` weighs all
        sums over clients by n_k over the mean of all clients.

    Returns:
      The algorithm. Its `info` has the number of devices below the cost of the first level as
      `infeasible_clients`, and with FedDyn the weight merged of every tensor as `holders`, in the
      order of `jax.tree.leaves`.

    References:
      Kim, Yu, Kim and Moon, *DepthFL: Depthwise Federated Learning for Heterogeneous Clients*, ICLR
      2023, and the authors' code. Acar et al. 2021 for FedDyn.
    """
    options = UniformTraining.parse(training)
    ends = depths.checked_exits(problem, exits)
    _require_usable(problem, distill, ramp_rounds, alpha)
    if alpha:
        require_room(problem, "depthfl", memory_bytes)
    heads = depths.earlier_heads(ends, problem.model.num_blocks)
    routes = [Route(0, int(e), heads=tuple(ends[:d].tolist())) for d, e in enumerate(ends)]
    fixed = depths.given_levels(problem, levels, capacity, len(ends))

    def levels_at(round: int) -> tuple[np.ndarray, int]:
        """Index of the level of every client, int64[n], and the number of infeasible clients."""
        if fixed is None:
            kappa = parts.capacities(problem, capacity, round)
            work = problem.cost.step_flops(0, ends, heads)
            level, infeasible = depths.affordable_levels(work, kappa)
        else:
            level, infeasible = fixed, 0
        kept = {"exit": ends[level], "heads": heads[level]}
        parts.require_memory(problem, options, 0, int(alpha > 0), **kept)
        return level, infeasible

    start, _ = levels_at(0)
    # Clients of one level in every round can be judged by the network that they have.
    changing = fixed is None and (callable(capacity) or problem.fleet.redraw is not None)

    def tasks(situation: Situation) -> Plan:
        level, infeasible = levels_at(situation.round)
        level = level[situation.clients]
        sizes = problem.data.sizes[situation.clients]
        timing = price(
            problem.cost,
            problem.fleet.at(situation.round),
            situation.clients,
            0,
            ends[level],
            options.samples(sizes, options.steps(sizes)),
            situation.now_s,
            situation.rng,
            heads=heads[level],
            bytes_down=problem.cost.held_bytes(ends[level], heads[level]),
        )
        rows = {"exit": ends[level].astype(np.int32)}
        plan = parts.plan_tasks(problem, options, situation, rows=rows, timing=timing)
        factor = np.float32(distillation_factor(situation.round, ramp_rounds))
        return relative(
            situation,
            plan._replace(
                routes=[routes[d] for d in level.tolist()],
                shared={"distillation": factor},
                info={"infeasible_clients": infeasible},
            ),
        )

    relative = parts.relative_weights(problem, options)
    base = Algorithm(
        name="depthfl",
        init=parts.stateless,
        plan=Schedule(tasks),
        mask=depths.prefix_mask(problem.model, ends.tolist()),
        local=exits_training(
            problem.model,
            problem.data.pipeline,
            options.optimizer(),
            problem.objective,
            exits=ends.tolist(),
            max_batch=options.largest_batch(problem),
            combine=mutual if distill else summed,
            proximal=options.proximal + alpha,
            linear=pull_back if alpha else None,
        ),
        merge=masked_mean(),
        update=parts.replace,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        paces=Paces(overlap=True),
        submodels=submodels(problem, ends.tolist(), None if changing else (start + 1).tolist()),
    )
    return regularised(base, problem, alpha) if alpha else base


def _require_usable(problem: Problem, distill: bool, ramp_rounds: int, alpha: float) -> None:
    """Raises `InputError` for options that do not fit the problem or one another."""
    require(
        not distill or problem.objective.outputs == "logits",
        f"objective {problem.objective.name!r} with {problem.objective.outputs}",
        "has no logits of classes, by which heads teach one another",
        "use a classification, or distill=False",
    )
    require(ramp_rounds >= 1, f"ramp_rounds = {ramp_rounds}", "must be at least 1", "use 300")
    require(
        np.isfinite(alpha) and alpha >= 0,
        f"alpha = {alpha}",
        "must be at least 0",
        "use 0.1, or 0 for no FedDyn",
    )
