"""Error feedback: a client adds what it did not send to its next update.

::

sent_i = C(delta_i + e_i)        e_i <- (delta_i + e_i) - sent_i        e_i = 0 at first
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import Chunk
from fedjax_het.contract.uploads import Upload

# `(delta, mask, key) -> sent` of one client, traced: its update, zero outside its mask, with None
# at leaves that its route does not train; its mask, or None; and a typed PRNG key.
Compress = Callable[[PyTree, PyTree, jax.Array], PyTree]

MEMORY_BYTES = 8e9  # default bound of the memory for the residuals


def feeding_back(upload: Upload, compress: Compress, memory_bytes: float) -> Upload:
    """The compression with error feedback, which keeps a residual of each client.

    The residual of a client changes when its update is merged, and only at the coordinates that it
    trained. The residuals of n clients take the memory of n models on one device.

    Args:
      upload: compression without error feedback.
      compress: function of one client's update.
      memory_bytes: largest memory of the residuals, in bytes; more is an `InputError` at the start
        of a run.

    References:
      Karimireddy et al., *Error Feedback Fixes SignSGD and other Gradient Compression Schemes*,
      ICML 2019, Algorithm 1; Stich et al., *Sparsified SGD with Memory*, NeurIPS 2018.
    """

    def keep(variables: Any, n: int) -> PyTree:
        params = variables.params
        need = n * sum(4 * leaf.size for leaf in jax.tree.leaves(params))
        require(
            need <= memory_bytes,
            f"error_feedback of {upload.name} with {n} clients",
            f"keeps an update of each, {need:.4g} bytes, which exceeds memory_bytes = "
            f"{memory_bytes:.4g}",
            "leave error feedback out, use fewer clients, or raise memory_bytes",
        )
        return jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape), jnp.float32), params)

    def one(delta: PyTree, residual: PyTree, mask: PyTree, key: jax.Array) -> tuple[PyTree, PyTree]:
        """What a client sends, and its residual after that."""
        own = masks.apply(mask, residual)
        total = jax.tree.map(jnp.add, delta, own)
        sent = compress(total, mask, key)
        # Outside the mask, `own`, `total` and `sent` are zero, and the residual stays.
        left = jax.tree.map(lambda e, o, t, s: (e - o) + (t - s), residual, own, total, sent)
        return sent, left

    def change(residuals: PyTree, chunk: Chunk) -> tuple[PyTree, Chunk]:
        def turn(number: jax.Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            residuals, delta = carry
            rows = jax.tree.map(
                lambda d, e: None if d is None else e[chunk.client], delta, residuals, is_leaf=_none
            )
            sent, left = jax.vmap(one)(delta, rows, chunk.mask, chunk.key)
            now = turns == number
            # Rows that are not due write to a client that does not exist, which is ignored.
            to = jnp.where(now, chunk.client, num_clients)
            residuals = jax.tree.map(
                lambda new, e: e if new is None else e.at[to].set(new, mode="drop"),
                left,
                residuals,
                is_leaf=_none,
            )
            delta = jax.tree.map(lambda s, d: jnp.where(_rows(now, d), s, d), sent, delta)
            return residuals, delta

        num_clients = jax.tree.leaves(residuals)[0].shape[0]
        turns = _turns(chunk.client, chunk.weight > 0)
        start = residuals, chunk.delta
        residuals, delta = jax.lax.fori_loop(0, jnp.max(turns) + 1, turn, start)
        return residuals, chunk._replace(delta=delta)

    return upload._replace(change=change, keep=keep, contracts=False)


def _none(leaf: Any) -> bool:
    return leaf is None


def _rows(flags: jax.Array, like: jax.Array) -> jax.Array:
    """One flag per row, broadcast to the shape of `like`."""
    return jnp.broadcast_to(flags.reshape((-1,) + (1,) * (like.ndim - 1)), like.shape)


def _turns(client: jax.Array, live: jax.Array) -> jax.Array:
    """How many rows of the same client come before each live row, int32[c]; -1 for other rows.

    A client may arrive twice between two merges of a buffer; its second update then adds what its
    first one left.
    """
    same = (client[:, None] == client[None, :]) & live[None, :]
    before = jnp.sum(jnp.tril(same, -1).astype(jnp.int32), axis=1)
    return jnp.where(live, before, -1)
