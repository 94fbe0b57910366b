"""Winograd's F(2x2, 3x3) against the lowerings in use: fewer multiplications, more traffic.

    python -m benchmarks.micro.winograd

A 3x3 convolution of stride 1 on output tiles of 2x2 needs 16 multiplications per channel pair; the
direct sum needs 36. Like the other lowerings it consists of slices, additions and 16 matrix
products, so it runs inside one compiled program under `vmap`; its gradients are those of the
transforms. Prints processor time, because other work on the machine affects it only little.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import harness
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.runtime.compiling import compiler_options

_REPEATS = 5
# (name, batch, height and width, channels in, channels out): the 3x3 layers of works (a) and (d).
CASES = (
    ("pfl CNN conv2", 10, 28, 32, 64),
    ("ResNet-20 group 1", 20, 32, 16, 16),
    ("ResNet-20 group 2", 20, 16, 32, 32),
    ("ResNet-20 group 3", 20, 8, 64, 64),
)


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """SAME convolution of stride 1 by F(2x2, 3x3) (Lavin & Gray, 2016, section 4.1).

    Args:
      x: `[batch, height, width, channels in]`, height and width even.
      kernel: `[3, 3, channels in, channels out]`.

    Returns:
      `[batch, height, width, channels out]`.
    """
    batch, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def along(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> list[jax.Array]:
        """B^T d of four samples of a tile along one axis."""
        return [a - c, b + c, c - b, b - d]

    def rows(j: int) -> list[jax.Array]:
        column = x[:, :, j : j + width - 1 : 2]
        return along(*(column[:, i : i + height - 1 : 2] for i in range(4)))

    columns = [rows(j) for j in range(4)]
    tiles = [along(*(column[i] for column in columns)) for i in range(4)]
    inputs = jnp.stack([tiles[i][j].reshape(-1, x.shape[-1]) for i in range(4) for j in range(4)])

    def expanded(k: jax.Array) -> list[jax.Array]:
        """G g along the first axis."""
        return [k[0], (k[0] + k[1] + k[2]) / 2, (k[0] - k[1] + k[2]) / 2, k[2]]

    weights = jnp.stack([b for a in expanded(kernel) for b in expanded(a)])
    products = jax.lax.dot_general(inputs, weights, (((2,), (1,)), ((0,), (0,))))
    m = products.reshape(4, 4, batch, height // 2, width // 2, -1)

    def folded(parts: Any) -> list[jax.Array]:
        """A^T m along the first axis."""
        return [parts[0] + parts[1] + parts[2], parts[1] - parts[2] - parts[3]]

    tile = [folded(part) for part in folded(m)]
    y = jnp.stack([jnp.stack(row, axis=3) for row in tile], axis=2)
    return y.reshape(batch, height, width, -1)


def chosen(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The lowering that the library takes."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def step(
    convolve: Callable[..., jax.Array], kernel: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Forward pass and both gradients."""
    return jax.grad(lambda k, x: jnp.sum(jnp.square(convolve(x, k))), (0, 1))(kernel, x)


def processor_s(run: Callable[[], Any]) -> float:
    """Seconds of processor time of a call, the best of some."""
    jax.block_until_ready(run())
    best = float("inf")
    for _ in range(_REPEATS):
        began = time.process_time()
        jax.block_until_ready(run())
        best = min(best, time.process_time() - began)
    return best


def measure() -> list[dict[str, Any]]:
    """A row per case: processor time of both, and the error of a forward pass."""
    rows = []
    for name, batch, side, inputs, outputs in CASES:
        keys = jax.random.split(jax.random.key(0))
        x = jax.random.normal(keys[0], (batch, side, side, inputs))
        kernel = 0.1 * jax.random.normal(keys[1], (3, 3, inputs, outputs))
        seconds = {}
        for how in (chosen, winograd):
            run = functools.partial(
                jax.jit(functools.partial(step, how), compiler_options=compiler_options()),
                kernel,
                x,
            )
            seconds[how.__name__] = processor_s(run)
        ours, theirs = chosen(x, kernel), winograd(x, kernel)
        error = float(jnp.max(jnp.abs(ours - theirs)) / jnp.max(jnp.abs(ours)))
        rows.append({"name": name, **seconds, "error": error})
    return rows


def main() -> None:
    """Prints the table."""
    rows = measure()
    print(harness.describe(harness.machine()))
    header = ("3x3, forward and backward", "chosen ms", "winograd ms", "winograd / chosen", "error")
    cells = [
        [
            row["name"],
            f"{1e3 * row['chosen']:.2f}",
            f"{1e3 * row['winograd']:.2f}",
            f"{row['winograd'] / row['chosen']:.2f}",
            f"{row['error']:.0e}",
        ]
        for row in rows
    ]
    print(harness.table(header, cells))


if __name__ == "__main__":
    main()
