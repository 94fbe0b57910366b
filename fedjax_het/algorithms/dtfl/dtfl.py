"""DTFL: the network is cut at a tier per client, and a scheduler moves the cuts every round."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.dtfl import profiles, scheduler, timing
from fedjax_het.algorithms.dtfl.local import Privacy, Shuffle, check_privacy, split_training
from fedjax_het.algorithms.dtfl.scheduler import History
from fedjax_het.algorithms.dtfl.tiers import Tiers, cuts, split
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import SplitTraining, TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm, Report, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.problem import Problem
from fedjax_het.transforms.plateau import on_plateau


@register(options=SplitTraining)
def dtfl(
    problem: Problem,
    *,
    tiers: int | None = None,
    profile: profiles.Source | profiles.Profile = "analytic",
    ema: float = 2 / 3,
    initial_tier: int = 2,
    fixed_tier: int | Sequence[int] | None = None,
    lagged: bool = False,
    server_flops_per_s: float | None = None,
    server_opt_reset: Literal["round", "batch"] = "round",
    dcor: float | Sequence[float] = 0.0,
    dcor_squared: bool = False,
    shuffle: Shuffle = "none",
    patch: int = 4,
    plateau: int | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""Dynamic tiers, split training with local losses.

    In tier m a client trains the first m blocks with an auxiliary head of its own loss, while the
    server trains the rest on the client's activations, on a copy per client. Nothing comes back
    through the cut, so both work side by side. The server then averages whole networks,
    $w = \sum_k n_k w_k / \sum_k n_k$, whatever their cuts, and the heads of each tier among
    themselves. A scheduler observes how long everyone computes and chooses next round's tiers
    (`scheduler`).

    Warning: the published clock leaves the server's time out and lets its optimiser forget at
    every batch; `server_flops_per_s=inf` and `server_opt_reset="batch"` do as much. Here a tier is
    chosen under this round's T_max (`lagged=True`: under the last one's), and the mean is weighted
    with the clients' own sample counts (the authors' code mixes them up between rounds).

    Args:
      problem: model, data and fleet; the model needs exit heads (`exits=True` in a configuration's
        model section, or `with_exits(model)`), which serve as auxiliary heads.
      tiers: M, how many of the model's boundaries may be cut, the deepest; None for all.
      profile: what the scheduler believes: "analytic", "paper", "code", or a `Profile`.
      ema: weight of a new observation. The paper's is unknown, the authors' code has 2/3 and, in an
        older version, 1/3.
      initial_tier: everyone's first tier, from 1; at most M.
      fixed_tier: pins everyone (or each client) to a tier, from 1, in place of the scheduler.
      lagged: assign with the T_max of the round before, as the authors' code does.
      server_flops_per_s: of the server, on each client's copy; None for the fastest device's.
      server_opt_reset: how long the server's optimiser remembers.
      dcor: weight of the distance correlation in the client's loss, one or one per client.
      dcor_squared: of squared distances, as in the authors' code.
      shuffle: what of the activations is permuted before they are sent; the authors' code permutes
        channels.
      patch: side of the patches for `shuffle="space"`; 4 is ours.
      plateau: rounds without a better test accuracy after which the step shrinks by a tenth; the
        authors' code has 10. None keeps it.
      **training: see `SplitTraining`; the paper's are learning_rate=1e-3, batch_size=100.

    Returns:
      The algorithm. Its `info`: `tiers`, clients in each; `longest_s`, the scheduler's T_max;
      `speed_flops_per_s` of every task's device;
      `observed_s`, the slowest compute time; `server_flops`; `client_loss`, `server_loss` and,
      where in use, `correlation`, means over the clients.

    References:
      Sajjadi Mohammadabadi et al., *DTFL*, arXiv 2312.05642, Algorithm 1.
    """
    options = SplitTraining.parse(training)
    model, n = problem.model, problem.num_clients
    require(
        bool(model.exits) and not model.shared_exit,
        f"model {model.name!r} "
        + ("with one head for all" if model.exits else "without")
        + " exits",
        "a client half learns from an auxiliary head of its tier",
        "set config.model.exits = True, or make the model with_exits(model)",
    )
    require(0 < ema <= 1, f"ema = {ema}", "must lie in (0, 1]", "use 2/3")
    require_known(server_opt_reset, ("round", "batch"), "server_opt_reset")
    table = split(problem.cost, cuts(model.num_blocks, tiers))
    speed = timing.server_speed(server_flops_per_s, problem.fleet)
    belief = profiles.choose(profile, table, speed)
    pinned = None if fixed_tier is None else _tiers("fixed_tier", fixed_tier, n, table.size)
    first = min(initial_tier, table.size) if pinned is None else fixed_tier
    alpha = np.broadcast_to(np.asarray(dcor, np.float32), (n,)) if np.ndim(dcor) == 0 else dcor
    alpha = np.asarray(alpha, np.float32)
    require(
        alpha.shape == (n,) and bool(np.all((alpha >= 0) & (alpha <= 1))),
        f"dcor = {dcor}",
        f"must be a share in [0, 1], or one for each of the {n} clients",
        "use 0 for none, or 0.25",
    )
    privacy = Privacy(bool(alpha.any()), dcor_squared, shuffle, patch)
    check_privacy(privacy, model)
    labels = int(np.prod(problem.data.y.shape[1:]))
    holds = _holds(problem, options, table)
    start = _deepest_held(_tiers("initial_tier", first, n, table.size), holds)

    def init(variables: Variables, key: Any) -> History:
        del variables, key
        return scheduler.begin(n, table.size, start)

    def plan(state: History, variables: Variables, situation: Situation) -> tuple[Plan, History]:
        del variables
        clients = situation.clients
        tier = state.tier[clients]
        samples = _samples(problem, options, clients)
        fleet = problem.fleet.at(situation.round)
        moved = timing.split_bytes(table, tier, samples, labels)
        prices, client_s = timing.timing(
            fleet,
            clients,
            table.client_flops[tier] * samples,
            table.server_flops[tier] * samples / speed,
            moved,
            situation.now_s,
            situation.rng,
        )
        # The server sees when a task is done and knows what its transfer should take.
        taken_s = client_s + prices.download_s + prices.upload_s
        observed_s = taken_s - timing.transfer_s(fleet, clients, moved)
        cut = table.cut[tier]
        rows = {"cut": cut.astype(np.int32)}
        notes = {"tier": tier, "observed_s": observed_s}
        notes["speed"] = fleet.speed(clients, situation.now_s)
        if privacy.correlation:
            rows["alpha"] = alpha[clients]
        tasks = parts.plan_tasks(problem, options, situation, notes=notes, timing=prices)
        rows["weight"] = tasks.weight
        last = model.num_blocks - 1
        return tasks._replace(routes=[Route(0, last, int(c)) for c in cut], rows=rows), state

    structure = jax.eval_shape(lambda: model.init(jax.random.key(0))).params

    def mask(row: PyTree, shared: PyTree) -> PyTree:
        del shared
        heads = masks.suffix(structure, jnp.int32(0), jnp.asarray(row["cut"]))["exits"]
        return {**masks.everything(structure), "exits": heads}

    def factors(row: PyTree, shared: PyTree) -> PyTree:
        """Heads count alike within their tier; blocks as their clients weigh."""
        del shared
        one = jnp.ones((), jnp.float32)
        return {
            "blocks": jax.tree.map(lambda _: one, structure["blocks"]),
            "exits": jax.tree.map(lambda _: one / row["weight"], structure["exits"]),
        }

    def observe(
        state: History, variables: Variables, report: Report
    ) -> tuple[History, Variables, dict[str, Any]]:
        clients, rows = report.plan.clients, report.plan.notes
        state = scheduler.observe(state, clients, rows["tier"], rows["observed_s"], ema)
        samples = _samples(problem, options, clients)
        fleet = problem.fleet.at(report.round)
        every = np.arange(table.size)[None, :]
        moved = timing.split_bytes(table, every, samples[:, None], labels)
        round_s = scheduler.estimate(
            belief,
            state.ema_s[clients, rows["tier"]],
            rows["tier"],
            samples,
            timing.transfer_s(fleet, clients, moved),
        )
        round_s = np.where(holds[clients], round_s, np.inf)
        bound_s = float(state.longest_s) if lagged else None
        chosen, longest_s = scheduler.assign(round_s, bound_s)
        if pinned is not None:
            chosen = state.tier[clients]
        state = scheduler.reassign(state, clients, chosen, longest_s)
        kept = report.merged
        info = {
            "tiers": np.bincount(rows["tier"], minlength=table.size).tolist(),
            "longest_s": longest_s,
            "speed_flops_per_s": rows["speed"].tolist(),
            "observed_s": float(np.max(rows["observed_s"])),
            "server_flops": float(np.sum(table.server_flops[rows["tier"]] * samples)),
            **{name: _mean(values, kept) for name, values in report.client_info.items()},
        }
        return state, variables, info

    local = split_training(
        model,
        problem.data.pipeline,
        options.optimizer(),
        max_batch=min(options.batch_size, int(np.max(problem.data.sizes))),
        privacy=privacy,
        server_reset=server_opt_reset,
    )
    algorithm = Algorithm(
        name="dtfl",
        init=init,
        plan=plan,
        mask=mask,
        local=local,
        merge=masked_mean(factor=factors),
        update=parts.replace,
        observe=observe,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
    )
    return on_plateau(algorithm, plateau)


