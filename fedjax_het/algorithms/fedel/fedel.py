"""FedEL: windows slide through the network; the best tensors inside that fit a budget train."""

from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.fedel import importance, windows
from fedjax_het.algorithms.fedel.budget import Accounting, Budget
from fedjax_het.algorithms.fedel.choice import choose
from fedjax_het.algorithms.fedel.memory import memory_reach
from fedjax_het.algorithms.fedel.prober import Prober
from fedjax_het.algorithms.fedel.tensors import Chain, tensor_times
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import masked_mean, normalised_mean, plain_mean
from fedjax_het.contract.algorithm import Algorithm, Merged, Report, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.problem import Problem


class State(NamedTuple):
    """What FedEL keeps between rounds; windows move only in rounds their client takes part in.

    Attributes:
      lo, hi: int64[n], window of each client's last round; lo is -1 before its first.
      selected: bool[n, B], blocks of which it trained a tensor in that round.
      moved: float32[K], how far each tensor of the global model moved (`importance.movement`).
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
    threshold: float = 1.0,
    budget: Accounting = "backward",
    chain: Chain = "exclusive",
    buckets: int = 1000,
    agg: Literal["masked", "nova", "plain"] = "masked",
    mu: float = 0.0,
    probe: importance.Probe = "full",
    probe_step: float = 0.01,
    adaptive_beta: bool = False,
    global_momentum: float = 0.0,
    bandwidth_aware: bool = False,
    profile_noise: float = 0.0,
    starts_per_exit: int | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""Sliding windows, early exits and elastic tensor selection under one runtime budget.

    Every client probes which tensors matter to it, slides its window (`windows.slide`), chooses the
    most important tensors inside that its budget affords (`selection.select`), trains them with
    the loss at an exit after the window's last block, and uploads only them. The server takes, per
    tensor, the mean over those who trained it. All clients have the budget of the fastest device's
    full training step; a device s times slower affords 1/s of the work.

    Warning: the paper counts backward time only, so with `budget="backward"` the forward pass
    through the blocks before the window is free, and a device four times slower would in truth
    take up to twice the budget; `info.true_budget_ratio` says what it is. `budget="total"` charges
    everything.

    A device whose memory cannot hold a window (`Fleet.memory_bytes`) trains what it can hold of it,
    counted from the exit.

    Args:
      problem: model, data and fleet; the model needs exit heads (`exits=True` in a configuration's
        model section, or `with_exits(model)`), except for `variant="elastic_only"`.
      variant: see `windows.slide`; "elastic_only" is ElasticTrainer with federated averaging.
      beta: weight of the local against the global importance.
      threshold: the budget over that of the fastest device's full step.
      budget: see `Budget`.
      chain: see `TensorTimes.chain`.
      buckets: resolution of the selection, parts of the budget.
      agg: "masked"; "nova", FedNova's normalisation per tensor; or "plain", the mean over everyone.
      mu: FedProx's pull towards the round's model, on the selected tensors.
      probe: where the probe takes its loss, see `importance.local_probe`.
      probe_step: share of the client's step that the probe takes. 1 is ElasticTrainer's real step,
        which was small: at rates of 0.1 it overshoots, useful tensors look harmful and are not
        trained (docs/results/fedel.md). Towards 0 the importance becomes the squared gradient norm.
      adaptive_beta: see `importance.blend`; beyond the paper.
      global_momentum: share of the last rounds' movement in the global importance; beyond the
        paper, which takes the last round alone (0).
      bandwidth_aware: the budget also pays for the upload of the selected tensors; beyond the
        paper.
      profile_noise: clients plan with tensor times that are wrong by up to this share; the clock
        charges the true ones.
      starts_per_exit: bounds the compiled programs: the first block with a gradient is rounded down
        to one of so many per exit. Numbers and virtual time do not change. None rounds nothing.
      **training: see `UniformTraining`; clients weigh alike as in the paper.

    Returns:
      The algorithm. Its `info`: `budget_ratio` and `true_budget_ratio`, the largest step as charged
      and as it really is over the budget; `overrun_clients`; `o1`, the bias term of the paper's
      analysis; `trained_blocks`, clients per device group that trained a tensor of each block.

    References:
      Zhang, Chen, Bian, Wang and Xu, *FedEL*, NeurIPS 2025, arXiv 2509.16902, Algorithm 1; Huang et
      al., *ElasticTrainer*, MobiSys 2023. The authors published no code; exit heads, normalisation
      and the treatment of tensors that nobody trained are ours.
    """
    options = UniformTraining.parse(training)
    parts.require_constant_fleet(problem, "fedel")
    require_known(variant, windows.VARIANTS, "variant")
    require_known(agg, ("masked", "nova", "plain"), "agg")
    require_known(probe, ("full", "exit"), "probe")
    _check(problem, variant, beta, probe_step, global_momentum, mu, buckets, starts_per_exit)
    n, blocks = problem.num_clients, problem.model.num_blocks
    times = tensor_times(problem.model, problem.cost)
    accounts = Budget(problem, times, threshold, budget, chain, bandwidth_aware, profile_noise)
    ends = windows.visited(times.block_cost, accounts.window_threshold, variant)
    reach = memory_reach(problem, options, ends)
    prober = Prober(problem, options, times.index, probe, probe_step)

    def init(variables: Variables, key: Any) -> State:
        del variables, key
        zeros = np.zeros(n, np.int64)
        moved = jnp.zeros((times.num_tensors,), jnp.float32)
        return State(zeros - 1, zeros, np.zeros((n, blocks), bool), moved)

    def plan(state: State, variables: Variables, situation: Situation) -> tuple[Plan, State]:
        clients = situation.clients
        lo, hi = windows.slide(
            state.lo[clients],
            state.hi[clients],
            state.selected[clients],
            times.block_cost,
            accounts.window_threshold[clients],
            variant,
        )
        batch = np.minimum(options.batch_size, problem.data.sizes[clients])
        local = prober(variables, clients, batch, hi, situation.key)
        worth = np.asarray(importance.blend(local, state.moved, beta, adaptive_beta))
        steps = options.steps(problem.data.sizes[clients])
        samples = options.samples(problem.data.sizes[clients], steps)
        held = np.maximum(lo, reach[clients, hi])
        chosen = choose(accounts, clients, samples, held, hi, worth, buckets)
        bill = accounts.bill(clients, samples, chosen, hi, situation)
        trained = times.blocks_of(chosen)
        tasks = parts.plan_tasks(
            problem,
            options,
            situation,
            timing=bill.timing,
            rows={
                "chosen": chosen,
                "exit": hi.astype(np.int32),
                "steps": steps.astype(np.float32),
            },
            notes={"budget_ratio": bill.ratio, "true_budget_ratio": bill.true_ratio},
        )
        first = _round_down(np.argmax(trained, axis=1), hi, starts_per_exit)
        routes = [Route(int(f), int(e)) for f, e in zip(first, hi, strict=True)]
        state = state._replace(
            lo=_put(state.lo, clients, lo),
            hi=_put(state.hi, clients, hi),
            selected=_put(state.selected, clients, trained),
        )
        return tasks._replace(routes=routes), state

    structure = problem.model.shapes.params

    def mask(row: PyTree, shared: PyTree) -> PyTree:
        del shared
        heads = masks.suffix(structure, jnp.int32(blocks), jnp.asarray(row["exit"]))["exits"]
        tensors = jax.tree.map(lambda place: jnp.asarray(row["chosen"])[place], times.index)
        return {"blocks": tensors, "exits": heads}

    def update(state: State, variables: Variables, merged: Merged) -> tuple[State, Variables]:
        kept = jnp.float32(global_momentum)
        moved = importance.movement(times.index, variables, merged.variables)
        moved = kept * state.moved + (1.0 - kept) * moved
        return state._replace(moved=moved), merged.variables

    def observe(
        state: State, variables: Variables, report: Report
    ) -> tuple[State, Variables, dict[str, Any]]:
        rows = {**report.plan.rows, **report.plan.notes}
        info = {
            "budget_ratio": float(np.max(rows["budget_ratio"])),
            "true_budget_ratio": float(np.max(rows["true_budget_ratio"])),
            "overrun_clients": int(np.sum(rows["budget_ratio"] > 1 + 1e-6)),
            "o1": mask_bias(rows["chosen"]),
            "trained_blocks": _by_group(
                times.blocks_of(rows["chosen"]), problem.fleet.groups, report.plan.clients
            ),
        }
        return state, variables, info

    return Algorithm(
        name="fedel",
        init=init,
        plan=plan,
        mask=mask,
        local=options.local_update(problem, proximal=mu),
        merge={"masked": masked_mean, "nova": normalised_mean, "plain": plain_mean}[agg](),
        update=update,
        observe=observe,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
    )


