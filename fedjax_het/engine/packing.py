"""Packing of a plan's tasks into the padded rows of a program, and unpacking of its outputs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.contract.plan import Plan
from fedjax_het.engine.rounds import RoundBatch, RoundOutputs
from fedjax_het.engine.rows import Outputs, Rows


class Packed(NamedTuple):
    """The rows of a group's tasks.

    Attributes:
      members: positions of the tasks in the plan, int64[m].
      places: rows of the tasks in the group, int64[m].
    """

    members: np.ndarray
    places: np.ndarray


def pack(
    plan: Plan,
    members: Sequence[int],
    size: int,
    last: int,
    devices: int = 1,
    version: np.ndarray | None = None,
    staleness: np.ndarray | None = None,
    slot: np.ndarray | None = None,
    place: np.ndarray | None = None,
) -> tuple[Packed, Rows]:
    """Packs tasks into rows, distributes them over the devices in turn, and pads the rows.

    Args:
      plan: plan with the tasks.
      members: positions of the tasks in the plan; if empty, no row is valid.
      size: number of rows on all devices together.
      last: index of the model's deepest block, the exit of a task whose route has no exit.
      devices: number of devices that share the rows, in equal contiguous parts.
      version: index of each task's start among several, int64[k]; None if there is one.
      staleness: server steps since that start was made, int64[k]; None means 0.
      slot: slot of each result, int64[k]; None if results do not wait.
      place: number of each task among those of its merge, int64[k]; None for that in the plan.

    Returns:
      Positions and rows of the tasks, and the padded rows.
    """
    order = np.arange(len(members))
    places = (order % devices) * (size // devices) + order // devices
    # Padding repeats a real client, so that a partly filled chunk computes on valid values.
    source = np.full(size, members[0] if len(members) else 0)
    source[places] = members
    exits = np.asarray([last if r.exit is None else r.exit for r in plan.routes], np.int32)
    late = np.zeros(len(exits), np.int32) if staleness is None else staleness.astype(np.int32)
    valid = np.zeros(size, bool)
    valid[places] = True
    rows = Rows(
        valid=valid,
        client=plan.clients.astype(np.int32)[source],
        steps=plan.steps.astype(np.int32)[source],
        batch=plan.batch.astype(np.int32)[source],
        weight=plan.weight.astype(np.float32)[source],
        exit=exits[source],
        width=np.asarray([route.width for route in plan.routes], np.int32)[source],
        row=jax.tree.map(lambda a: np.asarray(a)[source], plan.rows),
        staleness=late[source],
        place=(np.arange(len(exits)) if place is None else place).astype(np.int32)[source],
        version=None if version is None else version.astype(np.int32)[source],
        slot=None if slot is None else slot.astype(np.int32)[source],
    )
    return Packed(np.asarray(members, np.int64), places), rows


def stack(
    steps: Sequence[int], plans: Sequence[Plan], rows: Sequence[Sequence[Rows]], capacity: int
) -> RoundBatch:
    """Stacks rounds that were planned ahead, and pads them to `capacity`.

    Args:
      steps: numbers of the server steps.
      plans: plans of the rounds.
      rows: rows of every round, one `Rows` per group.
      capacity: number of rounds for which the program is compiled.
    """

    def pad(*rounds: Any) -> np.ndarray:
        first = np.asarray(rounds[0])
        padded = np.zeros((capacity, *first.shape), jax.dtypes.canonicalize_dtype(first.dtype))
        for r, value in enumerate(rounds):
            padded[r] = value
        return padded

    return RoundBatch(
        count=np.int32(len(plans)),
        step=pad(*(np.int32(step) for step in steps)),
        learning_rate_scale=pad(*(np.float32(plan.learning_rate_scale) for plan in plans)),
        shared=jax.tree.map(pad, *(plan.shared for plan in plans)),
        rows=tuple(jax.tree.map(pad, *group) for group in zip(*rows, strict=True)),
    )


def unstack(outputs: RoundOutputs, packed: Sequence[Sequence[Packed]]) -> list[tuple[Outputs, Any]]:
    """The outputs and the info of every round in a batch of rounds, copied to the host."""
    fetched = jax.device_get(outputs)
    rounds = []
    for r, groups in enumerate(packed):
        clients, info = jax.tree.map(lambda a, r=r: a[r], (fetched.clients, fetched.info))
        rounds.append((collect(groups, clients), info))
    return rounds


def collect(packed: Sequence[Packed], outputs: Sequence[Outputs]) -> Outputs:
    """The outputs of all groups, on the host, in the order of the plan."""
    k = sum(len(group.members) for group in packed)
    total = jax.tree.map(lambda a: np.zeros((k, *a.shape[1:]), a.dtype), outputs[0])
    for group, out in zip(packed, outputs, strict=True):
        for target, source in zip(jax.tree.leaves(total), jax.tree.leaves(out), strict=True):
            target[group.members] = source[group.places]
    return total
