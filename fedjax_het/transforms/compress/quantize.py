"""Quantised updates: few values per coordinate, times a scale."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count, Unlimited
from fedjax_het.common.options import checked
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.uploads import leaf_keys
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.compress.feedback import MEMORY_BYTES
from fedjax_het.transforms.compress.parts import VALUE_BYTES, compressing, count, trained

_MAX_BITS = 16


@checked
def qsgd(*, levels: Count, bucket: Count = 512) -> Transformation:
    """QSGD: every coordinate becomes a multiple of (norm / levels), rounded at random.

    A coordinate x becomes `norm * sign(x) * l / levels`, with l one of the two integers around
    `levels * |x| / norm`, drawn so that the mean is x. The norm is the Euclidean norm of the
    `bucket` consecutive coordinates of the same tensor to which x belongs. A coordinate takes
    ceil(log2(2 levels + 1)) bits, a bucket the 4 bytes of its norm; the paper's Elias code, which
    is shorter for few levels, is not used. The last bucket of a tensor, if it is shorter, is
    counted together with the first of the next tensor.

    Args:
      levels: number s of levels above zero, 1 to 2^15 - 1; 7 gives four bits.
      bucket: coordinates per norm.

    References:
      Alistarh et al., *QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding*,
      NeurIPS 2017, Sections 3.1 and 4.
    """
    most = 2 ** (_MAX_BITS - 1) - 1
    require(
        1 <= levels <= most and levels == int(levels),
        f"levels = {levels}",
        f"must be an integer from 1 to {most}",
        "use 7 for four bits per coordinate",
    )
    levels = int(levels)
    return _rounding("qsgd", _norm, levels, bucket, levels=levels)


@checked
def uniform(*, bits: Count, bucket: Count = 512) -> Transformation:
    """Every coordinate becomes one of 2^bits - 1 evenly spaced values, rounded at random.

    The values reach from -m to m, with m the largest magnitude among the `bucket` consecutive
    coordinates of the same tensor; zero is one of them, so that what is not trained stays zero. The
    mean of a rounded coordinate is the coordinate. A coordinate takes `bits` bits, a bucket the 4
    bytes of m, counted as in `qsgd`.

    Args:
      bits: bits per coordinate, 2 to 16.
      bucket: coordinates per scale.

    References:
      Reisizadeh et al., *FedPAQ: A Communication-Efficient Federated Learning Method with Periodic
      Averaging and Quantization*, AISTATS 2020, for unbiased quantised updates.
    """
    require(
        2 <= bits <= _MAX_BITS and bits == int(bits),
        f"bits = {bits}",
        f"must be an integer from 2 to {_MAX_BITS}",
        "use 4 or 8, or compress.sign() for one bit",
    )
    bits = int(bits)
    return _rounding("uniform", _most, 2 ** (bits - 1) - 1, bucket, bits=bits)


@checked
def sign(*, error_feedback: bool = False, memory_bytes: Unlimited = MEMORY_BYTES) -> Transformation:
    """Sends the sign of every coordinate, and the mean magnitude of the update.

    A coordinate x becomes m if x >= 0 and -m if not, with m the mean of |x| over all coordinates
    that the client trains: one bit each, and 4 bytes. One bit has no zero: a coordinate whose
    update is zero moves too.

    Without error feedback the updates are biased, and training may stall short of the optimum; with
    it the memory of the clients' residuals is that of n models on one device, and rounds run one by
    one.

    Args:
      error_feedback: whether clients add what they did not send to their next update.
      memory_bytes: largest memory for these residuals, 4 bytes per client and parameter.

    References:
      Karimireddy et al., *Error Feedback Fixes SignSGD and other Gradient Compression Schemes*,
      ICML 2019, with the scaled sign.
    """

    def compress(delta: PyTree, mask: PyTree, key: jax.Array) -> PyTree:
        del key
        values, _ = ravel_pytree(delta)
        number = jnp.maximum(count(trained(delta, mask)), 1).astype(jnp.float32)
        mean = jnp.sum(jnp.abs(values)) / number
        return masks.apply(mask, jax.tree.map(lambda x: jnp.where(x >= 0, mean, -mean), delta))

    def size(coordinates: np.ndarray) -> np.ndarray:
        return (coordinates + 7) // 8 + VALUE_BYTES

    return compressing(
        "sign",
        compress,
        size,
        contracts=True,
        error_feedback=error_feedback,
        memory_bytes=memory_bytes,
    )


def _norm(rows: jax.Array) -> jax.Array:
    return jnp.linalg.norm(rows, axis=1, keepdims=True)


def _most(rows: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(rows), axis=1, keepdims=True)


def _rounding(
    name: str,
    scale_of: Callable[[jax.Array], jax.Array],
    highest: int,
    bucket: int,
    **options: Any,
) -> Transformation:
    """Rounds coordinates at random to multiples of (scale / highest), a scale per bucket.

    Args:
      name: name of the compression.
      scale_of: function from buckets, float32[b, width], to their scales, float32[b, 1], no less
        than any magnitude in them.
      highest: number of levels above zero.
      bucket: coordinates per scale.
      **options: options of the compression besides `bucket`.
    """
    require(
        bucket >= 1 and bucket == int(bucket),
        f"bucket = {bucket}",
        "must be at least 1 coordinate",
        "use 512",
    )
    bits = (2 * highest).bit_length()  # ceil(log2(2 highest + 1))

    def rounded(x: jax.Array, key: jax.Array) -> jax.Array:
        flat = x.reshape(-1)
        width = max(min(bucket, flat.size), 1)
        rows = jnp.pad(flat, (0, -flat.size % width)).reshape(-1, width)
        scale = scale_of(rows)
        exact = jnp.clip(rows / jnp.where(scale > 0, scale, 1.0), -1.0, 1.0) * highest
        low = jnp.floor(exact)
        up = jax.random.uniform(key, rows.shape) < exact - low
        sent = (low + up.astype(jnp.float32)) * (scale / highest)
        return sent.reshape(-1)[: flat.size].reshape(x.shape)

    def compress(delta: PyTree, mask: PyTree, key: jax.Array) -> PyTree:
        del mask  # zero stays zero
        return jax.tree.map(rounded, delta, leaf_keys(key, delta))

    def size(coordinates: np.ndarray) -> np.ndarray:
        return (coordinates * bits + 7) // 8 + VALUE_BYTES * ((coordinates + bucket - 1) // bucket)

    return compressing(name, compress, size, contracts=False, bucket=bucket, **options)
