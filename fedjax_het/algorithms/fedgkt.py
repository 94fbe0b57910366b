"""FedGKT: distillation between small networks at the clients and a large one at the server."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count, Unlimited
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import (
    LOGITS,
    Aggregator,
    Algorithm,
    Chunk,
    Merged,
    Report,
    Variables,
)
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Situation, Timing
from fedjax_het.fleet import splits
from fedjax_het.local.distillation import edge_training, halves, server_training
from fedjax_het.problem import Problem


class State(NamedTuple):
    """State between rounds.

    Attributes:
      edge: variables of every client's network, leading axis n; None for the server's blocks.
      logits: float32[N, classes], latest logits of the server for every training sample.
      taught: bool[n], clients whose samples have logits of the server.
      optimizer: state of the server's optimiser.
      key: uint32[...], data of the server's random key.
    """

    edge: PyTree
    logits: np.ndarray
    taught: np.ndarray
    optimizer: PyTree
    key: np.ndarray


@register
def fedgkt(
    problem: Problem,
    *,
    client_blocks: Count = 2,
    temperature: float = 3.0,
    alpha: float = 1.0,
    distill_on_server: bool = False,
    server_epochs: Sequence[Count] = (20, 15, 10, 5),
    anneal_rounds: Count = 20,
    server_flops_per_s: Unlimited | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""Group knowledge transfer; no weights are averaged.

    Every client keeps its own network: the first blocks of the model and an auxiliary head. It
    minimises $CE + \alpha T^2 KL_T(\text{client} \| \text{server's logits})$, without the second
    term before it has logits of the server. Then it sends the activations (in eval mode), logits
    and labels of its samples. The server trains the deeper blocks on them, client after client,
    with the loss of the labels, and returns its logits.

    The model's accuracy is the mean over clients of the client's network followed by the server's.
    Logits belong to samples, not to positions in a batch, so the order may change between rounds.
    They are computed from samples without augmentation.

    Args:
      problem: model, data and fleet; the model needs exit heads.
      client_blocks: number of blocks of a client's network.
      temperature: temperature T of the distillation.
      alpha: weight of the server's logits in the clients' loss.
      distill_on_server: whether the server also learns from the clients' logits, with
        $T^2 KL_T(\cdot \| \text{client's logits}) + \alpha CE$ as in the paper; the authors'
        command leaves the first term out.
      server_epochs: numbers of passes E_s of the server over the received samples, by default those
        of the authors' code for its first 100 rounds.
      anneal_rounds: number of rounds with the first value of `server_epochs`; each of the next
        lasts half as many, and the last stays.
      server_flops_per_s: speed of the server; None for that of the fastest device. Its training
        starts when all clients have finished; its time is part of the time of every task.
      **training: fields of `TrainingOptions`; the authors have client_optimizer="amsgrad" and
        weight_decay=1e-4. The server's optimiser keeps its state between rounds, a client's starts
        new every round, and the schedule is that of both.

    References:
      He, Annavaram and Avestimehr, *Group Knowledge Transfer*, NeurIPS 2020; methods/baselines.md
      14; FedML's code for the options that DTFL does not state.
    """
    options = TrainingOptions.parse(training)
    model, n = problem.model, problem.num_clients
    _require_teachable(problem)
    cut = splits.single_cut(model.num_blocks, client_blocks)
    for name, value in (("temperature", temperature), ("alpha", alpha)):
        require(np.isfinite(value) and value > 0, f"{name} = {value}", "must be positive", "use 1")
    passes_of = tuple(server_epochs)
    for name, count in (
        ("server_epochs", min(passes_of, default=0)),
        ("anneal_rounds", anneal_rounds),
    ):
        require(count >= 1, f"{name} = {count}", "must be at least 1", "leave it out")
    both = halves(model.num_blocks, int(cut[0]))
    table = splits.price_tiers(problem.cost, cut)
    speed = splits.server_speed(server_flops_per_s, problem.fleet)
    capacity = min(options.batch_size, int(np.max(problem.data.sizes)))
    teaching: dict[str, Any] = {"temperature": temperature, "alpha": alpha}
    optimizer, pipeline = options.optimizer(), problem.data.pipeline
    samples_on_device = functools.cache(problem.data.device)
    both_sides = (model, pipeline, both, optimizer, problem.objective)
    distils: dict[str, Any] = {"distill": distill_on_server, **teaching}
    teach = jax.jit(server_training(*both_sides, batch_size=capacity, **distils))

    def epochs(round: int) -> int:
        later = max(0, round - anneal_rounds) // max(1, anneal_rounds // 2) + 1
        return passes_of[0 if round < anneal_rounds else min(later, len(passes_of) - 1)]

    def init(variables: Variables, key: jax.Array) -> State:
        edge = both.own(variables, both.edge)
        server = both.own(variables, both.server)
        return State(
            edge=jax.tree.map(lambda a: np.broadcast_to(a, (n, *a.shape)).copy(), edge),
            logits=np.zeros((len(problem.data.y), model.num_classes), np.float32),
            taught=np.zeros(n, bool),
            optimizer=optimizer.init(server.params),
            key=np.asarray(jax.random.key_data(key)),
        )

    def plan(state: State, variables: Variables, situation: Situation) -> tuple[Plan, State]:
        del variables
        clients = situation.clients
        sent, taught = np.sum(problem.data.sizes[clients]), state.taught[clients]
        server_s = epochs(situation.round) * sent * table.server_flops / speed
        prices = _price(problem, options, table, situation, taught, server_s)
        edge = jax.tree.map(lambda a: np.asarray(a)[clients], state.edge)
        rows = {"edge": edge, "taught": taught}
        tasks = parts.plan_tasks(problem, options, situation, timing=prices, rows=rows)
        return tasks._replace(shared={"logits": state.logits}), state

    def observe(
        state: State, variables: Variables, report: Report
    ) -> tuple[State, Variables, dict[str, Any]]:
        passes = epochs(report.round)
        order = np.argsort(report.plan.clients)
        order = order[report.merged[order]]
        if order.size == 0:
            return state, variables, {"server_epochs": 0}
        clients = report.plan.clients[order]
        trained = jax.tree.map(lambda a: a[order], report.client_info)
        key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(state.key)), report.round)
        variables, memory, logits, loss = teach(
            variables,
            state.optimizer,
            trained,
            jnp.asarray(clients, jnp.int32),
            state.logits,
            samples_on_device(),
            jnp.int32(passes),
            key,
            jnp.float32(report.plan.learning_rate_scale),
        )

        def put(every: np.ndarray, new: np.ndarray | bool) -> np.ndarray:
            every = np.array(every)
            every[clients] = new
            return every

        state = State(
            edge=jax.tree.map(put, state.edge, trained),
            logits=np.asarray(logits),
            taught=put(state.taught, True),
            optimizer=memory,
            key=state.key,
        )
        return state, variables, {"server_epochs": passes, "server_loss": float(loss)}

    def evaluated(state: State, variables: Variables) -> list[Variables]:
        edges = [jax.tree.map(lambda a, k=k: jnp.asarray(a[k]), state.edge) for k in range(n)]
        return [both.put(variables, edge, both.edge) for edge in edges]

    return Algorithm(
        name="fedgkt",
        init=init,
        plan=plan,
        mask=None,
        local=edge_training(*both_sides, max_batch=capacity, proximal=options.proximal, **teaching),
        merge=_nothing(),
        update=parts.replace,
        observe=observe,
        pace=barrier(),
        cohort_size=options.cohort_size(problem),
        paces=Paces(
            drop="the server's time on the samples of the whole cohort is a part of every task",
            overlap="the server trains on the activations of a whole round",
        ),
        evaluated=evaluated,
        replaces=True,
        sends=LOGITS,
    )


