"""The lowering "onednn": convolutions by oneDNN, which jaxlib contains for x86 processors.

Its runtime executes a custom call named `__onednn$convolution` by oneDNN's kernels, although no
pass of the compiler in JAX 0.10 makes such a call of a convolution. They gather their operands in
registers, for any number of channels, and choose their instructions by themselves:

    forward pass:     the convolution
    input gradient:   the convolution of g with the flipped kernel
    kernel gradient:  of a small image, the convolution of x with g as its kernel, where channels
                      in take the place of the batch, and the batch that of the channels;
                      otherwise a product of g with slices of x, side by side
    under vmap:       slices and products throughout

It is never the table's choice, only that of a measurement (`autotune`) or of `lowering("onednn")`:
such programs cannot be kept between processes, so each one compiles them again. From the first call
on, a process keeps no program at all (`compilation_cache.stop_keeping`).
"""

import functools
import json
import math
import platform
import sys
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_het.models.direct import Kernels, flipped
from fedjax_het.models.windows import padded, side_by_side
from fedjax_het.runtime import compilation_cache

Array = jax.Array
Padding = tuple[tuple[int, int], ...]

# The call is no public interface: later versions may describe a convolution in other numbers, and
# oneDNN ends the process if it cannot read them. `tests/models/test_onednn.py` holds these.
_VERSIONS = ("0.10.",)
# Elements of an image up to which it serves as a kernel: 14 x 14.
_SMALL_IMAGE = 200


@functools.cache
def available() -> bool:
    """Whether the default backend is a CPU whose runtime is known to execute the call."""
    known = jax.__version__.startswith(_VERSIONS) and jax.default_backend() == "cpu"
    return known and sys.platform == "linux" and platform.machine() == "x86_64"


def fits(lhs: Any, rhs: Any, padding: Padding) -> bool:
    """Whether "onednn" supports a convolution that "direct" supports.

    Args:
      lhs: input, channels last.
      rhs: kernel, channels last.
      padding: pairs (low, high), one per spatial axis; for the input gradient they must be smaller
        than the window.
    """
    inside = all(min(pair) >= 0 and max(pair) < k for k, pair in zip(rhs.shape, padding))
    return lhs.dtype == jnp.float32 and inside and lhs.ndim <= 5 and available()


def _convolution(x: Array, kernel: Array, padding: Padding) -> Array:
    """`[batch, *space, channels in] * [*window, channels in, channels out]`, stride 1."""
    axes = len(padding)
    data = {"batch_dim": 0, "feature_dim": axes + 1, "spatial_dims": list(range(1, axes + 1))}
    weights = {
        "input_feature_dim": axes,
        "output_feature_dim": axes + 1,
        "spatial_dims": list(range(axes)),
    }
    image = {"dims": axes + 2, "data": data}
    window = {
        "size": kernel.shape[:axes],
        "pad_left": [low for low, _ in padding],
        "pad_right": [high for _, high in padding],
        "strides": [1] * axes,
        "window_dilations": [1] * axes,
    }
    description = {
        "dims": axes + 2,
        "input": image,
        "kernel": {"dims": axes + 2, "filter": weights},
        "output": image,
        "window": window,
        "feature_groups": 1,
    }
    sides = zip(x.shape[1:-1], padding, kernel.shape)
    size = [n + low + high - k + 1 for n, (low, high), k in sides]
    out = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[-1]), x.dtype)
    return _call("convolution", {"onednn_conv_config": description}, out, x, kernel)


def _call(name: str, description: Any, out: jax.ShapeDtypeStruct, *operands: Array) -> Array:
    compilation_cache.stop_keeping()
    # Descriptions in JSON belong to the older versions of custom calls.
    call = jax.ffi.ffi_call(
        f"__onednn${name}",
        out,
        custom_call_api_version=2,
        legacy_backend_config=json.dumps(description),
    )
    return call(*operands)


def _of_input(x: Array, kernel: Array, g: Array, padding: Padding) -> Array:
    del x
    return _convolution(g, *flipped(kernel, padding))


def _of_kernel(x: Array, kernel: Array, g: Array, padding: Padding) -> Array:
    window, size = kernel.shape[:-2], g.shape[1:-1]
    if math.prod(size) <= _SMALL_IMAGE:
        across = _convolution(jnp.moveaxis(x, (0, -1), (-1, 0)), jnp.moveaxis(g, 0, -2), padding)
        return jnp.moveaxis(across, 0, -2)
    slices = side_by_side(padded(x, padding), 0, window, size, (1,) * len(window))
    rows, columns = slices.reshape(-1, kernel[..., 0].size), g.reshape(-1, g.shape[-1])
    out = jax.ShapeDtypeStruct((rows.shape[1], columns.shape[1]), g.dtype)
    description = {"onednn_matmul_config": {"transpose_a": True}}
    return _call("matmul", description, out, rows, columns).reshape(kernel.shape)


KERNELS = Kernels(_convolution, _of_input, _of_kernel)
