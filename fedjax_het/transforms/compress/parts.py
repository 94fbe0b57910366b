"""A compression as an upload: applied to every client by itself, priced by its number of bytes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import Chunk
from fedjax_het.contract.plan import Timing
from fedjax_het.contract.uploads import Upload
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.compress import feedback
from fedjax_het.transforms.compress.feedback import Compress
from fedjax_het.transforms.sending import uploading

VALUE_BYTES = 4  # of a float32


def compressing(
    name: str,
    compress: Compress,
    size: Callable[[np.ndarray], np.ndarray],
    *,
    contracts: bool,
    error_feedback: bool = False,
    memory_bytes: float = feedback.MEMORY_BYTES,
    **options: Any,
) -> Transformation:
    """The transformation that compresses the updates, with the prices stated for the package.

    Args:
      name: name of the compression in errors and options.
      compress: function of one client's update.
      size: function from the numbers of coordinates, int64[k], to the bytes of their compressed
        form, int64[k].
      contracts: whether `compress` makes no update longer, in the Euclidean norm.
      error_feedback: whether clients add what they did not send to their next update.
      memory_bytes: bound of the memory for that, see `feedback.feeding_back`.
      **options: resolved options in JSON types.
    """

    def price(timing: Timing, count: int) -> Timing:
        del count
        sent = size(timing.bytes_up // VALUE_BYTES)
        return timing.moving(bytes_up=np.minimum(sent, timing.bytes_up))

    def change(kept: tuple[()], chunk: Chunk) -> tuple[tuple[()], Chunk]:
        delta = jax.vmap(compress)(chunk.delta, chunk.mask, chunk.key)
        return kept, chunk._replace(delta=delta)

    upload = Upload(name, change, price=price, contracts=contracts)
    if error_feedback:
        upload = feedback.feeding_back(upload, compress, memory_bytes)
        options["error_feedback"] = True
    return uploading(upload, "compress", **options)


def trained(delta: PyTree, mask: PyTree) -> jax.Array:
    """Whether each coordinate of an update is trained, in the order of `ravel_pytree`, bool[P].

    Args:
      delta: update of one client; leaves that its route does not train are None and have no place.
      mask: mask of the client, or None if everything trains.
    """
    every = jax.tree.map(lambda x: jnp.ones(x.shape, bool), delta)
    return ravel_pytree(masks.apply(mask, every))[0]


def count(flags: jax.Array) -> jax.Array:
    """Number of true flags, int32."""
    return jnp.sum(flags.astype(jnp.int32))
