"""PR-FL: densities by each client's times, nested masks, buffers, recovery; and its baselines."""

from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.prfl.buffers import Memory, book, pool_layout
from fedjax_het.algorithms.prfl.controller import (
    Control,
    State,
    adjust,
    arrived,
    first_state,
    rerank,
    scorer,
)
from fedjax_het.algorithms.prfl.density import Density, Recovery
from fedjax_het.algorithms.prfl.links import Links, Way, priced, window_rule
from fedjax_het.algorithms.prfl.merging import Arrivals, Merge, mask_fed_avg, start_masked
from fedjax_het.algorithms.prfl.ranking import nested_mask, network, prunable, time_per_weight
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Report, Task, Variables
from fedjax_het.contract.clock import Pace, barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.problem import Problem

_WHOLE = Density(start=(1.0,), lowest=1.0)


@register(options=UniformTraining)
def prfl(
    problem: Problem,
    *,
    mode: Literal["code", "paper"] = "code",
    adapt: bool = True,
    distribution: Way = "residual",
    pace: Literal["window", "single", "sync"] = "window",
    interval_s: float = 1.0,
    density: Density = Density(),
    recovery: Recovery | None = Recovery(),
    merge: Merge = Merge(),
    links: Links = Links(),
    memory: Memory = Memory(),
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""PR-FL, pruning and recovery: every client gets a sub-model whose size depends on its time.

    The server has the whole model and ranks its weights by squared gradients. Client i trains the
    first $\lfloor \rho_i N \rfloor$ weights of the ranking, so sub-models are nested. The server
    merges all buffers at every window with an arrival (`mask_fed_avg`), adapts the densities to the
    clients' times every `density.interval` merges, and raises the densities of clients that stopped
    improving.

    Memory: the weights of every client's sub-model, see `buffers`, twice with `roll_back`; and
    2 (versions in flight + waiting results) + 20 models. The whole models of the first training are
    merged and not stored, because the next uploads replace them.

    Args:
      problem: model, data and fleet.
      mode: variant of the method. "code" adapts densities by the author's feedback rule until the
        first recovery, "paper" always by the slides' ratio of whole-model times.
      adapt: whether densities follow the clients' times; False for changes by recovery only.
      distribution: distribution of the sub-models, see `links.sent_bytes`.
      pace: pace of the server: "window", the author's rule; "single", one arrival per window;
        "sync", all clients.
      interval_s: shortest window in seconds.
      density: options of the sub-models.
      recovery: options of recovery; None for no recovery.
      merge: options of the merge.
      links: options of the server's link.
      memory: options of the buffers.
      **training: fields of `UniformTraining`; with `weighting="samples"` the weight of a client is
        the number of samples that it processes.

    References:
      Ma et al., *Federated Learning Based on Pruning and Recovery*, arXiv 2403.15439, and the
      author's code. Here a server step is a merge; there it is a training of the fastest client.
    """
    require_known(mode, ("code", "paper"), "mode")
    require_known(pace, ("window", "single", "sync"), "pace")
    rule = window_rule(interval_s, single=pace == "single")
    return _sub_models(
        "prfl",
        problem,
        UniformTraining.parse(training),
        density=density,
        mode=mode,
        adapt=adapt,
        recovery=recovery,
        way=distribution,
        links=links,
        pace=barrier() if pace == "sync" else rule,
        # The author's FedAsyn has no shortest window.
        shortest_s=0.0 if pace == "single" else interval_s,
        merge=merge,
        memory=memory,
    )


@register(options=UniformTraining)
def prfl_fedasyn(
    problem: Problem,
    *,
    interval_s: float = 1.0,
    merge: Arrivals = Arrivals(),
    links: Links = Links(),
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    """FedAsync as PR-FL's author ran it: whole models, and one arrival per window.

    The model moves by the client's share of the staleness weights of all clients (about 1 / n)
    instead of alpha = 0.6; `fedasync` is the published method.

    Args:
      problem: model, data and fleet.
      interval_s: seconds by which a window without an arrival is extended.
      merge: options of the merge.
      links: options of the server's link.
      **training: fields of `UniformTraining`.
    """
    return _sub_models(
        "prfl_fedasyn",
        problem,
        UniformTraining.parse(training),
        density=_WHOLE,
        way="distinct",
        links=links,
        pace=window_rule(interval_s, single=True),
        merge=merge.alone(),
    )


@register(options=UniformTraining)
def prfl_fedfix(
    problem: Problem,
    *,
    interval_s: float = 1.0,
    merge: Arrivals = Arrivals(),
    links: Links = Links(),
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    """FedFix as PR-FL's author ran it: whole models, and PR-FL's windows.

    The model moves by the arrivals' share of the staleness weights of all clients instead of by
    unbiased weights; `fedfix` is the published method.

    Args:
      problem: model, data and fleet.
      interval_s: shortest window in seconds.
      merge: options of the merge.
      links: options of the server's link.
      **training: fields of `UniformTraining`.
    """
    return _sub_models(
        "prfl_fedfix",
        problem,
        UniformTraining.parse(training),
        density=_WHOLE,
        way="distinct",
        links=links,
        pace=window_rule(interval_s),
        shortest_s=interval_s,
        merge=merge.alone(),
    )


@register(options=UniformTraining)
def nested_mask_sync(
    problem: Problem,
    *,
    density: Density = Density(),
    merge: Merge = Merge(),
    links: Links = Links(),
    memory: Memory = Memory(),
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    """The method that PR-FL's author calls HeteroFL: synchronous, with constant nested masks.

    It has no slices of widths, no scaler and no masked cross-entropy.

    Args:
      problem: model, data and fleet.
      density: options of the sub-models.
      merge: options of the merge.
      links: options of the server's link.
      memory: options of the buffers.
      **training: fields of `UniformTraining`.
    """
    return _sub_models(
        "nested_mask_sync",
        problem,
        UniformTraining.parse(training),
        density=density,
        way="distinct",
        links=links,
        pace=barrier(),
        merge=merge,
        memory=memory,
    )


def _sub_models(
    name: str,
    problem: Problem,
    training: UniformTraining,
    *,
    way: Way,
    pace: Pace,
    shortest_s: float = 0.0,
    mode: Literal["code", "paper"] = "code",
    adapt: bool = False,
    density: Density,
    recovery: Recovery | None = None,
    merge: Merge,
    links: Links,
    memory: Memory = Memory(),
) -> Algorithm:
    """The method with these options, see `prfl`; a window lasts at least `shortest_s` seconds."""
    parts.require_memory(problem, training, 0)
    require(
        not problem.model.exits,
        f"model {problem.model.name!r} with {len(problem.model.exits)} exit heads",
        f"{name} prunes the network that it trains, of which heads are no part",
        "leave the heads out (exits = False)",
    )
    n, net = problem.num_clients, network(problem.model, density.core)
    copies = 0
    if merge.buffered or recovery is not None:
        copies = 2 if recovery is not None and recovery.roll_back else 1
    layout = pool_layout(net, net.kept(density.first(n)), memory, copies=copies)
    cost = time_per_weight(problem, training, net)
    if not density.cost_aware:
        cost = np.ones_like(cost)
    control = Control(mode, adapt, density, recovery, layout, cost)
    score = None if recovery is None else scorer(problem, recovery.validate_on)

    def init(variables: Variables, key: jax.Array) -> State:
        del key
        return first_state(variables, control, n)

    def plan(state: State, variables: Variables, situation: Situation) -> tuple[Plan, State]:
        del variables
        clients = situation.clients
        # Masks exist only after the first merge, so the first training is of the whole model.
        count = net.kept(state.density[clients] if state.step else np.ones(len(clients)))
        held = problem.data.sizes[clients]
        samples = training.samples(held, training.steps(held))
        timing, broadcast_s, traffic = priced(
            problem,
            situation,
            state.traffic,
            net,
            count,
            samples,
            dense_share=density.dense_share,
            links=links,
            way=way,
        )
        tasks = parts.plan_tasks(
            problem,
            training,
            situation,
            rows={"count": count.astype(np.int32)},
            timing=timing,
            deadline_s=max(shortest_s, broadcast_s),
        )
        tasks = tasks._replace(shared={"rank": state.rank, "order": state.order})
        if training.weighting == "samples":
            tasks = tasks._replace(weight=samples.astype(np.float32))
        booked = book(state.booked, layout, clients, count, int(state.place))
        return tasks, state._replace(booked=booked, traffic=traffic)

    def mask(row: PyTree, shared: PyTree) -> PyTree:
        return nested_mask(net.structure, shared["rank"], jnp.asarray(row["count"]))

    train = training.local_update(problem, observe=_squares if density.prunes else None)

    def local(route: Route, start: Variables, data: PyTree, task: Task) -> ClientResult:
        return train(route, start_masked(task.mask, start), data, task)

    def observe(
        state: State, variables: Variables, report: Report
    ) -> tuple[State, Variables, dict[str, Any]]:
        state = arrived(state, layout, report.plan.clients, report.merged)
        info: dict[str, Any] = {
            "mean_density": float(np.mean(state.density)),
            "kept": int(np.sum(state.booked.ranking[report.plan.clients] >= 0)),
        }
        first, ends = state.step == 1, state.step % density.interval == 0
        before = state.density
        if ends:
            seen = None if score is None else score(variables, state.slots, state.booked)
            state, variables, adjusted = adjust(state, variables, control, seen)
            info.update(adjusted)
        if density.prunes and (first or ends):
            changed = first or bool(np.any(before != state.density))
            state = rerank(state, variables, control, changed=changed)
        return state, variables, info

    return Algorithm(
        name=name,
        init=init,
        plan=plan,
        mask=mask if density.prunes else None,
        local=local,
        merge=mask_fed_avg(merge),
        update=parts.replace,
        observe=observe,
        pace=pace,
        cohort_size=training.cohort_size(problem),
        replaces=recovery is not None and recovery.roll_back,
        sends="the weights of a pruned network",
        paces=Paces(replace="its windows, buffers and links are one rule, see its option `pace`"),
    )


def _squares(grads: PyTree) -> list[jax.Array]:
    """Importances: squared gradients of the prunable weights."""
    return [jnp.square(leaf) for leaf in prunable(grads)]
