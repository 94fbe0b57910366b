"""Max pooling over disjoint windows, with forward and backward passes that a CPU vectorises."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import InputError

Array = jax.Array


def max_pool(x: Array, window: int | tuple[int, ...] = 2) -> Array:
    """Maximum over disjoint windows; incomplete windows at the far edge are dropped.

    It computes elementwise maxima of a reshaped array, because the gradient of a windowed reduction
    is ten times slower on a CPU. The gradient goes to the first of equal maxima. The function has
    no forward-mode derivative.

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
    # The place of the maximum is kept, and not compared for in the backward pass: a compiler that
    # computes `x` again there may round it in another way, so that no element equals the maximum.
    first, *others = _places(x)
    kind = jnp.uint8 if len(others) < 256 else jnp.int32
    best, place = first, jnp.zeros(first.shape, kind)
    for i, other in enumerate(others, start=1):
        better = other > best
        place = jnp.where(better, jnp.asarray(i, kind), place)
        best = jnp.where(better, other, best)
    return _pool(x), (place, jnp.zeros((0, *x.shape[2:-1:2]), kind))


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array]:
    # Comparing with the places avoids the adjoint of the slices, which would pad and add them.
    place, window = saved[0], saved[1].shape[1:]
    inner = tuple(range(2, 2 * len(window) + 1, 2))
    numbers = jnp.arange(math.prod(window), dtype=place.dtype)
    numbers = numbers.reshape(1, *(n for w in window for n in (1, w)), 1)
    place, g = jnp.expand_dims(place, inner), jnp.expand_dims(g, inner)
    shape = jnp.broadcast_shapes(place.shape, numbers.shape)
    chosen = jnp.broadcast_to(place, shape) == jnp.broadcast_to(numbers, shape)
    g = jnp.broadcast_to(g, shape)
    return (jnp.where(chosen, g, jnp.zeros_like(g)),)


_pool.defvjp(_forward, _backward)
