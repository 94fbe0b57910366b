r"""Convolution on a GPU as a matrix product whose rows are gathered while they are multiplied.

    y[n, p, q, :] = sum_{i, j} x[n, p s + i - low, q s + j - low, :] w[i, j]

No patches are written to memory: a program of a Pallas kernel holds the sum of a tile of output
rows and loads the input row of each window element, zero outside the image. `vmap` over clients
adds a dimension to the grid. The same kernel computes the input gradient: all rows of x with the
same remainder modulo the stride are one convolution of the output gradient with stride 1. The
weight gradient is a sum over rows; the sum is split among programs, because a client has few
weights.

Products of float32 are computed in TF32, as in XLA on these GPUs; all sums are float32.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

Array = jax.Array
# One window element: row and column offset into the gathered image, and position of its weights.
Tap = tuple[int, int, int]

# Matrix units need tiles of at least this many rows, columns and contracted channels.
_LEAST = 16
# Size of a tile of outputs. 128 rows of 64 channels are 64 sums per thread in four warps.
_ROWS, _OUT = 128, 128
_SUMS_PER_WARP = 2048
# Up to this many channels are contracted at once; more are contracted in parts of one cache line.
_CONTRACTED = 64
_LINE_BYTES = 128
# Sums that a program of the weight gradient may hold, 96 per thread; more do not fit in registers.
_WEIGHT_SUMS = 12288
_WEIGHT_TILE = 64
_WEIGHT_ROWS = 64
# Rows that a program sums over: with this many, the partial sums that it writes are at most a fifth
# of the data that it reads.
_SPLIT_ROWS = 1024
# Shared memory for prefetched loads, which every GPU of compute capability 8.0 or more has.
_SHARED_BYTES = 96 * 1024
_MOST_STAGES = 3


class Shape(NamedTuple):
    """The static values of a compiled kernel.

    Attributes:
      image: rows and columns of the input.
      window: rows and columns of the kernel.
      strides: strides of the window along rows and columns.
      low: padding before the first row and column; negative values crop.
      size: rows and columns of the output.
      interpret: whether the kernels run in Pallas' interpreter, on any backend.
    """

    image: tuple[int, int]
    window: tuple[int, int]
    strides: tuple[int, int]
    low: tuple[int, int]
    size: tuple[int, int]
    interpret: bool


def conv(
    x: Array,
    w: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    interpret: bool = False,
) -> Array:
    """The convolution; differentiable once, in reverse mode.

    Args:
      x: input, `[batch, height, width, channels in]`, float32 or bfloat16.
      w: kernel, `[kernel height, kernel width, channels in, channels out]`, same dtype.
      strides: strides along rows and columns.
      padding: pairs (low, high) for rows and columns; negative values crop.
      interpret: whether the kernels run in the interpreter, see `Shape`.

    Returns:
      Output, `[batch, height out, width out, channels out]`, dtype of `x`.
    """
    image, window = (x.shape[1], x.shape[2]), (w.shape[0], w.shape[1])
    rows, columns = (
        (n + low + high - k) // s + 1
        for n, k, s, (low, high) in zip(image, window, strides, padding)
    )
    low = (padding[0][0], padding[1][0])
    stride = (strides[0], strides[1])
    return _conv(x, w, Shape(image, window, stride, low, (rows, columns), interpret))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, w: Array, shape: Shape) -> Array:
    height, width = w.shape[:2]
    taps = tuple(
        (i - shape.low[0], j - shape.low[1], i * width + j)
        for i in range(height)
        for j in range(width)
    )
    return _gather_product(x, w, taps, shape.size, shape.strides, False, shape.interpret)


def _conv_forward(x: Any, w: Any, shape: Shape) -> tuple[Array, tuple[Array | None, Array | None]]:
    kept = (x.value if w.perturbed else None, w.value if x.perturbed else None)
    return _conv(x.value, w.value, shape), kept


def _conv_backward(shape: Shape, kept: Any, g: Any) -> tuple[Array | None, Array | None]:
    x, w = kept
    if isinstance(g, SymbolicZero):
        return None, None
    dx = None if w is None else _input_gradient(w, g, shape)
    return dx, None if x is None else _weight_gradient(x, g, shape)


_conv.defvjp(_conv_forward, _conv_backward, symbolic_zeros=True)


def _input_gradient(w: Array, g: Array, shape: Shape) -> Array:
    """`dx[h] = sum_i g[(h + low - i) / s] w[i]^T` over all i for which s divides h + low - i."""
    (height, width), channels = shape.image, w.shape[2]
    (down, across), (top, left) = shape.strides, shape.low
    size = (-(-height // down), -(-width // across))

    def phase(a: int, b: int) -> Array:
        """Rows a, a + s, ... and columns b, b + s, ... of dx."""
        taps = tuple(
            ((a + top - i) // down, (b + left - j) // across, i * w.shape[1] + j)
            for i in range((a + top) % down, w.shape[0], down)
            for j in range((b + left) % across, w.shape[1], across)
        )
        if not taps:
            return jnp.zeros((g.shape[0], *size, channels), g.dtype)
        return _gather_product(g, w, taps, size, (1, 1), True, shape.interpret)

    phases = [jnp.stack([phase(a, b) for b in range(across)], 3) for a in range(down)]
    dx = jnp.stack(phases, 2).reshape(-1, size[0] * down, size[1] * across, channels)
    return dx[:, :height, :width]


def _at_least(size: int, most: int) -> int:
    """The next power of two that is at least `size`, limited to `_LEAST`..`most`."""
    return min(max(1 << (size - 1).bit_length(), _LEAST), most)


def _stages(bytes_ahead: int) -> int:
    """Number of loop steps whose loads fit in shared memory at the same time."""
    return min(max(_SHARED_BYTES // bytes_ahead, 1), _MOST_STAGES)


def _place(m: Array, size: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Sample, row and column of the flat output rows `m`."""
    rows, columns = (jnp.full_like(m, n) for n in size)
    rest = lax.div(m, columns)
    return lax.div(rest, rows), lax.rem(rest, rows), lax.rem(m, columns)


