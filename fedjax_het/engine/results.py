"""Results that wait for their merge: one kind of program stores them, another fetches them.

In a synchronous round results are merged inside the training program. Under a pace that leaves
tasks waiting, the same loop over a group runs twice with other functions::

    storing:    produce = train a client          consume = put its update into its task's slot
    fetching:   produce = take it from its slot   consume = merge it

A result depends only on the model, the key and the plan's row of its task. It therefore does not
matter when it is trained and together with which other tasks.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.engine.rows import Outputs, Round, Rows, origin, outputs_of
from fedjax_het.engine.work import Work, clean_chunk, client_mask, merge_chunk, train_one


class Origin(NamedTuple):
    """The model from which the tasks of one server step start, and the values that they share."""

    variables: Variables
    common: Round


class Results(NamedTuple):
    """Updates that wait for their merge, one slot each (leading axis s).

    Attributes:
      delta: updates, structure of the parameters; zero at leaves that a route does not train.
      stats_delta: updates of the running statistics, in their structure.
      aux: values of `ClientResult.aux`.
    """

    delta: PyTree
    stats_delta: PyTree
    aux: PyTree

    @property
    def slots(self) -> int:
        """Number s of slots."""
        return len(jax.tree.leaves(self.delta)[0])


def no_results(slots: int, variables: Variables, aux: PyTree) -> Results:
    """Empty slots.

    Args:
      slots: number of slots.
      variables: any model, for shapes.
      aux: value of `ClientResult.aux` for one client, as `ShapeDtypeStruct`s.
    """
    like = Results(variables.params, variables.stats, aux)
    return jax.tree.map(lambda a: jnp.zeros((slots, *a.shape), a.dtype), like)


def storing(algorithm: Algorithm) -> Work:
    """The work that trains clients and stores results in `Rows.slot` of a `Results` accumulator.

    Its data are the samples and the buffers of the merge that are the memory of the clients.
    """
    memory = algorithm.merge.memory

    def recall(acc: Results, data: tuple[PyTree, PyTree], client: jax.Array) -> PyTree:
        del acc
        return None if memory is None else memory.read(data[1], client)

    def train(
        route: Route,
        start: Variables,
        data: tuple[PyTree, PyTree],
        rows: Rows,
        loop_steps: jax.Array,
        common: Round,
        kept: PyTree,
    ) -> tuple[ClientResult, PyTree]:
        return train_one(algorithm, route, start, data[0], rows, loop_steps, common, kept)

    def store_chunk(
        acc: Results,
        route: Route,
        start: Variables,
        rows: Rows,
        result: ClientResult,
        mask: PyTree,
        common: Round,
    ) -> tuple[Results, Outputs]:
        del route
        chunk, finite = clean_chunk(start, rows, result, mask, common, checked=False)
        # Padding and updates that are not finite are dropped.
        slot = jnp.where(rows.valid & finite, rows.slot, acc.slots)

        def store(every: jax.Array, new: jax.Array | None) -> jax.Array:
            return every.at[slot].set(0 if new is None else new, mode="drop")

        new = Results(chunk.delta, chunk.stats_delta, chunk.aux)
        stored = Results(*(jax.tree.map(store, *pair) for pair in zip(acc, new, strict=True)))
        return stored, outputs_of(result, finite)

    return Work(train, store_chunk, recall)


def fetching(algorithm: Algorithm) -> Work:
    """The work that fetches results from `Rows.slot` of a finite `Results` and merges them."""

    def fetch_one(
        route: Route,
        start: Variables,
        data: Results,
        rows: Rows,
        loop_steps: jax.Array,
        common: Round,
        kept: PyTree,
    ) -> tuple[ClientResult, PyTree]:
        del route, loop_steps, kept
        start, common = origin(start, common, rows)
        result = jax.tree.map(lambda a: a[rows.slot], data)
        stats = jax.tree.map(jnp.add, start.stats, result.stats_delta)
        nothing = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        mask = client_mask(algorithm, rows, common)
        return ClientResult(result.delta, stats, *nothing, result.aux), mask

    return Work(fetch_one, functools.partial(merge_chunk, algorithm, checked=True))


@functools.partial(jax.jit, donate_argnums=0)
def cleared(results: Results, slots: jax.Array) -> Results:
    """The results with these slots set to zero; slots that do not exist are ignored."""
    return jax.tree.map(lambda a: a.at[slots].set(0, mode="drop"), results)


@jax.jit
def _stack(*trees: PyTree) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def stacked(origins: dict[int, Origin], version: np.ndarray) -> tuple[Origin, np.ndarray | None]:
    """The origins of some tasks, stacked, and the index of each task's origin.

    The number of origins is padded to a power of four, so that few programs are compiled. A single
    origin is not stacked.

    Args:
      origins: origins by version number.
      version: version numbers of the tasks, int64[k].

    Returns:
      The stacked origins and the indices, int32[k]; or the only origin and None.
    """
    wanted, index = np.unique(version, return_inverse=True)
    if len(wanted) == 1:
        return origins[int(wanted[0])], None
    size = 4 ** -(-int(len(wanted) - 1).bit_length() // 2)
    padded = np.concatenate([wanted, np.full(size - len(wanted), wanted[-1])])
    every: Any = _stack(*(origins[int(v)] for v in padded))
    return Origin(*every), index.astype(np.int32)
