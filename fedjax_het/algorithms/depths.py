"""Sub-models by depth of a problem: their exits, the levels of the clients, and their masks."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.fleet.cost import CostTable
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem

# Tolerance for rounding in capacities such as 0.71, so that the last digit excludes no level.
_SLACK = 1e-9


def exit_blocks(cost: CostTable, levels: int = 4) -> tuple[int, ...]:
    """The last blocks of sub-models whose costs grow evenly.

    Args:
      cost: prices of the model's L blocks.
      levels: number of sub-models; there are L if the model has fewer blocks.

    Returns:
      Distinct blocks in ascending order, L-1 last. Of the others, number i of D is the block that
      brings the cost of a training step closest to i/D of that of the whole network.
    """
    last = cost.num_blocks - 1
    levels = min(levels, last + 1)
    share = cost.step_flops(0, np.arange(last + 1)) / cost.step_flops(0, last)
    exits: list[int] = []
    for i in range(1, levels):
        nearest = int(np.argmin(np.abs(share - i / levels)))
        # There must be a block left for every level before and after this one.
        exits.append(min(max(nearest, (exits or [-1])[-1] + 1), last - (levels - i)))
    return (*exits, last)


def checked_exits(problem: Problem, exits: Sequence[int] | None) -> np.ndarray:
    """Exit blocks of sub-models, int64[D]; None for `exit_blocks`.

    Raises:
      InputError: if the model has no exit heads, or the blocks do not ascend to the last one.
    """
    model = problem.model
    require(
        bool(model.exits),
        f"model {model.name!r}",
        "has no exit heads, which sub-models by depth need",
        "set config.model.exits = True, or use with_exits(model)",
    )
    ends = np.asarray(exit_blocks(problem.cost) if exits is None else exits, np.int64)
    last = model.num_blocks - 1
    require(
        ends.ndim == 1
        and ends.size > 0
        and bool(np.all(np.diff(ends, prepend=-1) > 0))
        and ends[-1] == last,
        f"exits = {exits}",
        f"must be blocks of {model.name!r} in ascending order that end with {last}",
        "leave it out for four evenly by cost",
    )
    return ends


def earlier_heads(ends: np.ndarray, num_blocks: int) -> np.ndarray:
    """The blocks at whose heads each sub-model also takes a loss, bool[D, L]; see `CostTable`."""
    at = np.arange(num_blocks) == ends[:, None]
    return np.cumsum(at, axis=0) - at > 0


def given_levels(
    problem: Problem, levels: Sequence[int] | str | None, capacity: Any, number: int
) -> np.ndarray | None:
    """Index of the level of every client, int64[n]; None if capacities decide.

    Args:
      problem: model, data and fleet.
      levels: level 1..D of every client, "even" for 1..D in turn, or None.
      capacity: the method's option, which excludes `levels`.
      number: number D of levels.
    """
    if levels is None:
        return None
    require(
        capacity is None,
        "levels and capacity",
        "both decide on the levels of the clients",
        "leave one out",
    )
    n = problem.num_clients
    if isinstance(levels, str):
        require_known(levels, ("even",), "levels")
        return np.arange(n) % number
    given = np.asarray(levels, np.int64)
    require(
        given.shape == (n,) and bool(np.all((given >= 1) & (given <= number))),
        f"levels = {levels}",
        f"must be one level in 1..{number} for each of the {n} clients",
        'use "even", or leave it out for levels by capacity',
    )
    return given - 1


def affordable_levels(work: np.ndarray, capacity: np.ndarray) -> tuple[np.ndarray, int]:
    """The largest level that each client affords.

    Args:
      work: FLOPs of a training step of every level, float64[D], the largest last.
      capacity: share of the largest one that each client affords, float64[n].

    Returns:
      Index of the level, int64[n], 0 where none is affordable, and the number of such clients.
    """
    fits = work / work[-1] <= capacity[:, None] * (1 + _SLACK)
    return np.max(np.where(fits, np.arange(len(work)), 0), axis=1), int(np.sum(~fits[:, 0]))


def prefix_mask(model: BlockModel, ends: Sequence[int]) -> Callable[[PyTree, PyTree], PyTree]:
    """The mask of the blocks up to a client's exit and of the heads at all exits up to it.

    Args:
      model: model with exit heads.
      ends: exit blocks of the sub-models.

    Returns:
      A function for `Algorithm.mask`, of rows with `exit`, int32.
    """
    structure = model.shapes.params
    last = model.num_blocks - 1
    # The shallowest exit that uses a head; a shared head is that of all.
    users = {model.exit_slot(b): b for b in sorted(set(ends) - {last}, reverse=True)}

    def mask(row: PyTree, shared: PyTree) -> PyTree:
        del shared
        exit = jnp.asarray(row["exit"])

        def head(slot: int, params: PyTree) -> PyTree:
            kept = exit >= users[slot] if slot in users else jnp.zeros_like(exit, bool)
            return jax.tree.map(lambda _: kept, params)

        exits = tuple(head(slot, params) for slot, params in enumerate(structure["exits"]))
        return {**masks.suffix(structure, jnp.zeros_like(exit), exit), "exits": exits}

    return mask