def _below(index: Array, count: int, tile: int) -> Array | None:
    """Mask of the indices below `count`; None if `tile` divides `count`."""
    return index < count if count % tile else None


def _mask(rows: Array | None, columns: Array | None) -> Array | None:
    """Mask of a tile from the masks of its two axes; None if nothing is masked."""
    if rows is None:
        return None if columns is None else columns[None, :]
    return rows[:, None] if columns is None else rows[:, None] & columns[None, :]


def _load(ref: Any, where: tuple[int, ...], rows: Array, columns: Array, mask: Any) -> Array:
    """A tile `[rows, columns]` of the matrix at `where`; masked elements are zero."""
    at = ref.at[(*where, rows[:, None], columns[None, :])]
    return plt.load(at) if mask is None else plt.load(at, mask=mask, other=0.0)


def _pad(x: Array, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
    """Adds zeros around the image; negative values crop."""
    if not any((*rows, *columns)):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)])


def _gather_product(
    x: Array,
    w: Array,
    taps: tuple[Tap, ...],
    size: tuple[int, int],
    strides: tuple[int, int],
    transposed: bool,
    interpret: bool,
) -> Array:
    """`y[n, p, q] = sum_t x[n, p s + dy_t, q s + dx_t] w[k_t]`; x is zero outside the image.

    Args:
      x: gathered images, `[samples, height, width, contracted]`.
      w: weights, `[*window, contracted, out]`, or `[*window, out, contracted]` if transposed.
      taps: triples (dy, dx, k), where k is a position in the flat window.
      size: rows and columns of the result.
      strides: strides s along rows and columns.
      transposed: whether the last two axes of `w` are swapped.
      interpret: whether the kernel runs in the interpreter, see `Shape`.

    Returns:
      Result, `[samples, *size, out]`, dtype of `x`.
    """
    # The border is stored explicitly, because a test of every row for every tap needs more
    # registers than there are.
    reach = [(min(d), max(d)) for d in list(zip(*taps))[:2]]
    borders = [
        (-least, (n - 1) * s + most + 1 - there)
        for (least, most), n, s, there in zip(reach, size, strides, x.shape[1:3])
    ]
    x = _pad(x, borders[0], borders[1])
    samples, height, width, contracted = x.shape
    out = w.shape[2] if transposed else w.shape[3]
    count = samples * size[0] * size[1]
    rows, columns = _at_least(count, _ROWS), _at_least(out, _OUT)
    depth = _at_least(contracted, _CONTRACTED)
    if contracted > depth:
        depth = _LINE_BYTES // x.dtype.itemsize
    blocks = pl.cdiv(contracted, depth)

    def kernel(x_ref: Any, w_ref: Any, y_ref: Any) -> None:
        m = pl.program_id(0) * rows + jnp.arange(rows)
        o = pl.program_id(1) * columns + jnp.arange(columns)
        inside, wanted = _below(m, count, rows), _below(o, out, columns)
        sample, row, column = _place(m if inside is None else jnp.where(inside, m, 0), size)
        base = (sample * height + row * strides[0]) * width + column * strides[1]
        total = jnp.zeros((rows, columns), jnp.float32)
        for down, across, k in taps:
            offset = (down - reach[0][0]) * width + across - reach[1][0]

            def add(block: Any, total: Array, offset: int = offset, k: int = k) -> Array:
                z = block * depth + jnp.arange(depth)
                there = _below(z, contracted, depth)
                left = _load(x_ref, (), base + offset, z, _mask(None, there))
                if transposed:
                    right = _load(w_ref, (k,), o, z, _mask(wanted, there))
                else:
                    right = _load(w_ref, (k,), z, o, _mask(there, wanted))
                return total + plt.dot(left, right, trans_b=transposed, allow_tf32=True)

            total = add(0, total) if blocks == 1 else lax.fori_loop(0, blocks, add, total)
        at = y_ref.at[m[:, None], o[None, :]]
        plt.store(at, total.astype(y_ref.dtype), mask=_mask(inside, wanted))

    y = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((count, out), x.dtype),
        grid=(pl.cdiv(count, rows), pl.cdiv(out, columns)),
        compiler_params=plt.CompilerParams(
            num_warps=max(rows * columns // _SUMS_PER_WARP, 4),
            num_stages=_stages((rows + columns) * depth * x.dtype.itemsize),
        ),
        interpret=interpret,
        name="conv_input_gradient" if transposed else "conv",
    )(x.reshape(-1, contracted), w.reshape(-1, *w.shape[2:]))
    return y.reshape(samples, *size, out)