def _samples(problem: Problem, options: TrainingOptions, clients: np.ndarray) -> np.ndarray:
    sizes = problem.data.sizes[clients]
    return options.samples(sizes, options.steps(sizes))


def _mean(values: np.ndarray, kept: np.ndarray) -> float:
    return float(np.mean(values[kept])) if kept.any() else float("nan")


def _tiers(name: str, value: Any, n: int, count: int) -> np.ndarray:
    """A tier for each client, int64[n], counted from 0."""
    tier = np.asarray(value)
    require(
        tier.dtype.kind in "iu"
        and tier.shape in ((), (n,))
        and bool(np.all((tier >= 1) & (tier <= count))),
        f"{name} = {value}",
        f"must be a tier from 1 to {count}, or one for each of the {n} clients",
        "tier 1 leaves most of the network to the server",
    )
    return np.broadcast_to(tier.astype(np.int64) - 1, (n,))


def _holds(problem: Problem, options: TrainingOptions, table: Tiers) -> np.ndarray:
    """bool[n, M]: tiers whose client half fits into the memory of each device."""
    batch = np.minimum(options.batch_size, problem.data.sizes)
    need = problem.cost.memory_bytes(0, table.cut[None, :], batch[:, None], options.optimizer_slots)
    fits = need <= problem.fleet.memory_bytes[:, None]
    short = np.flatnonzero(~fits.any(axis=1))
    require(
        short.size == 0,
        f"clients {short[:5].tolist()} (of {short.size}), memory "
        f"{problem.fleet.memory_bytes[short[:5]]} bytes",
        f"must hold the client half of a tier, from {np.min(need):.4g} bytes on",
        "use smaller batches, or allow shallower tiers",
    )
    return fits


def _deepest_held(tier: np.ndarray, holds: np.ndarray) -> np.ndarray:
    """The wanted tier of each client, or the next one that it can hold: shallower if there is."""
    places = np.arange(holds.shape[1])
    away = np.abs(places[None, :] - tier[:, None]) * 2 + (places[None, :] > tier[:, None])
    return np.argmin(np.where(holds, away, np.iinfo(np.int64).max), axis=1)
