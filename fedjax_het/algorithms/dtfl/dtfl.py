"""DTFL: the network is cut at a tier per client; a scheduler chooses the cuts every round."""

from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.dtfl import profiles
from fedjax_het.algorithms.dtfl.scheduler import History, Scheduler, advance, begin, first_tiers
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Count, Unlimited
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Aggregator, Algorithm, Report, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Situation, Timing
from fedjax_het.fleet import splits
from fedjax_het.local.privacy import Privacy
from fedjax_het.local.split import split_training
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem
from fedjax_het.transforms.plateau import on_plateau


@register
def dtfl(
    problem: Problem,
    *,
    tiers: Count | None = None,
    scheduler: Scheduler = Scheduler(),
    privacy: Privacy = Privacy(),
    server_flops_per_s: Unlimited | None = None,
    server_opt_reset: Literal["round", "batch"] = "round",
    plateau: Count | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""DTFL: split training with local losses and dynamic tiers.

    In tier m a client trains the first m blocks with the loss of an auxiliary head. The server
    trains the other blocks on the client's activations, on one copy per client. No gradient passes
    the cut, so both compute in parallel. The server then averages whole networks,
    $w = \sum_k n_k w_k / \sum_k n_k$, for all cuts, and the heads of each tier separately. A
    scheduler observes the compute times of the clients and chooses the tiers of the next round
    (`scheduler`).

    Warning: the published clock ignores the server's time, and the published code resets the
    server's optimiser at every batch; `server_flops_per_s=inf` and `server_opt_reset="batch"` do
    the same. Here the T_max of the current round limits the tiers (with `Scheduler.lagged` that of
    the last round), and the mean has the clients' sample counts as weights (the authors' code
    confuses the counts of clients between rounds).

    Args:
      problem: model, data and fleet; the model needs exit heads (`exits=True` in a configuration's
        model section, or `with_exits(model)`), which serve as auxiliary heads.
      tiers: number M of boundaries that may be cut, the deepest of the model; None for all. Tiers
        count from 1 to M, the deepest client half last.
      scheduler: options of the tier scheduler.
      privacy: options of the clients' protection of their activations.
      server_flops_per_s: speed of the server on each client's copy; None for that of the fastest
        device.
      server_opt_reset: interval after which the server's optimiser starts new, "round" or "batch".
      plateau: number of rounds without a better test accuracy after which the step size is reduced
        by 10 %; the authors' code has 10. None for a constant step size.
      **training: fields of `TrainingOptions`; the paper has learning_rate=1e-3, batch_size=100,
        client_optimizer="amsgrad" and weight_decay=5e-4.

    Returns:
      The algorithm. Its `info` has `tiers`, the number of clients in each tier; `longest_s`, the
      scheduler's T_max; `observed_s`, the longest compute time; `server_flops`; and the means over
      the clients `client_loss`, `server_loss` and, if it is in the loss, `correlation`.

    References:
      Sajjadi Mohammadabadi et al., *DTFL*, arXiv 2312.05642, Algorithm 1; methods/dtfl.md.
    """
    options = TrainingOptions.parse(training)
    options.require_separable("dtfl")
    model, n = problem.model, problem.num_clients
    _require_heads(model)
    require_known(server_opt_reset, ("round", "batch"), "server_opt_reset")
    table = splits.price_tiers(problem.cost, splits.cuts(model.num_blocks, tiers))
    speed = splits.server_speed(server_flops_per_s, problem.fleet)
    belief = profiles.choose(scheduler.profile, table, speed)
    work = _Work(problem, options, table, speed)
    holds = work.holds()
    first, alpha = first_tiers(scheduler, holds, table.cut), privacy.weights(n)
    structure = model.shapes.params
    last = model.num_blocks - 1

    def init(variables: Variables, key: Any) -> History:
        del variables, key
        return begin(n, table.size, first)

    def plan(state: History, variables: Variables, situation: Situation) -> tuple[Plan, History]:
        del variables
        clients = situation.clients
        tier = state.tier[clients]
        prices, observed_s = work.price(situation, tier)
        notes = {"tier": tier, "observed_s": observed_s}
        tasks = parts.plan_tasks(problem, options, situation, notes=notes, timing=prices)
        cut = table.cut[tier]
        rows = {"cut": cut.astype(np.int32), "weight": tasks.weight, "alpha": alpha[clients]}
        return tasks._replace(routes=[Route(0, last, int(c)) for c in cut], rows=rows), state

    def mask(row: PyTree, shared: PyTree) -> PyTree:
        del shared
        heads = masks.suffix(structure, jnp.int32(0), jnp.asarray(row["cut"]))["exits"]
        return {**masks.everything(structure), "exits": heads}

    def observe(
        state: History, variables: Variables, report: Report
    ) -> tuple[History, Variables, dict[str, Any]]:
        clients, notes = report.plan.clients, report.plan.notes
        tier, samples = notes["tier"], work.samples(clients)
        state = advance(
            state,
            scheduler,
            belief,
            clients=clients,
            tier=tier,
            compute_s=notes["observed_s"],
            samples=samples,
            transfer_s=work.transfer_s(report.round, clients),
            holds=holds[clients],
        )
        info = {
            "tiers": np.bincount(tier, minlength=table.size).tolist(),
            "longest_s": float(state.longest_s),
            "observed_s": float(np.max(notes["observed_s"])),
            "server_flops": float(np.sum(table.server_flops[tier] * samples)),
            **{name: _mean(values, report.merged) for name, values in report.client_info.items()},
        }
        return state, variables, info

    local = split_training(
        model,
        problem.data.pipeline,
        options.optimizer(),
        problem.objective,
        max_batch=min(options.batch_size, int(np.max(problem.data.sizes))),
        privacy=privacy,
        server_reset=server_opt_reset,
        proximal=options.proximal,
    )
    algorithm = Algorithm(
        name="dtfl",
        init=init,
        plan=plan,
        mask=mask,
        local=local,
        merge=_merge(structure),
        update=parts.replace,
        observe=observe,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        sends="activations and its part of the network",
        paces=Paces(
            drop="its scheduler must observe the time of every task, or a client keeps its tier",
            overlap="its scheduler balances the tiers of the clients of one round",
        ),
    )
    return on_plateau(algorithm, plateau)


class _Work(NamedTuple):
    """Prices of the clients' tasks in each tier.

    Attributes:
      problem: model, data and fleet.
      training: options of the clients.
      tiers: prices of the tiers.
      server_flops_per_s: speed of the server on one client's copy.
    """

    problem: Problem
    training: TrainingOptions
    tiers: splits.Tiers
    server_flops_per_s: float

    def holds(self) -> np.ndarray:
        """Mask of the tiers whose client half fits into each device's memory, bool[n, M]."""
        problem, training = self.problem, self.training
        batch = np.minimum(training.batch_size, problem.data.sizes)
        need = problem.cost.memory_bytes(
            0, self.tiers.cut[None, :], batch[:, None], training.optimizer_slots
        )
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

    def samples(self, clients: np.ndarray) -> np.ndarray:
        """Number of samples that each client processes in a round, int64[k]."""
        sizes = self.problem.data.sizes[clients]
        return self.training.samples(sizes, self.training.steps(sizes))

    def moved(self, clients: np.ndarray, tier: np.ndarray) -> splits.Bytes:
        """Bytes of a task of each client, shape [k] or [k, M] like `tier`."""
        samples = self.samples(clients).reshape((-1,) + (1,) * (tier.ndim - 1))
        labels = int(np.prod(self.problem.data.y.shape[1:]))
        return splits.split_bytes(self.tiers, tier, samples, labels)

    def transfer_s(self, round: int, clients: np.ndarray) -> np.ndarray:
        """Expected communication time in every tier in seconds, float64[k, M]."""
        every = np.arange(self.tiers.size)[None, :]
        return splits.transfer_s(self.problem.fleet.at(round), clients, self.moved(clients, every))

    def price(self, situation: Situation, tier: np.ndarray) -> tuple[Timing, np.ndarray]:
        """The cohort's timing in these tiers, and the compute times that the server observes."""
        clients = situation.clients
        samples, moved = self.samples(clients), self.moved(clients, tier)
        fleet = self.problem.fleet.at(situation.round)
        prices, client_s = splits.split_timing(
            fleet,
            clients,
            self.tiers.client_flops[tier] * samples,
            self.tiers.server_flops[tier] * samples / self.server_flops_per_s,
            moved,
            situation.now_s,
            situation.rng,
        )
        # The server observes the end of a task and knows the expected time of its transfer.
        taken_s = client_s + prices.download_s + prices.upload_s
        return prices, taken_s - splits.transfer_s(fleet, clients, moved)


def _merge(structure: PyTree) -> Aggregator:
    """The mean with the clients' weights for blocks, and equal weights for the heads of a tier."""

    def factor(row: PyTree, shared: PyTree) -> PyTree:
        del shared
        one = jnp.ones((), jnp.float32)
        return {
            "blocks": jax.tree.map(lambda _: one, structure["blocks"]),
            "exits": jax.tree.map(lambda _: one / row["weight"], structure["exits"]),
        }

    return masked_mean(factor=factor)


def _require_heads(model: BlockModel) -> None:
    """Raises `InputError` unless there is an auxiliary head after every block."""
    require(
        bool(model.exits) and not model.shared_exit,
        f"model {model.name!r} "
        + ("with one head for all" if model.exits else "without")
        + " exits",
        "a client half learns from an auxiliary head of its tier",
        "set config.model.exits = True, or make the model with_exits(model)",
    )


def _mean(values: np.ndarray, kept: np.ndarray) -> float:
    """The mean over the clients whose work was merged; NaN without such clients."""
    return float(np.mean(values[kept])) if kept.any() else float("nan")
