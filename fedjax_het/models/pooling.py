"""Max pooling over disjoint windows, with forward and backward passes that a CPU vectorises."""

import functools
import itertools

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import InputError

Array = jax.Array


def max_pool(x: Array, window: int | tuple[int, ...] = 2) -> Array:
    """Maximum over disjoint windows; incomplete windows at the far edge are dropped.

    It computes elementwise maxima of a reshaped array, because the gradient of a windowed reduction
    is ten times slower on a CPU. Equal maxima share the gradient equally. The function has no
    forward-mode derivative.

    Args:
      x: input, `[batch, *space, channels]`.
      window: size and stride of the window, one integer or one per spatial axis.

    Returns:
      Maxima, `[batch, *(space // window), channels]`.
    """
    space = x.shape[1:-1]
    sizes = (window,) * len(space) if isinstance(window, int) else tuple(window)
    if len(sizes) != len(space) or not all(1 <= w <= n for w, n in zip(sizes, space)):
        raise InputError(
            f"window = {window}: must be 1..{list(space)} along the spatial axes of "
            f"{list(x.shape)}; use a smaller window or larger inputs"
        )
    counts = tuple(n // w for n, w in zip(space, sizes))
    x = x[(slice(None), *(slice(0, c * w) for c, w in zip(counts, sizes)))]
    split = [d for c, w in zip(counts, sizes) for d in (c, w)]
    return _pool(x.reshape(x.shape[0], *split, x.shape[-1]))


def _places(x: Array) -> list[Array]:
    """The elements of all windows of `[batch, count, window, count, window, ..., channels]`."""
    whole = slice(None)
    offsets = itertools.product(*(range(w) for w in x.shape[2:-1:2]))
    return [x[(whole, *(at for i in offset for at in (whole, i)))] for offset in offsets]


@jax.custom_vjp
def _pool(x: Array) -> Array:
    return functools.reduce(jnp.maximum, _places(x))


def _forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    y = _pool(x)
    return y, (x, y)


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array]:
    # Comparing with the maximum avoids the adjoint of the slices, which would pad and add them.
    x, y = saved
    inner = tuple(range(2, x.ndim - 1, 2))
    ties = functools.reduce(jnp.add, [(part == y).astype(g.dtype) for part in _places(x)])
    share = jnp.expand_dims(g / ties, inner)
    return (jnp.where(x == jnp.expand_dims(y, inner), share, jnp.zeros_like(share)),)


_pool.defvjp(_forward, _backward)
