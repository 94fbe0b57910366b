"""FedEL: the most important tensors in a sliding window train, within a budget."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.fedel import importance, windows
from fedjax_het.algorithms.fedel.budget import Accounts, Budget
from fedjax_het.algorithms.fedel.importance import Probe
from fedjax_het.algorithms.fedel.selection import choose
from fedjax_het.algorithms.fedel.tensors import TensorTimes, tensor_times
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Count, Unlimited
from fedjax_het.common.options import check_types
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import masked_mean, plain_mean
from fedjax_het.contract.algorithm import Algorithm, Merged, Report, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Question, Situation
from fedjax_het.problem import Problem
from fedjax_het.transforms import server

_MERGES = ("masked", "nova", "plain")


@dataclass(frozen=True)
class Extensions:
    """Extensions of the paper; the defaults are the paper's method.

    Attributes:
      adaptive_beta: whether the importance of a tensor that did not move is its local importance;
        see `importance.blend`.
      global_momentum: share of earlier rounds' movement in the global importance; the paper uses
        only the last round (0).
      bandwidth_aware: whether the budget includes the upload of the selected tensors.
      profile_noise: largest relative error of the tensor times from which clients choose; the
        clock charges the true times.
      starts_per_exit: limit of the compiled programs: the first block with a gradient is rounded
        down to one of this number of blocks per exit. Results and virtual time do not change. None
        for no rounding.
    """

    adaptive_beta: bool = False
    global_momentum: float = 0.0
    bandwidth_aware: bool = False
    profile_noise: float = 0.0
    starts_per_exit: Count | None = None

    def __post_init__(self) -> None:
        check_types(vars(self), "option of extensions", type(self))
        require(
            0 <= self.global_momentum < 1,
            f"extensions.global_momentum = {self.global_momentum}",
            "must lie in [0, 1)",
            "use 0 for the last round alone",
        )
        require(
            0 <= self.profile_noise < 1,
            f"extensions.profile_noise = {self.profile_noise}",
            "must lie in [0, 1)",
            "use 0.2 for profiles that are off by up to 20 %",
        )
        require(
            self.starts_per_exit is None or self.starts_per_exit >= 1,
            f"extensions.starts_per_exit = {self.starts_per_exit}",
            "must be at least 1",
            "leave it out to round nothing",
        )


class State(NamedTuple):
    """State of FedEL between rounds; a window moves only in rounds of its client.

    Attributes:
      lo, hi: int64[n], window of each client's last round; lo is -1 before its first round.
      selected: bool[n, B], blocks of which the client trained a tensor that counts for the end edge
        in that round.
      moved: float32[K], movement of each tensor of the global model (`importance.movement`).
    """

    lo: np.ndarray
    hi: np.ndarray
    selected: np.ndarray
    moved: jax.Array


@register(options=UniformTraining)
def fedel(
    problem: Problem,
    *,
    variant: windows.Variant = "fedel",
    beta: float = 0.6,
    threshold: Unlimited = 1.0,
    agg: Literal["masked", "nova", "plain"] = "masked",
    mu: float = 0.0,
    end_edge: Literal["tensor", "kernel"] = "tensor",
    budget: Budget = Budget(),
    probe: Probe = Probe(),
    extensions: Extensions = Extensions(),
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""FedEL: sliding windows, early exits and elastic tensor selection under one runtime budget.

    Every client measures the importance of its tensors, slides its window (`windows.slide`),
    chooses the most important tensors in the window within its budget (`selection.select`), trains
    them with the loss at an exit after the window's last block, and uploads only them. The server
    takes, per tensor, the mean over the clients that trained it. The budget of all clients is the
    time of the fastest device's full training step; a device s times slower affords 1/s of the
    work.

    Warning: the paper counts backward time only. By default the forward pass through the blocks
    before the window is free, so a device four times slower would in fact take up to twice the
    budget; `info.true_budget_ratio` is the true ratio. `budget=Budget(counts="total")` charges all
    work.

    A device without memory for a whole window (`Fleet.memory_bytes`) trains the deepest blocks of
    the window that fit.

    Args:
      problem: model, data and fleet; the model needs exit heads (`exits=True` in a configuration's
        model section, or `with_exits(model)`), except for `variant="elastic_only"`.
      variant: rule of the windows, see `windows.slide`; "elastic_only" is ElasticTrainer with
        federated averaging.
      beta: weight of the local importance; the global importance has weight 1 - beta.
      threshold: budget over the time of the fastest device's full step.
      agg: mean of the updates: "masked", over the clients that trained a tensor; "nova", the same
        with FedNova's normalisation; or "plain", over all clients.
      mu: factor of FedProx's proximal term on the selected tensors.
      end_edge: tensors whose selection keeps a block in the window: "tensor", any, or "kernel",
        only those of two or more axes. Biases and norms cost next to nothing, so with the former a
        block may stay for them alone.
      budget: options of the budget that the paper does not state.
      probe: options of the measurement of the local importance that the paper does not state.
      extensions: extensions of the paper.
      **training: fields of `UniformTraining`; clients have equal weights as in the paper.

    Returns:
      The algorithm. Its `info` has `budget_ratio` and `true_budget_ratio`, the largest charged and
      true step over the budget; `overrun_clients`; `o1`, the bias term of the paper's analysis;
      `trained_blocks`, the number of clients per device group that trained a tensor of each block;
      `positive_share`, the share of positive local importances; and `tensors_per_window`, the mean
      number of tensors that a client trains.

    References:
      Zhang, Chen, Bian, Wang and Xu, *FedEL*, NeurIPS 2025, arXiv 2509.16902, Algorithm 1; Huang et
      al., *ElasticTrainer*, MobiSys 2023. The authors published no code; exit heads, normalisation
      and the treatment of untrained tensors are our choice (docs/methods/fedel.md).
    """
    options = UniformTraining.parse(training)
    parts.require_constant_fleet(problem, "fedel")
    _check(problem, variant, beta, threshold, agg, mu, end_edge)
    n, blocks = problem.num_clients, problem.model.num_blocks
    times = tensor_times(problem.model, problem.cost)
    accounts = Accounts(
        problem,
        times,
        threshold,
        budget,
        bandwidth_aware=extensions.bandwidth_aware,
        profile_noise=extensions.profile_noise,
    )
    ends = windows.visited(times.block_cost, accounts.window_threshold, variant)
    reach = parts.memory_reach(problem, options, ends)
    measured = (problem, options, times.index, probe)
    of_problem = importance.cohort_probe(*measured)
    structure = problem.model.shapes.params
    holding = _tensors(structure["blocks"], times, kernels=end_edge == "kernel")

    def init(variables: Variables, key: Any) -> State:
        del variables, key
        zeros = np.zeros(n, np.int64)
        moved = jnp.zeros((times.num_tensors,), jnp.float32)
        return State(zeros - 1, zeros, np.zeros((n, blocks), bool), moved)

    def plan(state: State, variables: Variables, situation: Situation) -> tuple[Plan, State]:
        clients = situation.clients
        sizes = problem.data.sizes[clients]
        steps = options.steps(sizes)
        samples = options.samples(sizes, steps)
        lo, hi = windows.slide(
            state.lo[clients],
            state.hi[clients],
            state.selected[clients],
            times.block_cost,
            accounts.window_threshold[clients],
            variant,
        )
        batch = np.minimum(options.batch_size, sizes)
        scale = options.step_scale(situation.round)
        asked = Question(clients, situation.key, {"batch": batch, "exit": hi}, scale)
        local = (situation.measure or of_problem)(variables, asked)
        worth = importance.blend(local, state.moved, beta, extensions.adaptive_beta)
        prices = accounts.prices(clients, samples, hi)
        held = np.maximum(lo, reach[clients, hi])
        chosen = choose(np.asarray(worth), prices, times.block, held, hi, budget.buckets)
        bill = accounts.bill(clients, samples, chosen, hi, situation)
        trained = times.blocks_of(chosen)
        reached = times.block <= np.where(probe.head == "exit", hi, blocks)[:, None]
        positive = importance.positive_share(np.asarray(local), reached)
        tasks = parts.plan_tasks(
            problem,
            options,
            situation,
            timing=bill.timing,
            rows={
                "chosen": chosen,
                "exit": hi.astype(np.int32),
            },
            notes={
                "budget_ratio": bill.ratio,
                "true_budget_ratio": bill.true_ratio,
                "positive_share": positive,
            },
        )
        first = _round_down(np.argmax(trained, axis=1), hi, extensions.starts_per_exit)
        routes = [Route(int(f), int(e)) for f, e in zip(first, hi, strict=True)]
        state = state._replace(
            lo=_put(state.lo, clients, lo),
            hi=_put(state.hi, clients, hi),
            selected=_put(state.selected, clients, times.blocks_of(chosen & holding)),
        )
        return tasks._replace(routes=routes), state

    def mask(row: PyTree, shared: PyTree) -> PyTree:
        del shared
        heads = masks.suffix(structure, jnp.int32(blocks), jnp.asarray(row["exit"]))["exits"]
        tensors = jax.tree.map(lambda place: jnp.asarray(row["chosen"])[place], times.index)
        return {"blocks": tensors, "exits": heads}

    def update(state: State, variables: Variables, merged: Merged) -> tuple[State, Variables]:
        kept = jnp.float32(extensions.global_momentum)
        moved = importance.movement(times.index, variables, merged.variables)
        moved = kept * state.moved + (1.0 - kept) * moved
        return state._replace(moved=moved), merged.variables

    def observe(
        state: State, variables: Variables, report: Report
    ) -> tuple[State, Variables, dict[str, Any]]:
        return state, variables, _books(report.plan, times, problem.fleet.groups)

    algorithm = Algorithm(
        name="fedel",
        init=init,
        plan=plan,
        mask=mask,
        local=options.local_update(problem, proximal=mu),
        merge=plain_mean() if agg == "plain" else masked_mean(),
        update=update,
        observe=observe,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        paces=Paces(
            stop="a task begins with a measurement, so its steps do not share its time equally",
            overlap="its global importance is the movement of the model in the last whole round",
        ),
        measure=importance.measurement(*measured),
    )
    return server.normalised()(algorithm) if agg == "nova" else algorithm


