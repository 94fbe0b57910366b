"""PR-FL: densities fitted to each client's times, nested masks, buffers, recovery."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.prfl import links
from fedjax_het.algorithms.prfl.buffers import book, no_bookings, no_slots, release
from fedjax_het.algorithms.prfl.checks import (
    buffer_layout,
    check_control,
    check_server,
    time_per_weight,
)
from fedjax_het.algorithms.prfl.controller import Scorer, Settings, State, adjust, rerank
from fedjax_het.algorithms.prfl.density import no_stops, no_times, record
from fedjax_het.algorithms.prfl.merging import mask_fed_avg, start_masked
from fedjax_het.algorithms.prfl.pace import WARM_UP, window_rule
from fedjax_het.algorithms.prfl.ranking import (
    core_sizes,
    nested_mask,
    no_importance,
    prunable,
)
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.errors import require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Report, Task, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.contract.staleness import discount
from fedjax_het.fleet.cost import price
from fedjax_het.fleet.published import MIB
from fedjax_het.problem import Problem

# The author's starting densities for ten clients, fastest first.
DENSITIES = (1.0, 1.0, 0.6, 0.6, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1)


@register(options=UniformTraining)
def prfl(
    problem: Problem,
    *,
    mode: Literal["code", "paper"] = "code",
    densities: Sequence[float] = DENSITIES,
    lowest: float = 0.1,
    core: float = 0.05,
    interval: int = 50,
    increment: float = 0.2,
    patience: int = 10,
    adapt: bool = True,
    recover: bool = True,
    roll_back: bool = True,
    remask: Literal["always", "on_density_change"] = "always",
    cost_aware: bool = True,
    staleness: str = "polynomial",
    a: float = 0.6,
    b: float = 2.0,
    live: bool = True,
    buffered: bool = True,
    masked: bool = True,
    server_step: float = 1.0,
    pace: Literal["window", "single", "sync"] = "window",
    interval_s: float = 1.0,
    slack_s: float = 0.1,
    sizes: Literal["bitmap", "index", "coo64"] = "bitmap",
    distribution: Literal["residual", "distinct", "unicast"] = "residual",
    server_up_bytes_per_s: float = 10 * MIB,
    server_down_bytes_per_s: float = 50 * MIB,
    server_jitter: float = 0.1,
    dense_share: float = 0.1,
    validate_on: Literal["validation", "test"] = "validation",
    buffer_density: float | None = None,
    memory_bytes: float = 16e9,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""Pruning and recovery: everyone gets a sub-model as large as its time allows.

    The server holds the whole model and ranks its weights by squared gradients; client i trains the
    $\lfloor \rho_i N \rfloor$ first of the ranking, so sub-models are nested. It merges all buffers
    at every window with an arrival (`mask_fed_avg`), fits the densities to the clients' times every
    `interval` merges, and raises those of clients that have stopped improving.

    Memory: of every client the weights of its sub-model, see `buffers`, twice with `roll_back`; and
    2 (versions in flight + results that wait) + 20 models. The whole models of the very first
    training are merged and not kept: those that come next replace them.

    Args:
      problem: model, data and fleet.
      mode: "code" adapts densities by the author's feedback rule until the first recovery, "paper"
        by the slides' ratio of whole-model times, throughout.
      densities: at the start, given to the clients in turn.
      lowest: smallest density that adaptation may give, rho_min.
      core: share of every layer that everyone has, by magnitude.
      interval: merges between adjustments, I.
      increment: what a recovery adds to a density, Delta rho.
      patience: evaluations, one an interval, without improvement before a recovery.
      adapt: False leaves the densities to recovery.
      recover: False never raises a density for want of improvement.
      roll_back: whether the server returns to its best model when it stops improving.
      remask: "always" ranks anew every interval, "on_density_change" only with new densities.
      cost_aware: divides importance by the time a weight costs in its layer, as PruneFL does.
      staleness: "constant", "polynomial" or "hinge"; see `staleness.discount`.
      a: its exponent or slope; the author's 0.6.
      b: late steps that the hinge forgives; the author's 2.
      live: weighs buffers by how old they are now; False by how late they arrived (the code).
      buffered: False merges the arrivals only.
      masked: False takes the plain mean, in which what is pruned counts as zero.
      server_step: eta_g.
      pace: "window" the author's rule, "single" one arrival a window, "sync" everyone.
      interval_s: shortest window.
      slack_s: added to the time that the server needs to send a broadcast.
      sizes: how sub-models are encoded, see `links.model_bytes`.
      distribution: how they are sent, see `links.sent_bytes`.
      server_up_bytes_per_s: rate of the server's link towards the clients; inf for no limit.
      server_down_bytes_per_s: rate at which it receives.
      server_jitter: log-std of one sample of the factor on both, 20 are averaged.
      dense_share: share of the FLOPs that pruning does not save.
      validate_on: where recovery looks: "validation" (`validation_fraction` of the data), or
        "test", as the author's code does.
      buffer_density: mean density that the buffers have room for, which recovery may exceed; what
        finds no room is merged when it arrives and not kept. None for 1, or for what fits.
      memory_bytes: limit for all of this memory but the results.
      **training: see `UniformTraining`; `weighting="samples"` weighs a client by the samples it
        processes.

    References:
      Ma et al., *Federated Learning Based on Pruning and Recovery*, arXiv 2403.15439, and the
      author's code. The number of a server step counts merges here, trainings of the fastest client
      there.
    """
    options = UniformTraining.parse(training)
    n = problem.num_clients
    structure = jax.eval_shape(lambda: problem.model.init(jax.random.key(0))).params
    pruning = lowest < 1.0
    leaves = prunable(structure)
    sizes_of_leaves = np.asarray([leaf.size for leaf in leaves], np.int64)
    weights = int(np.sum(sizes_of_leaves))
    dense = sum(leaf.size for leaf in jax.tree.leaves(structure)) - weights
    check_control(
        problem, densities, lowest, core, interval, increment, patience, validate_on, recover
    )
    check_server(
        server_up_bytes_per_s,
        server_down_bytes_per_s,
        server_jitter,
        slack_s,
        {"server_step": server_step, "dense_share": dense_share},
    )
    parts.require_memory(problem, options, 0)
    least = int(np.sum(core_sizes(sizes_of_leaves, core)))

    def counts(density: np.ndarray) -> np.ndarray:
        return np.maximum(np.floor(density * weights + 1e-9).astype(np.int64), least)

    at_first = np.maximum(np.resize(np.asarray(densities, np.float64), n), lowest)
    layout = buffer_layout(
        counts(at_first),
        weights,
        dense,
        buffer_density,
        memory_bytes,
        copies=(2 if roll_back and recover else 1) if buffered or recover else 0,
    )
    settings = Settings(
        mode, core, increment, patience, adapt, recover, roll_back and recover, remask, layout
    )
    cost = time_per_weight(problem, options, structure) if cost_aware else np.ones(len(leaves))
    scorer: Scorer | None = None
    if recover:
        data = problem.data
        held = (data.test_x, data.test_y) if validate_on == "test" else (data.val_x, data.val_y)
        scorer = Scorer(problem, *held)  # type: ignore[arg-type]

    def init(variables: Variables, key: jax.Array) -> State:
        del key
        slots, booked = no_slots(variables, layout, n), no_bookings(layout, n)
        importance = no_importance(variables.params)
        best = ()
        if settings.roll_back:
            best = jax.tree.map(jnp.array, (variables, slots, booked, importance))
        return State(
            step=np.asarray(0),
            slots=slots,
            booked=booked,
            importance=importance,
            order=jnp.arange(weights, dtype=jnp.int32),
            place=np.asarray(-1 if pruning else 0),
            rank=[jnp.zeros(leaf.shape, jnp.int32) for leaf in leaves] if pruning else [],
            density=at_first,
            floor=np.full(n, float(lowest)),
            lowest=np.asarray(float(lowest)),
            first_stage=np.asarray(True),
            times=no_times(n, interval),
            stops=no_stops(n + 1),
            armed=np.asarray(False),
            finished=np.asarray(False),
            sent_s=np.full((n, 2), -1.0),
            uplink=np.zeros((n, 3)),
            best=best,
        )

    def plan(state: State, variables: Variables, situation: Situation) -> tuple[Plan, State]:
        del variables
        clients, now_s, rng = situation.clients, situation.now_s, situation.rng
        # Masks exist after the first merge only: the first training is one of the whole model.
        density = state.density[clients] if state.step else np.ones(len(clients))
        count = counts(density)
        down, up = links.model_bytes(sizes, count, weights, dense)
        held = problem.data.sizes[clients]
        steps = options.steps(held)
        samples = options.samples(held, steps)
        work = dense_share + (1 - dense_share) * count / weights
        timing = price(
            problem.cost,
            problem.fleet,
            clients,
            0,
            None,
            samples,
            now_s,
            rng,
            flops=samples * problem.cost.step_flops() * work,
            bytes_down=down,
            bytes_up=up,
        )
        rate_up = server_up_bytes_per_s * links.lognormal_mean(rng, server_jitter)
        rate_down = server_down_bytes_per_s * links.lognormal_mean(rng, server_jitter)
        download_s = links.download_s(distribution, down, timing.download_s, rate_up)
        others = np.setdiff1d(np.flatnonzero(state.sent_s[:, 1] > now_s), clients)
        start_s = now_s + download_s + timing.compute_s
        upload_s = links.upload_s(start_s, up, timing.upload_s, rate_down, state.uplink[others])
        timing = timing._replace(download_s=download_s, upload_s=upload_s)
        sent_s, uplink = state.sent_s.copy(), state.uplink.copy()
        sent_s[clients] = np.stack([np.full(len(clients), now_s), now_s + timing.total_s], axis=1)
        rate = up / np.maximum(upload_s, 1e-12)
        uplink[clients] = np.stack([start_s, start_s + upload_s, rate], axis=1)
        broadcast_s = links.sent_bytes(distribution, down) / rate_up + slack_s
        tasks = Plan(
            clients=clients,
            routes=[Route(0, problem.model.num_blocks - 1)] * len(clients),
            steps=steps,
            batch=np.minimum(options.batch_size, held),
            weight=(samples if options.weighting == "samples" else np.ones(len(clients))).astype(
                np.float32
            ),
            timing=timing,
            rows={"count": count.astype(np.int32)},
            shared={"rank": state.rank, "order": state.order},
            # The author's FedAsyn has no shortest window.
            deadline_s=broadcast_s if pace == "single" else max(interval_s, broadcast_s),
        )
        booked = book(state.booked, layout, clients, count, int(state.place))
        return tasks, state._replace(booked=booked, sent_s=sent_s, uplink=uplink)

    def mask(row: PyTree, shared: PyTree) -> PyTree:
        return nested_mask(structure, shared["rank"], jnp.asarray(row["count"]))

    train = options.local_update(
        problem,
        observe=(lambda grads: [jnp.square(leaf) for leaf in prunable(grads)]) if pruning else None,
    )

    def local(route: Route, start: Variables, data: PyTree, task: Task) -> ClientResult:
        return train(route, start_masked(task.mask, start), data, task)

    def observe(
        state: State, variables: Variables, report: Report
    ) -> tuple[State, Variables, dict[str, Any]]:
        clients = report.plan.clients
        times = state.times
        if state.step >= WARM_UP:  # before, everyone waits for everyone
            times = record(times, clients, state.sent_s[clients, 1])
        state = state._replace(
            step=np.asarray(int(state.step) + 1),
            booked=release(state.booked, layout, clients[report.merged]),
            times=times,
        )
        info: dict[str, Any] = {
            "mean_density": float(np.mean(state.density)),
            "kept": int(np.sum(state.booked.ranking[clients] >= 0)),
        }
        if state.step % interval == 0:
            before = state.density
            score = None if scorer is None else scorer(variables, state.slots, state.booked)
            state, variables, adjusted = adjust(state, variables, settings, score)
            changed = bool(np.any(before != state.density))
            if pruning:
                state = rerank(state, variables, settings, cost, changed=changed)
            info.update(adjusted)
        elif pruning and state.step == 1:
            state = rerank(state, variables, settings, cost, changed=True)
        return state, variables, info

    paces = {
        "window": lambda: window_rule(interval_s),
        "single": lambda: window_rule(interval_s, single=True),
        "sync": barrier,
    }
    require_known(pace, paces, "pace")
    name = {"single": "prfl_fedasyn", "sync": "nested_mask_sync"}.get(pace, "prfl")
    if pace == "window" and not (pruning or buffered):
        name = "prfl_fedfix"
    merge = mask_fed_avg(
        discount(staleness, a, b), buffered=buffered, masked=masked, live=live, eta=server_step
    )
    return Algorithm(
        name=name,
        init=init,
        plan=plan,
        mask=mask if pruning else None,
        local=local,
        merge=merge,
        update=parts.replace,
        observe=observe,
        pace=paces[pace](),
        cohort_size=options.cohort_size(problem),
    )
