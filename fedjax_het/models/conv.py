"""One convolution, five lowerings: which one is fast depends on backend, dtype and shape.

Under `vmap` with one kernel per client `lax.conv_general_dilated` becomes a grouped convolution,
and inside a loop XLA's CPU backend leaves its fast kernels; both are slower by an order of
magnitude than the same arithmetic written as slices and matrix products. `benchmarks/micro/conv.py`
prints them side by side.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het.errors import require
from fedjax_het.models.lowering import Convolution, implicit_fits, interpreted, lowering_of
from fedjax_het.models.product import product
from fedjax_het.models.shifts import shifted_sum

Array = jax.Array

# Slices of so many bytes stay in a CPU's cache until they are multiplied.
_CPU_SLICES_BYTES = 1.7e6


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
    """Drop-in for `jax.lax.conv_general_dilated` that is fast per client; see `lowering.choose`.

        y[n, p, o] = sum_{i, c} x[n, p * stride + i - pad, c] w[i, c, o]

    Pass it to a flax module as `nn.Conv(..., conv_general_dilated=conv_general_dilated)`.

    * `"patches"`: pads, concatenates the shifted strided slices along channels, one matmul.
    * `"rows"`: the same along the last spatial axis only, and a sum of matmuls over the others;
      less memory traffic, shorter contractions.
    * `"shift_add"`: as `"rows"`, but one matmul gives the products of all window rows for every
      row of the input, and its outputs are shifted and added.
    * `"implicit"`: on a GPU, a matmul whose rows are gathered inside of the kernel
      (`implicit_gemm`). Where that cannot run (`implicit_fits`: another backend, an old GPU, other
      than two spatial axes, ...) the choice is made among the others.
    * `"lax"`: `jax.lax.conv_general_dilated`. Also taken, whatever was chosen, for what the others
      do not do: dilation, groups, and layouts other than channels-last.

    A window of one element is a matmul under every choice but `"lax"`. Gradients are those of the
    slices and matmuls: the adjoint of a padded convolution through custom rules was slower.

    Args:
      lhs: `[batch, *space, channels in]`.
      rhs: `[*window, channels in, channels out]`, same dtype.
      window_strides: one integer a spatial axis.
      padding: `"SAME"`, `"VALID"` or pairs (low, high).
      lhs_dilation: as in lax.
      rhs_dilation: as in lax.
      dimension_numbers: as in lax; None means channels first, as in lax.
      feature_group_count: as in lax.
      batch_group_count: as in lax.
      precision: as in lax.
      preferred_element_type: as in lax.

    Returns:
      `[batch, *space out, channels out]`.
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
    padded = [n + low + high for n, (low, high) in zip(lhs.shape[1:-1], padding)]
    size = tuple((n - k) // s + 1 for n, k, s in zip(padded, window, strides))
    if min(size) < 1:
        return fallback()
    pairs = tuple((low, high) for low, high in padding)
    convolution = Convolution(
        lhs.dtype.name,
        lhs.shape,
        rhs.shape,
        strides,
        pairs,
        implicit=implicit_fits(lhs, rhs, precision, preferred_element_type),
    )
    how = lowering_of(convolution)
    if how == "lax":
        return fallback()
    if how == "implicit":
        # Imported where it is used; see `device_fits`.
        from fedjax_het.models import implicit_gemm

        return implicit_gemm.conv(lhs, rhs, strides, pairs, interpret=interpreted())
    if any(low or high for low, high in padding):
        edges = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
        lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), edges)

    def matmul(x: Array, weights: Array) -> Array:
        """`[..., k] x [k, o]`; flattened, which the CPU's matmul and its adjoint prefer."""
        rows = x.reshape(-1, x.shape[-1])
        plain = precision is None and preferred_element_type is None
        if plain and jax.default_backend() == "cpu":
            return product(rows, weights).reshape(*x.shape[:-1], weights.shape[-1])
        y = lax.dot_general(
            rows,
            weights,
            (((1,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
        return y.reshape(*x.shape[:-1], weights.shape[-1])

    if how == "shift_add" and window[0] > 1:
        return _shift_add(lhs, rhs, size, strides, matmul)
    if how == "rows":
        slices = math.prod(lhs.shape[1:]) // lhs.shape[-2] * size[-1] * window[-1]
        by_rows = functools.partial(
            _by_slices, size=size, strides=strides, summed=len(size) - 1, matmul=matmul
        )
        return _in_parts(by_rows, lhs, rhs, slices)
    return _by_slices(lhs, rhs, size, strides, 0, matmul)


def _in_parts(run: Callable[[Array, Array], Array], x: Array, kernel: Array, slices: int) -> Array:
    """`run(x, kernel)`; on a CPU part of the batch by part, if its slices outgrow the cache.

    The parts' slices are made anew for the gradient, which is cheaper than fetching them.

    Args:
      run: a convolution.
      x: its input.
      kernel: its kernel.
      slices: elements of the slices of one sample.
    """
    batch = x.shape[0]
    divisors = [parts for parts in range(1, batch + 1) if batch % parts == 0]
    each = slices * x.dtype.itemsize
    parts = next((n for n in divisors if each * batch <= n * _CPU_SLICES_BYTES), batch)
    if parts == 1 or jax.default_backend() != "cpu":
        return run(x, kernel)
    one = jax.checkpoint(lambda part: run(part, kernel))
    y = lax.map(one, x.reshape(parts, batch // parts, *x.shape[1:]))
    return y.reshape(batch, *y.shape[2:])


def _by_slices(
    x: Array,
    kernel: Array,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    summed: int,
    matmul: Callable[[Array, Array], Array],
) -> Array:
    """Valid convolution; sums matmuls over `summed` leading window axes, concatenates the rest."""
    window = kernel.shape[:-2]
    x = _concatenate(x, summed, window, size, strides)
    weights = kernel.reshape(*window[:summed], -1, kernel.shape[-1])
    parts = [
        matmul(_window(x, 1, offset, size[:summed], strides[:summed]), weights[offset])
        for offset in _offsets(window[:summed])
    ]
    return functools.reduce(jnp.add, parts)


def _shift_add(
    x: Array,
    kernel: Array,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    matmul: Callable[[Array, Array], Array],
) -> Array:
    """Valid convolution; all window rows times all input rows, then a sum of shifted outputs."""
    window, features = kernel.shape[:-2], kernel.shape[-1]
    x = _concatenate(x, 1, window, size, strides)
    weights = jnp.moveaxis(kernel.reshape(window[0], -1, features), 0, 1)
    products = matmul(x, weights.reshape(x.shape[-1], window[0] * features))
    return shifted_sum(products, window[0], size[0], strides[0])


def _concatenate(
    x: Array, skip: int, window: tuple[int, ...], size: tuple[int, ...], strides: tuple[int, ...]
) -> Array:
    """Slices along the spatial axes from `skip` on, one per window element, along the channels."""
    pieces = [
        _window(x, skip + 1, offset, size[skip:], strides[skip:])
        for offset in _offsets(window[skip:])
    ]
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=-1)


def _offsets(window: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All positions inside `window`, last axis fastest."""
    return list(itertools.product(*(range(k) for k in window)))


def _window(
    x: Array,
    first: int,
    offset: tuple[int, ...],
    size: tuple[int, ...],
    strides: tuple[int, ...],
) -> Array:
    """The strided slice of `x` at `offset` along the axes from `first` on; other axes whole."""
    if not offset:
        return x
    start, stop, step = [0] * x.ndim, list(x.shape), [1] * x.ndim
    for axis, (o, n, s) in enumerate(zip(offset, size, strides), start=first):
        start[axis], stop[axis], step[axis] = o, o + (n - 1) * s + 1, s
    return lax.slice(x, start, stop, step)


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