def mask_bias(chosen: np.ndarray) -> float:
    r"""The data-independent factor of the bias term O1: $\sum_i (K \gamma_i - \sum_k c_{i,k})$.

    Args:
      chosen: mask of the chosen tensors, bool[n, K]; $c_{i,k}$ is client i's share in tensor k,
        $\gamma_i = \max_k c_{i,k}$.

    Returns:
      The factor: 0 if all clients train all tensors, positive otherwise.
    """
    share = chosen / np.maximum(chosen.sum(axis=0), 1)
    return float(np.sum(chosen.shape[1] * share.max(axis=1) - share.sum(axis=1)))


def _tensors(blocks: PyTree, times: TensorTimes, *, kernels: bool) -> np.ndarray:
    """Mask of all tensors, or of those of two or more axes, bool[K]."""
    counts = np.ones(times.num_tensors, bool)
    if kernels:
        places = np.asarray(jax.tree.leaves(times.index))
        counts[places] = [leaf.ndim >= 2 for leaf in jax.tree.leaves(blocks)]
    return counts


def _check(
    problem: Problem,
    variant: str,
    beta: float,
    threshold: float,
    agg: str,
    mu: float,
    end_edge: str,
) -> None:
    model = problem.model
    require_known(variant, windows.VARIANTS, "variant")
    require_known(agg, _MERGES, "agg")
    require_known(end_edge, ("tensor", "kernel"), "end_edge")
    require(
        bool(model.exits) or model.num_blocks == 1 or variant == "elastic_only",
        f"model {model.name!r} without exit heads",
        "a window that ends inside the network takes its loss at an exit",
        "set config.model.exits = True, or make the model with_exits(model)",
    )
    require(0 <= beta <= 1, f"beta = {beta}", "must lie in [0, 1]", "use 0.6 as in the paper")
    require(threshold > 0, f"threshold = {threshold}", "must be positive", "use 1")
    require(np.isfinite(mu) and mu >= 0, f"mu = {mu}", "must be at least 0", "try 0.001 to 1")


