"""Parts that methods share: priced plans, checks of memory and deadlines, the plain server step."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common import numbers
from fedjax_het.common.errors import InputError, require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm, Merged, Variables
from fedjax_het.contract.clock import Pace
from fedjax_het.contract.masks import Route
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation, Timing
from fedjax_het.fleet.cost import price
from fedjax_het.problem import Problem


def plan_tasks(
    problem: Problem,
    training: TrainingOptions,
    situation: Situation,
    *,
    first: np.ndarray | int = 0,
    rows: PyTree = None,
    notes: PyTree = None,
    deadline_s: float = float("inf"),
    timing: Timing | None = None,
) -> Plan:
    """The plan of the cohort: block `first` and all deeper blocks train, the rest runs forward.

    Args:
      problem: model, data and fleet.
      training: options of the clients.
      situation: cohort and time of dispatch.
      first: shallowest trained block, int64[k] or one value (0 = all blocks).
      rows: values for the clients' programs, see `Plan.rows`.
      notes: values for `observe`, see `Plan.notes`.
      deadline_s: deadline in seconds, see `Plan`.
      timing: timing of the tasks; None for that of the suffix that starts at `first`.
    """
    clients = situation.clients
    k = len(clients)
    sizes = problem.data.sizes[clients]
    steps = training.steps(sizes)
    last = problem.model.num_blocks - 1
    first = np.full(k, first, np.int64)
    if timing is None:
        timing = price(
            problem.cost,
            problem.fleet.at(situation.round),
            clients,
            first,
            np.full(k, last),
            training.samples(sizes, steps),
            situation.now_s,
            situation.rng,
        )
    by_samples = training.weighting == "samples"
    routes = {f: Route(f, last) for f in set(first.tolist())}
    return Plan(
        clients=clients,
        routes=[routes[f] for f in first.tolist()],
        steps=steps,
        batch=np.minimum(training.batch_size, sizes),
        weight=sizes.astype(np.float32) if by_samples else np.ones(k, np.float32),
        timing=timing,
        rows=rows,
        notes=notes,
        learning_rate_scale=training.step_scale(situation.round),
        deadline_s=deadline_s,
    )


def capacities(
    problem: Problem, capacity: Sequence[float] | Callable[[int], np.ndarray] | None, round: int
) -> np.ndarray:
    """Share of the full model's cost that each client affords in a round, float64[n].

    Args:
      problem: model, data and fleet.
      capacity: shares in (0, 1], n of them, or a function of the round; None for each device's
        speed relative to the fastest.
      round: number of the round.

    Raises:
      InputError: if the shares are not such.
    """
    n, speed = problem.num_clients, problem.fleet.at(round).flops_per_s
    given = capacity(round) if callable(capacity) else capacity
    kappa = numbers.reals(speed / np.max(speed) if given is None else given)
    if kappa is None:
        raise InputError(
            f"capacity = {numbers.shown(given)}: must be numbers; divide the devices' speeds by "
            "the speed that affords the full model"
        )
    require(
        kappa.shape == (n,) and bool(np.all((kappa > 0) & (kappa <= 1))),
        lambda: (
            f"capacity of shape {kappa.shape}"
            + (f" from {np.min(kappa)} to {np.max(kappa)}" if kappa.size else "")
        ),
        f"must be one value in (0, 1] for each of the {n} clients",
        "divide the devices' speeds by the speed that affords the full model",
    )
    return kappa


def require_memory(
    problem: Problem,
    training: TrainingOptions,
    first: np.ndarray | int,
    kept: int = 0,
    *,
    clients: np.ndarray | None = None,
    exit: np.ndarray | None = None,
    heads: np.ndarray | None = None,
) -> None:
    """Raises `InputError` if a device has too little memory for its sub-model.

    Args:
      problem: model, data and fleet.
      training: options of the clients.
      first: shallowest trained block of each client, int64[n] or one value.
      kept: number of arrays per parameter that the method keeps beside those of the optimiser.
      clients: ids of the clients to check, int64[m]; None for all.
      exit: block whose head gives the loss of each client, int64[n]; None for the last.
      heads: blocks whose heads also give a loss, bool[n, L]; None for no further heads.
    """
    n = problem.num_clients
    exit = np.full(n, problem.model.num_blocks - 1) if exit is None else exit
    first = np.broadcast_to(np.asarray(first, np.int64), (n,))
    batch = np.minimum(training.batch_size, problem.data.sizes)
    slots = training.optimizer_slots + kept
    need = problem.cost.memory_bytes(first, exit, batch, slots, heads)
    short = np.flatnonzero(need > problem.fleet.memory_bytes)
    if clients is not None:
        short = np.intersect1d(short, clients)
    require(
        short.size == 0,
        lambda: (
            f"clients {short[:5].tolist()} (of {short.size}) with "
            f"{np.max(need[short]):.4g} bytes to hold"
        ),
        f"exceed the memory of their devices, {problem.fleet.memory_bytes[short[:5]]} bytes",
        "use smaller batches, or a method that trains sub-models (fedpmt)",
    )


def memory_reach(problem: Problem, training: TrainingOptions, visited: np.ndarray) -> np.ndarray:
    """The shallowest block from which the memory of each client suffices, per exit.

    Earlier blocks of a window then run forward only, which stores nothing. The probe, two passes
    over the whole network, does not count, because it can run block by block.

    Args:
      problem: prices of the model and memory of the devices.
      training: options of the clients, for batch size and optimiser.
      visited: mask of the blocks at which windows of each client end, bool[n, L].

    Returns:
      Blocks int64[n, L]; undefined for exits that are not visited.

    Raises:
      InputError: if a device cannot hold the last block of one of its windows.
    """
    cost, n, blocks = problem.cost, problem.num_clients, problem.model.num_blocks
    reach = np.zeros((n, blocks), np.int64)
    batch = np.minimum(training.batch_size, problem.data.sizes)
    memory = np.broadcast_to(np.asarray(problem.fleet.memory_bytes, np.float64), (n,))
    # Fleets have few kinds of devices; the table is computed once for each kind.
    kinds, kind = np.unique(np.stack([memory, batch], axis=1), axis=0, return_inverse=True)
    first, exit = np.arange(blocks)[:, None], np.flatnonzero(visited.any(axis=0))[None, :]
    for k, (limit, samples) in enumerate(kinds):
        need = cost.memory_bytes(
            np.minimum(first, exit),
            np.broadcast_to(exit, (blocks, exit.size)),
            np.int64(samples),
            training.optimizer_slots,
        )
        # The need decreases with `first`, so the blocks that fit are a suffix of those before the
        # exit.
        fits = (need <= limit) & (first <= exit)
        members = np.flatnonzero(kind == k)
        short = np.flatnonzero(visited[members][:, exit[0]].any(axis=0) & ~fits.any(axis=0))[:1]
        require(
            short.size == 0,
            f"clients {members[:5].tolist()} (of {members.size}) with {limit:.4g} bytes of memory",
            f"cannot hold block {exit[0, short]} alone, which needs {need[exit[0, short], short]} "
            "bytes",
            "use smaller batches or larger devices",
        )
        reach[members[:, None], exit] = np.argmax(fits, axis=0)
    return reach


def require_constant_fleet(problem: Problem, method: str) -> None:
    """Raises `InputError` for a fleet whose devices are re-drawn."""
    require(
        problem.fleet.redraw is None,
        f"redraw_every on the fleet of {method}",
        "is not known to this method: it plans with the devices of round 0 throughout",
        "leave it out, or use dtfl, fedavg or another method that prices every round",
    )


def durations_s(problem: Problem, training: TrainingOptions, steps: np.ndarray) -> np.ndarray:
    """Seconds of a task of the whole model of every client, without jitter, float64[n].

    Args:
      problem: model, data and fleet.
      training: options of the clients.
      steps: local steps of every client, int64[n].
    """
    cost, last = problem.cost, problem.model.num_blocks - 1
    return problem.fleet.timing(
        np.arange(problem.num_clients),
        cost.step_flops(0, last) * training.samples(problem.data.sizes, steps),
        cost.download_bytes(),
        cost.upload_bytes(0, last),
        now_s=0.0,
        rng=None,
    ).total_s


def require_feasible(
    problem: Problem, training: TrainingOptions, deadline_s: float, *, whole: bool
) -> None:
    """Raises `InputError` if no device meets the deadline with its whole task (or one step)."""
    sizes = problem.data.sizes
    total_s = durations_s(
        problem, training, training.steps(sizes) if whole else np.ones_like(sizes)
    )
    require(
        deadline_s >= np.min(total_s),
        f"deadline_s = {deadline_s}",
        f"must be at least the {np.min(total_s):.6g} s that the fastest device needs",
        f"a deadline of {np.median(total_s):.6g} s lets half of the devices finish",
    )


def relative_weights(
    problem: Problem, training: TrainingOptions
) -> Callable[[Situation, Plan], Plan]:
    """The change of plans that divides weights by their mean over all clients."""
    mean = np.mean(problem.data.sizes) if training.weighting == "samples" else 1.0

    def amend(situation: Situation, plan: Plan) -> Plan:
        del situation
        return plan._replace(weight=(plan.weight / mean).astype(np.float32))

    return amend


def replace(state: PyTree, variables: Variables, merged: Merged) -> tuple[PyTree, Variables]:
    """The plain server step, `Algorithm.update`: the merged model is the new model."""
    del variables
    return state, merged.variables


def stateless(variables: Variables, key: Any) -> PyTree:
    """`Algorithm.init` of a method without state."""
    del variables, key
    return ()


def full_model(
    name: str,
    problem: Problem,
    training: TrainingOptions,
    *,
    pace: Pace,
    deadline_s: float = float("inf"),
    proximal: float = 0.0,
    check_memory: bool = True,
    kept: int = 0,
    amend: Callable[[Situation, Plan], Plan] | None = None,
) -> Algorithm:
    """An algorithm in which clients train the whole model and the server takes the weighted mean.

    Args:
      name: name of the method in records.
      problem: model, data and fleet.
      training: options of the clients.
      pace: pace of the server.
      deadline_s: deadline of a deadline pace, in virtual seconds after dispatch.
      proximal: factor mu of FedProx's proximal term.
      check_memory: whether every device must have the memory for the whole model.
      kept: number of further arrays per parameter that a client holds.
      amend: function that changes the plans row by row; None for unchanged plans.
    """
    if check_memory:
        require_memory(problem, training, 0, kept)

    def tasks(situation: Situation) -> Plan:
        return plan_tasks(problem, training, situation, deadline_s=deadline_s)

    whole = Schedule(tasks, apart=True)
    return Algorithm(
        name=name,
        init=stateless,
        plan=whole if amend is None else whole.amended(amend),
        mask=None,
        local=training.local_update(problem, proximal=proximal),
        merge=masked_mean(),
        update=replace,
        pace=pace,
        cohort_size=training.cohort_size(problem),
        paces=Paces(overlap=True),
    )
