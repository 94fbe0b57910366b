"""What the plans of `benchmarks.reproduce.fedel_table1` do, without training."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from fedjax_het.algorithms.fedel import windows
from fedjax_het.algorithms.fedel.tensors import tensor_times
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.contract.clock import dispatch
from fedjax_het.contract.plan import Situation
from fedjax_het.problem import Problem

# Milliseconds of VGG16's layers on an Orin board (methods/fedel.md 1.2): gradients of the weights
# with those of the biases, and of the inputs with the poolings; the head's is all one.
_ORIN_WEIGHT = (0.20, 0.41, 0.26, 0.33, 0.35, 0.82, 0.81, 1.60, 3.25, 3.24, 3.18, 3.12, 3.15, 0.03)
_ORIN_INPUT = (0.0, 0.31, 0.15, 0.32, 0.31, 0.58, 0.66, 1.08, 2.11, 2.25, 2.12, 2.19, 2.31, 0.0)


def fast_step_s(problem: Problem, training: Mapping[str, Any]) -> float:
    """Seconds of the local work of the fastest board, FedEL's budget T_th."""
    samples = training["batch_size"] * training["local_steps"]
    return samples * float(problem.cost.step_flops()) / float(np.max(problem.fleet.flops_per_s))


def planned(
    algorithm: Algorithm,
    problem: Problem,
    variables: Variables,
    training: Mapping[str, Any],
    rounds: int,
) -> dict[str, Any]:
    """What the plans of a method do; the model stays as it is given.

    Args:
      algorithm: method.
      problem: problem with two types of devices.
      variables: model.
      training: batch size and local steps of the method.
      rounds: number of rounds.

    Returns:
      Seconds of a mean round as `round_s`, and, each by type of device: `steps`, `work` and
      `upload` of a task (both over those of FedAvg on the same device), and `blocks`, the share of
      the tasks in which a kernel of each block trains.
    """
    fleet, masks = problem.fleet, _kernels(algorithm, problem)
    state = algorithm.init(variables, jax.random.key(1))
    everyone, now_s = np.arange(problem.num_clients), 0.0
    tasks = []
    for round in range(rounds):
        key, rng = jax.random.fold_in(jax.random.key(2), round), np.random.default_rng(round)
        plan, state = algorithm.plan(state, variables, Situation(round, now_s, everyone, key, rng))
        now_s = algorithm.pace.close(dispatch(plan, now_s, round)).at_s
        kept = np.ones((len(everyone), problem.model.num_blocks), bool)
        if masks is not None:
            kept = np.asarray(masks(plan.rows, plan.shared))
        steps = np.full(len(everyone), training["local_steps"])
        steps = steps if plan.steps is None else plan.steps
        tasks.append((steps, plan.timing.compute_s, plan.timing.bytes_up, kept))
    steps, compute_s, bytes_up, blocks = map(np.concatenate, zip(*tasks, strict=True))
    slowdown = np.max(fleet.flops_per_s) / fleet.flops_per_s
    whole_s = np.tile(fast_step_s(problem, training) * slowdown, rounds)
    group = np.tile(fleet.groups[everyone], rounds)

    def by_type(values: np.ndarray) -> list[Any]:
        return [np.mean(values[group == g], axis=0).tolist() for g in range(2)]

    return {
        "round_s": now_s / rounds,
        "steps": by_type(steps),
        "work": by_type(compute_s / whole_s),
        "upload": by_type(bytes_up / float(problem.cost.upload_bytes())),
        "blocks": by_type(blocks),
    }


def _kernels(algorithm: Algorithm, problem: Problem) -> Callable[..., jax.Array] | None:
    """Function from rows and shared values of a plan to the blocks with a kernel that trains.

    A kernel trains if any of its coordinates does; bool[k, B]. None if everything trains.
    """
    mask, structure = algorithm.mask, problem.model.shapes.params["blocks"]
    if mask is None:
        return None

    def of_block(shapes: Any, kept: Any) -> jax.Array:
        pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(kept), strict=True)
        return jnp.any(jnp.stack([jnp.any(keep) for leaf, keep in pairs if leaf.ndim > 1]))

    def of_client(row: Any, shared: Any) -> jax.Array:
        kept = mask(row, shared)["blocks"]
        return jnp.stack([of_block(*each) for each in zip(structure, kept, strict=True)])

    return jax.jit(jax.vmap(of_client, in_axes=(0, None)))


def _chain(
    cost: np.ndarray, through: np.ndarray, slowdown: float
) -> tuple[np.ndarray, list[int], float, float]:
    """Shares of the blocks, window ends of a slow device, and shares of its budget.

    Args:
      cost: backward cost of each block.
      through: cost of the gradient's path through each block.
      slowdown: time of the device over that of the fastest.

    Returns:
      Shares; last blocks of the windows, from 1; the path to block 1 over the budget, from the end
      of the first window and from the end of the network.
    """
    budget = np.asarray([np.sum(cost) / slowdown])
    ends = np.flatnonzero(windows.visited(cost, budget, "fedel")[0])
    first, whole = (float(np.sum(through[1 : end + 1]) / budget[0]) for end in (ends[0], len(cost)))
    return cost / np.sum(cost), (ends + 1).tolist(), first, whole


def pyramid(problem: Problem, slowdown: float = 2.0) -> str:
    """Backward costs of the network's blocks beside those of VGG16 on an Orin board, as a table.

    Args:
      problem: problem with the network.
      slowdown: time of the device whose windows are shown over that of the fastest.
    """
    times = tensor_times(problem.model, problem.cost)
    through = np.bincount(times.block, times.through, times.num_blocks)
    weight, path = np.asarray(_ORIN_WEIGHT), np.asarray(_ORIN_INPUT)
    rows = []
    for name, cost, of in (
        ("here", times.block_cost, through),
        ("VGG16, Orin", weight + path, path),
    ):
        shares, ends, first, whole = _chain(cost, of, slowdown)
        text = " ".join(f"{share:.3f}"[1:] for share in shares)
        rows.append((name, text, str(ends), f"{first:.2f}", f"{whole:.2f}"))
    head = ("network", "shares of the blocks", "windows end at", "path, window", "path, network")
    return harness.table(head, rows)


def activity(plans: Mapping[str, Mapping[str, Any]]) -> str:
    """What each method's plans do on fast and slow devices, as a table."""
    rows = []
    whole_s = plans["FedAvg"]["round_s"]
    for label, plan in plans.items():
        for g, kind in enumerate(("fast", "slow")):
            rows.append(
                (
                    f"{label}, {kind}",
                    f"{whole_s / plan['round_s']:.2f}" if g == 0 else "",
                    f"{plan['steps'][g]:.1f}",
                    f"{plan['work'][g]:.2f}",
                    f"{plan['upload'][g]:.2f}",
                    " ".join(f"{100 * share:.0f}" for share in plan["blocks"][g]),
                )
            )
    head = ("arm", "speed-up", "steps", "work", "upload", "tasks that train a kernel of a block, %")
    return harness.table(head, rows)