def _put(old: np.ndarray, clients: np.ndarray, new: np.ndarray) -> np.ndarray:
    out = np.array(old)
    out[clients] = new
    return out


def _round_down(first: np.ndarray, exit: np.ndarray, starts: int | None) -> np.ndarray:
    """The first block with a gradient, rounded down to a grid of `starts` blocks in 0..exit."""
    if starts is None:
        return first
    size = exit + 1
    place = ((first + 1) * starts - 1) // size
    return place * size // starts


def _books(plan: Plan, times: TensorTimes, groups: np.ndarray) -> dict[str, Any]:
    """Records of a round's plan; see `fedel`."""
    ratio, chosen = plan.notes["budget_ratio"], plan.rows["chosen"]
    trained, group = times.blocks_of(chosen), groups[plan.clients]
    return {
        "budget_ratio": float(np.max(ratio)),
        "true_budget_ratio": float(np.max(plan.notes["true_budget_ratio"])),
        "overrun_clients": int(np.sum(ratio > 1 + 1e-6)),
        "o1": mask_bias(chosen),
        "positive_share": float(np.mean(plan.notes["positive_share"])),
        "tensors_per_window": float(np.mean(np.sum(chosen, axis=1))),
        "trained_blocks": [
            trained[group == g].sum(axis=0).tolist() for g in range(int(groups.max()) + 1)
        ],
    }