def mask_bias(chosen: np.ndarray) -> float:
    r"""The data-independent factor of the bias term O1: $\sum_i (K \gamma_i - \sum_k c_{i,k})$.

    Args:
      chosen: bool[n, K]; $c_{i,k}$ is client i's share in tensor k, $\gamma_i = \max_k c_{i,k}$.

    Returns:
      0 when everyone trains everything, positive otherwise.
    """
    share = chosen / np.maximum(chosen.sum(axis=0), 1)
    return float(np.sum(chosen.shape[1] * share.max(axis=1) - share.sum(axis=1)))


def _check(
    problem: Problem,
    variant: str,
    beta: float,
    probe_step: float,
    global_momentum: float,
    mu: float,
    buckets: int,
    starts_per_exit: int | None,
) -> None:
    model = problem.model
    require(
        bool(model.exits) or model.num_blocks == 1 or variant == "elastic_only",
        f"model {model.name!r} without exit heads",
        "a window that ends inside the network takes its loss at an exit",
        "set config.model.exits = True, or make the model with_exits(model)",
    )
    require(0 <= beta <= 1, f"beta = {beta}", "must lie in [0, 1]", "use 0.6 as in the paper")
    require(
        0 < probe_step <= 1,
        f"probe_step = {probe_step}",
        "must lie in (0, 1]",
        "use 1 for a real step, 0.01 for gradient norms",
    )
    require(
        0 <= global_momentum < 1,
        f"global_momentum = {global_momentum}",
        "must lie in [0, 1)",
        "use 0 for the last round alone",
    )
    require(np.isfinite(mu) and mu >= 0, f"mu = {mu}", "must be at least 0", "try 0.001 to 1")
    require(buckets >= 1, f"buckets = {buckets}", "must be at least 1", "use 1000")
    require(
        starts_per_exit is None or starts_per_exit >= 1,
        f"starts_per_exit = {starts_per_exit}",
        "must be at least 1",
        "leave it out to round nothing",
    )


def _put(old: np.ndarray, clients: np.ndarray, new: np.ndarray) -> np.ndarray:
    out = np.array(old)
    out[clients] = new
    return out


def _round_down(first: np.ndarray, exit: np.ndarray, starts: int | None) -> np.ndarray:
    """The first block with a gradient, on a grid of `starts` blocks in 0..exit."""
    if starts is None:
        return first
    size = exit + 1
    place = ((first + 1) * starts - 1) // size
    return place * size // starts


def _by_group(trained: np.ndarray, groups: np.ndarray, clients: np.ndarray) -> list[list[int]]:
    """Clients of each device group that trained a tensor of each block."""
    count = int(groups.max()) + 1
    return [trained[groups[clients] == g].sum(axis=0).tolist() for g in range(count)]
