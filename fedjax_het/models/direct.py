"""The lowering "direct": XLA's own convolution, with the kernel gradient by matrix products.

XLA's convolution on a CPU gathers its operands during the multiplication, so no slices are written
to memory and read back. Inside a loop, XLA uses this fast form for a plain convolution only: not
for the gradients that it derives, which are dilated or have a window as large as the image, and not
under `vmap` with a kernel per client. Therefore this lowering computes

    input gradient:   a plain convolution of g with the flipped kernel
    kernel gradient:  g^T times slices of the input, one product per window row
    under vmap:       slices and products throughout
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het.models.windows import offsets, padded, shifted, side_by_side

Array = jax.Array
Padding = tuple[tuple[int, int], ...]
Convolve = Callable[[Array, Array], Array]


class Kernels(NamedTuple):
    """The computations of a convolution of stride 1 of a single client.

    Attributes:
      forward: function `(x, kernel, padding)`.
      of_input, of_kernel: gradients, functions `(x, kernel, g, padding)` of the output's gradient.
    """

    forward: Callable[..., Array]
    of_input: Callable[..., Array]
    of_kernel: Callable[..., Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv(x: Array, kernel: Array, padding: Padding, batched: Convolve, kernels: Kernels) -> Array:
    """Convolution of stride 1; has no forward-mode derivative.

    Args:
      x: input, `[batch, *space, channels in]`.
      kernel: kernel, `[*window, channels in, channels out]`, same dtype.
      padding: pairs (low, high), one per spatial axis.
      batched: equal function of `x` and `kernel`, used under `vmap`.
      kernels: computations of a single client, `KERNELS` for this module's.

    Returns:
      Output, `[batch, *space out, channels out]`.
    """
    return _alone(functools.partial(kernels.forward, padding=padding), batched)(x, kernel)


def _forward(
    x: Array, kernel: Array, padding: Padding, batched: Convolve, kernels: Kernels
) -> tuple[Array, tuple[Array, Array]]:
    return conv(x, kernel, padding, batched, kernels), (x, kernel)


def _backward(
    padding: Padding, batched: Convolve, kernels: Kernels, kept: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    def gradient(which: int, run: Callable[..., Array]) -> Array:
        def derived(x: Array, kernel: Array, g: Array) -> Array:
            return jax.vjp(batched, x, kernel)[1](g)[which]

        return _alone(functools.partial(run, padding=padding), derived)(*kept, g)

    return gradient(0, kernels.of_input), gradient(1, kernels.of_kernel)


conv.defvjp(_forward, _backward)


def _alone(run: Callable[..., Array], batched: Callable[..., Array]) -> Callable[..., Array]:
    """The function `run`; under `vmap` it is replaced by `batched`, an equal function."""
    call = jax.custom_batching.custom_vmap(run)

    def rule(_: int, with_axis: list[bool], *operands: Array) -> tuple[Array, bool]:
        axes = tuple(0 if flag else None for flag in with_axis)
        return jax.vmap(batched, in_axes=axes)(*operands), True

    call.def_vmap(rule)
    return call


def _plain(x: Array, kernel: Array, padding: Padding) -> Array:
    spatial = "HWD"[: len(padding)]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return lax.conv_general_dilated(
        x, kernel, (1,) * len(padding), padding, dimension_numbers=numbers
    )


def _of_input(x: Array, kernel: Array, g: Array, padding: Padding) -> Array:
    """Gradient of the input: convolution of `g` with the flipped kernel."""
    del x
    return _plain(g, *flipped(kernel, padding))


def flipped(kernel: Array, padding: Padding) -> tuple[Array, Padding]:
    """Kernel and padding of the convolution that makes the input's gradient of the output's."""
    window = kernel.shape[:-2]
    turned = jnp.swapaxes(jnp.flip(kernel, tuple(range(len(window)))), -1, -2)
    return turned, tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(window, padding))


def _of_kernel(x: Array, kernel: Array, g: Array, padding: Padding) -> Array:
    """Gradient of the kernel, one window row at a time.

    XLA may replace a product by its transpose, and would then transpose the wider factor for every
    row. With the barriers, only `g` is transposed, and only once.
    """
    window, size = kernel.shape[:-2], g.shape[1:-1]
    ones = (1,) * len(window)
    slices = side_by_side(padded(x, padding), len(window) - 1, window, size, ones)
    across = lax.optimization_barrier(g.reshape(-1, g.shape[-1]).T)
    rows = [
        lax.optimization_barrier(
            across @ shifted(slices, 1, offset, size[:-1], ones[:-1]).reshape(across.shape[1], -1)
        ).T
        for offset in offsets(window[:-1])
    ]
    return jnp.stack(rows).reshape(kernel.shape)


KERNELS = Kernels(_plain, _of_input, _of_kernel)