def _require_teachable(problem: Problem) -> None:
    """Raises `InputError` unless there is a head per block, and one logit per class and sample."""
    model, labels, objective = problem.model, problem.data.y, problem.objective
    require(
        objective.outputs == "logits",
        f"objective {objective.name!r} with {objective.outputs}",
        "has no logits of classes, from which fedgkt distils",
        "use a classification, or another method",
    )
    require(
        bool(model.exits) and labels.ndim == 1,
        f"model {model.name!r} with {len(model.exits)} exit heads, "
        f"labels of shape {labels.shape[1:]}",
        "clients need an auxiliary head, and one label a sample",
        "set config.model.exits = True",
    )


def _price(
    problem: Problem,
    training: TrainingOptions,
    table: splits.Tiers,
    situation: Situation,
    taught: np.ndarray,
    server_s: np.ndarray,
) -> Timing:
    """The timing of the cohort's tasks.

    Activations, labels and logits of every sample are uploaded once, after training. A client
    downloads its network once, and in later rounds the server's logits.

    Args:
      problem: model, data and fleet.
      training: options of the clients.
      table: prices of the only cut.
      situation: cohort and time of dispatch.
      taught: mask of the clients that already have their network, bool[k].
      server_s: seconds of the server on the samples of all clients, float64[1].
    """
    clients = situation.clients
    sizes = problem.data.sizes[clients]
    samples = training.samples(sizes, training.steps(sizes))
    logit_bytes = 4 * problem.model.num_classes
    sent = splits.split_bytes(table, np.zeros_like(sizes), sizes, labels=1)
    up = sent.up - table.up_bytes + sizes * logit_bytes
    down = np.where(taught, sizes * logit_bytes, table.down_bytes)
    prices, _ = splits.split_timing(
        problem.fleet.at(situation.round),
        clients,
        table.client_flops * samples + problem.cost.forward_pass_flops(table.cut) * sizes,
        np.broadcast_to(server_s, clients.shape),
        splits.Bytes(down, up),
        situation.now_s,
        situation.rng,
        parallel=False,
    )
    return prices


def _nothing() -> Aggregator:
    """The merge of clients that send no weights; the model does not change."""

    def init(state: State, variables: Variables, mask_shapes: PyTree) -> PyTree:
        del state, variables, mask_shapes
        return ()

    def add(acc: PyTree, chunk: Chunk) -> PyTree:
        del chunk
        return acc

    def finalize(acc: PyTree, variables: Variables, shared: PyTree) -> Merged:
        del acc, shared
        return Merged(variables)

    return Aggregator(init, add, finalize)