def _weight_gradient(x: Array, g: Array, shape: Shape) -> Array:
    """`dw[i, j] = sum_{n, p, q} x[n, p s + i - low, q s + j - low]^T g[n, p, q]`, dtype of `x`.

    A program computes one row of the window, one tile of channels and one part of the sum.
    """
    (tall, wide), channels, out = shape.window, x.shape[3], g.shape[3]
    borders = [
        (low, (n - 1) * s + k - low - there)
        for low, n, s, k, there in zip(
            shape.low, shape.size, shape.strides, shape.window, shape.image
        )
    ]
    x = _pad(x, borders[0], borders[1])
    samples, height, width, _ = x.shape
    count = samples * shape.size[0] * shape.size[1]
    tile, columns = _at_least(channels, _WEIGHT_TILE), _at_least(out, _WEIGHT_TILE)
    while wide * tile * columns > _WEIGHT_SUMS and max(tile, columns) > _LEAST:
        tile, columns = (tile // 2, columns) if tile > columns else (tile, columns // 2)
    row_bytes = (wide * tile + columns) * x.dtype.itemsize
    rows = _WEIGHT_ROWS if 2 * _WEIGHT_ROWS * row_bytes <= _SHARED_BYTES else _WEIGHT_ROWS // 2
    steps = min(_SPLIT_ROWS // rows, pl.cdiv(count, rows))
    splits, tiles = pl.cdiv(count, rows * steps), pl.cdiv(out, columns)

    def kernel(x_ref: Any, g_ref: Any, dw_ref: Any) -> None:
        i, split, which = (pl.program_id(axis) for axis in range(3))
        z = (which // tiles) * tile + jnp.arange(tile)
        o = (which % tiles) * columns + jnp.arange(columns)
        there, wanted = _below(z, channels, tile), _below(o, out, columns)

        def add(step: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
            m = (split * steps + step) * rows + jnp.arange(rows)
            inside = _below(m, count, rows * steps)
            m = m if inside is None else jnp.where(inside, m, 0)
            sample, row, column = _place(m, shape.size)
            base = (sample * height + row * shape.strides[0] + i) * width
            base = base + column * shape.strides[1]
            right = _load(g_ref, (), m, o, _mask(inside, wanted))
            lefts = [_load(x_ref, (), base + j, z, _mask(None, there)) for j in range(wide)]
            return tuple(
                total + plt.dot(left, right, trans_a=True, allow_tf32=True)
                for total, left in zip(totals, lefts)
            )

        zero = jnp.zeros((tile, columns), jnp.float32)
        for j, total in enumerate(lax.fori_loop(0, steps, add, (zero,) * wide)):
            at = dw_ref.at[split, i * wide + j, z[:, None], o[None, :]]
            plt.store(at, total, mask=_mask(there, wanted))

    parts = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((splits, tall * wide, channels, out), jnp.float32),
        grid=(tall, splits, pl.cdiv(channels, tile) * tiles),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=_stages(rows * row_bytes)),
        interpret=shape.interpret,
        name="conv_weight_gradient",
    )(x.reshape(-1, channels), g.reshape(count, out))
    return jnp.sum(parts, 0).reshape(tall, wide, channels, out).astype(x.dtype)
