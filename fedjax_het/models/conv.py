"""A convolution in seven lowerings; backend, dtype and shape decide which of them is fast.

Under `vmap` with one kernel per client, `lax.conv_general_dilated` becomes a grouped convolution,
and inside a loop XLA's CPU backend does not use its fast kernels. Both are slower by an order of
magnitude than the same arithmetic written as slices and matrix products. `benchmarks/micro/conv.py`
prints the times of all lowerings.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het.common.errors import require
from fedjax_het.models import direct, onednn
from fedjax_het.models.lowering import (
    Convolution,
    Lowering,
    direct_fits,
    implicit_fits,
    interpreted,
    lowering_of,
)
from fedjax_het.models.product import product
from fedjax_het.models.shifts import shifted_sum
from fedjax_het.models.windows import offsets, padded, shifted, side_by_side

Array = jax.Array


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Replacement of `jax.lax.conv_general_dilated` that is fast with a kernel per client.

        y[n, p, o] = sum_{i, c} x[n, p * stride + i - pad, c] w[i, c, o]

    Pass it to a flax module as `nn.Conv(..., conv_general_dilated=conv_general_dilated)`. It uses
    one of these lowerings (see `lowering.choose`):

    * `"patches"`: pads, concatenates the shifted strided slices along channels, and computes one
      matmul.
    * `"rows"`: the same along the last spatial axis only, and a sum of matmuls over the others;
      less memory traffic, shorter contractions.
    * `"shift_add"`: as `"rows"`, but one matmul gives the products of all window rows for every
      row of the input, and its outputs are shifted and added.
    * `"implicit"`: on a GPU, a matmul whose rows are gathered inside the kernel (`implicit_gemm`).
      If this is not supported (`implicit_fits`: another backend, an old GPU, a number of spatial
      axes other than two, ...), one of the others is chosen.
    * `"direct"`: forward pass and input gradient by XLA's convolution, kernel gradient by matmuls
      (`direct`). If this is not supported (`direct_fits`: strides), one of the others is chosen.
    * `"onednn"`: all three by kernels of oneDNN (`onednn`), only as the result of a measurement.
    * `"lax"`: `jax.lax.conv_general_dilated`. It is always used for dilation, groups, and layouts
      other than channels-last, which the other lowerings do not support.

    A window of one element is a matmul in every lowering except `"lax"`. Gradients are those of the
    slices and matmuls, except in `"direct"`, `"onednn"` and `"implicit"`.

    Args:
      lhs: input, `[batch, *space, channels in]`.
      rhs: kernel, `[*window, channels in, channels out]`, same dtype.
      window_strides: strides, one integer per spatial axis.
      padding: padding, `"SAME"`, `"VALID"` or pairs (low, high).
      lhs_dilation: dilation of the input, as in lax.
      rhs_dilation: dilation of the kernel, as in lax.
      dimension_numbers: layout, as in lax; None means channels first.
      feature_group_count: number of feature groups, as in lax.
      batch_group_count: number of batch groups, as in lax.
      precision: precision of products, as in lax.
      preferred_element_type: dtype of the result, as in lax.

    Returns:
      Output, `[batch, *space out, channels out]`.
    """
    lax_arguments = (
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
    )
    fallback = functools.partial(
        lax.conv_general_dilated, lhs, rhs, window_strides, padding, *lax_arguments
    )
    dilated = set(lhs_dilation or (1,)) | set(rhs_dilation or (1,)) != {1}
    grouped = feature_group_count != 1 or batch_group_count != 1
    if dilated or grouped or not _channels_last(lhs, rhs, dimension_numbers):
        return fallback()
    _check(lhs, rhs, window_strides, padding)
    window, strides = rhs.shape[:-2], tuple(window_strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:-1], window, strides, padding)
    sides = [n + low + high for n, (low, high) in zip(lhs.shape[1:-1], padding)]
    size = tuple((n - k) // s + 1 for n, k, s in zip(sides, window, strides))
    if min(size) < 1:
        return fallback()
    pairs = tuple((low, high) for low, high in padding)
    fits_direct = direct_fits(rhs, strides, precision, preferred_element_type)
    convolution = Convolution(
        lhs.dtype.name,
        lhs.shape,
        rhs.shape,
        strides,
        pairs,
        implicit=implicit_fits(lhs, rhs, precision, preferred_element_type),
        direct=fits_direct,
        onednn=fits_direct and onednn.fits(lhs, rhs, pairs),
    )
    how = lowering_of(convolution)
    if how == "lax":
        return fallback()
    if how == "implicit":
        # Imported only if it is used; `device_fits` says why.
        from fedjax_het.models import implicit_gemm

        return implicit_gemm.conv(lhs, rhs, strides, pairs, interpret=interpreted())
    matmul = functools.partial(
        _matmul, precision=precision, preferred_element_type=preferred_element_type
    )
    sliced = functools.partial(_sliced, padding=pairs, size=size, strides=strides, matmul=matmul)
    if how in ("direct", "onednn"):
        kernels = direct.KERNELS if how == "direct" else onednn.KERNELS
        return direct.conv(lhs, rhs, pairs, functools.partial(sliced, how="rows"), kernels)
    return sliced(lhs, rhs, how=how)


def _matmul(x: Array, weights: Array, *, precision: Any, preferred_element_type: Any) -> Array:
    """`[..., k] x [k, o]`, computed on flat rows, which is faster on a CPU in both directions."""
    rows = x.reshape(-1, x.shape[-1])
    plain = precision is None and preferred_element_type is None
    if plain and jax.default_backend() == "cpu":
        y = product(rows, weights)
    else:
        y = lax.dot_general(
            rows,
            weights,
            (((1,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
    return y.reshape(*x.shape[:-1], weights.shape[-1])


def _sliced(
    x: Array,
    kernel: Array,
    *,
    how: Lowering,
    padding: tuple[tuple[int, int], ...],
    size: tuple[int, ...],
    strides: tuple[int, ...],
    matmul: Callable[[Array, Array], Array],
) -> Array:
    """The lowerings made of slices and matmuls; `size` is the spatial shape of the output."""
    x = padded(x, padding)
    if how == "shift_add" and kernel.shape[0] > 1:
        return _shift_add(x, kernel, size, strides, matmul)
    return _by_slices(x, kernel, size, strides, len(size) - 1 if how == "rows" else 0, matmul)


def _by_slices(
    x: Array,
    kernel: Array,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    summed: int,
    matmul: Callable[[Array, Array], Array],
) -> Array:
    """Valid convolution: sums matmuls over `summed` leading window axes, concatenates the rest."""
    window = kernel.shape[:-2]
    x = side_by_side(x, summed, window, size, strides)
    weights = kernel.reshape(*window[:summed], -1, kernel.shape[-1])
    parts = [
        matmul(shifted(x, 1, offset, size[:summed], strides[:summed]), weights[offset])
        for offset in offsets(window[:summed])
    ]
    return functools.reduce(jnp.add, parts)


def _shift_add(
    x: Array,
    kernel: Array,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    matmul: Callable[[Array, Array], Array],
) -> Array:
    """Valid convolution: products of all window rows and input rows, then a sum of shifted rows."""
    window, features = kernel.shape[:-2], kernel.shape[-1]
    x = side_by_side(x, 1, window, size, strides)
    weights = jnp.moveaxis(kernel.reshape(window[0], -1, features), 0, 1)
    products = matmul(x, weights.reshape(x.shape[-1], window[0] * features))
    return shifted_sum(products, window[0], size[0], strides[0])


def _channels_last(lhs: Array, rhs: Array, dimension_numbers: Any) -> bool:
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    space = tuple(range(1, lhs.ndim - 1))
    activation = (0, lhs.ndim - 1, *space)
    kernel = (rhs.ndim - 1, rhs.ndim - 2, *(axis - 1 for axis in space))
    return (
        bool(space)
        and tuple(numbers.lhs_spec) == tuple(numbers.out_spec) == activation
        and tuple(numbers.rhs_spec) == kernel
    )


def _check(lhs: Array, rhs: Array, strides: Sequence[int], padding: Any) -> None:
    space = lhs.ndim - 2
    require(
        rhs.ndim == lhs.ndim and rhs.shape[-2] == lhs.shape[-1],
        f"kernel {list(rhs.shape)}",
        f"must be [*window, {lhs.shape[-1]}, channels out] for an input {list(lhs.shape)}",
        "check input_shape of the model",
    )
    require(
        lhs.dtype == rhs.dtype,
        f"input {lhs.dtype}, kernel {rhs.dtype}",
        "must have one dtype",
        "cast one of them",
    )
    require(
        len(strides) == space and (isinstance(padding, str) or len(padding) == space),
        f"strides {strides}, padding {padding}",
        f"must have {space} entries",
        "give one a spatial axis",
    )
