"""Memory of the clients: a row per client, which the merge keeps and local training reads."""

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Chunk
from fedjax_het.fleet.flops import tree_bytes
from fedjax_het.problem import Problem

# Why tasks of such methods may not overlap, see `Paces`.
LAST_STEP = "its clients read what the merge kept of them, which must be that of the last step"


def require_room(
    problem: Problem, method: str, memory_bytes: float, each: int | None = None
) -> None:
    """Raises `InputError` unless the rows of all clients fit into `memory_bytes`.

    Args:
      problem: model and clients.
      method: name of the method.
      memory_bytes: limit of the bytes of all rows.
      each: bytes of a row; None for those of the model's parameters.
    """
    n, each = problem.num_clients, tree_bytes(problem.model.shapes.params) if each is None else each
    require(
        n * each <= memory_bytes,
        f"memory_bytes = {memory_bytes:.4g}",
        f"is less than {method} keeps of {n} clients, {each:.4g} bytes each, {n * each:.4g} in all",
        "raise it as far as the device of the server has memory, or use fewer clients",
    )


def no_rows(params: PyTree, n: int) -> PyTree:
    """Rows of zeros for n clients, each in the structure and shapes of the parameters."""
    return jax.tree.map(lambda a: jnp.zeros((n, *a.shape), a.dtype), params)


def row_of(rows: PyTree, client: jax.Array) -> PyTree:
    """The row of one client, traced."""
    return jax.tree.map(lambda a: a[client], rows)


def added(rows: PyTree, chunk: Chunk, change: PyTree) -> PyTree:
    """The rows after changes of the clients of a chunk, traced.

    Args:
      rows: rows of all clients.
      chunk: clients; those of weight 0 do not change.
      change: stacked changes, in the structure of the parameters; None for tensors that no client
        of the chunk trains.
    """

    def add(every: jax.Array, new: jax.Array | None) -> jax.Array:
        if new is None:
            return every
        at = jnp.where(chunk.weight > 0, chunk.client, every.shape[0])
        return every.at[at].add(new, mode="drop")

    return jax.tree.map(add, rows, change)
