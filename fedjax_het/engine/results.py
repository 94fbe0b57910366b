"""Training apart from merging, for clients whose results wait: the two halves of an algorithm.

In a synchronous round the updates are merged inside the training program. Under a pace that leaves
tasks waiting, the same program runs twice with other parts::

    trainer:   local = the algorithm's            merge = store each update in the slot of its task
    merger:    local = fetch it from its slot     merge = the algorithm's

A result depends on the model, the key and the plan's row of its task only, so when it is trained,
and with whom, changes nothing.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Chunk, ClientResult, Plan, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.engine.engine import Engine
from fedjax_het.engine.programs import Outputs, Round
from fedjax_het.runtime.chunking import power_of_two


class Origin(NamedTuple):
    """What the tasks of one server step start from."""

    variables: Variables
    common: Round


class Results(NamedTuple):
    """Updates that wait for their merge, one slot each (leading axis s).

    Attributes:
      delta: structure of the parameters; zero where a route left a leaf out.
      stats_delta: structure of the running statistics.
      aux: `ClientResult.aux`.
    """

    delta: PyTree
    stats_delta: PyTree
    aux: PyTree


def _trainer(algorithm: Algorithm) -> Algorithm:
    """Trains as the algorithm does and stores the results by `row["slot"]`."""

    def local(route: Route, start: Variables, data: PyTree, task: Task) -> ClientResult:
        return algorithm.local(route, start, data, task._replace(row=task.row["own"]))

    def add(acc: Results, chunk: Chunk) -> Results:
        # Padding, and what is not finite, goes nowhere.
        slot = jnp.where(chunk.weight > 0, chunk.row["slot"], _slots(acc))

        def store(every: jax.Array, new: jax.Array | None) -> jax.Array:
            return every.at[slot].set(0 if new is None else new, mode="drop")

        new = Results(chunk.delta, chunk.stats_delta, chunk.aux)
        return Results(*(jax.tree.map(store, *pair) for pair in zip(acc, new, strict=True)))

    merge = algorithm.merge._replace(init=lambda *_: None, add=add)
    return algorithm._replace(local=local, mask=_own_mask(algorithm), merge=merge)


def _merger(algorithm: Algorithm) -> Algorithm:
    """Fetches results by `row["slot"]` and merges them as the algorithm does."""

    def local(route: Route, start: Variables, data: Results, task: Task) -> ClientResult:
        del route
        result = jax.tree.map(lambda a: a[task.row["slot"]], data)
        stats = jax.tree.map(jnp.add, start.stats, result.stats_delta)
        nothing = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        return ClientResult(result.delta, stats, *nothing, result.aux)

    def add(acc: PyTree, chunk: Chunk) -> PyTree:
        return algorithm.merge.add(acc, chunk._replace(row=chunk.row["own"]))

    merge = algorithm.merge._replace(add=add)
    return algorithm._replace(local=local, mask=_own_mask(algorithm), merge=merge)


def _own_mask(algorithm: Algorithm) -> Any:
    mask = algorithm.mask
    return None if mask is None else lambda row, shared: mask(row["own"], shared)


@functools.partial(jax.jit, donate_argnums=0)
def _clear(tree: PyTree, slots: jax.Array) -> PyTree:
    return jax.tree.map(lambda a: a.at[slots].set(0, mode="drop"), tree)


@jax.jit
def _stack(*trees: PyTree) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _slots(results: Results) -> int:
    return len(jax.tree.leaves(results.delta)[0])


class Deferred:
    """The two engines of an algorithm, and stacks of models for them.

    Args:
      cohort: the algorithm's engine; compiled programs are kept with it.
    """

    def __init__(self, cohort: Engine):
        self._cohort = cohort
        self._trainer = cohort.twin("trainer", _trainer)
        self._merger = cohort.twin("merger", _merger, alone=True, checked=True)

    def one_by_one(self, batch: np.ndarray) -> bool:
        """Whether clients with mini-batches of these sizes gain nothing from company."""
        return self._cohort.devices == 1 and self._cohort.side_by_side(batch) == 1

    def empty(self, slots: int, plan: Plan, origin: Origin) -> Results:
        """Room for the results of `slots` tasks like those of the plan."""
        rows = self._rows(plan, np.zeros(len(plan.clients)))
        result = self._trainer.shapes(rows, *origin)
        like = Results(origin.variables.params, origin.variables.stats, result.aux)
        return jax.tree.map(lambda a: jnp.zeros((slots, *a.shape), a.dtype), like)

    def train(
        self,
        results: Results,
        plan: Plan,
        origins: dict[int, Origin],
        version: np.ndarray,
        slot: np.ndarray,
    ) -> tuple[Results, Outputs]:
        """Trains every task of the plan from its own version into its own slot.

        Args:
          results: where to; consumed.
          plan: the tasks.
          origins: the versions by number.
          version: int64[k].
          slot: int64[k].
        """
        room = _slots(results)
        if self._cohort.devices > 1:
            # Each device starts from nothing, and what they hold is added to what there is.
            # Padding with a slot that does not exist: few sizes, few programs.
            padded = np.full(power_of_two(len(slot), up=True), room, np.int32)
            padded[: len(slot)] = slot
            results = _clear(results, padded)
        stacked, index = self._stacked(origins, version)
        rows = self._rows(plan, slot)._replace(routes=self._cohort.executed_routes(plan.routes))
        return self._trainer.run(results, rows, *stacked, version=index, room=room)

    def merge(
        self,
        acc: PyTree,
        results: Results,
        plan: Plan,
        origins: dict[int, Origin],
        version: np.ndarray,
        slot: np.ndarray,
        staleness: np.ndarray,
    ) -> PyTree:
        """Adds the results in these slots to the accumulator of the algorithm's merge."""
        stacked, index = self._stacked(origins, version)
        rows = self._rows(plan, slot)._replace(routes=[self._merger.full] * len(plan.clients))
        room, results = _slots(results), self._cohort.on_one_device(results)
        return self._merger.run(
            acc, rows, *stacked, version=index, staleness=staleness, data=results, room=room
        )[0]

    def _rows(self, plan: Plan, slot: np.ndarray) -> Plan:
        return plan._replace(rows={"own": plan.rows, "slot": np.asarray(slot, np.int32)})

    def _stacked(
        self, origins: dict[int, Origin], version: np.ndarray
    ) -> tuple[tuple[Variables, Round], np.ndarray | None]:
        """The models behind some tasks, stacked, and which of them each starts from.

        Their number is padded to a power of four: programs are compiled for few of them. A single
        one is not stacked.
        """
        wanted, index = np.unique(version, return_inverse=True)
        if len(wanted) == 1:
            origin = origins[int(wanted[0])]
            return (origin.variables, origin.common), None
        size = 4 ** -(-int(len(wanted) - 1).bit_length() // 2)
        padded = np.concatenate([wanted, np.full(size - len(wanted), wanted[-1])])
        stacked = _stack(*(origins[int(v)] for v in padded))
        return tuple(stacked), index.astype(np.int32)
