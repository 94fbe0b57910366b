"""Convolutions per client, side by side: every lowering, one client at a time and all at once.

Prints GFLOP/s of forward and backward pass over 16 clients with their own kernels and 20 samples
each, next to what the machine's matrix product reaches in the same run. Half a minute on two cores;
most of it is `lax` under `vmap`.

    python -m benchmarks.micro.conv
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from fedjax_het.models.conv import Lowering, choose, conv_general_dilated, lowering

CLIENTS = 16
BATCH = 20
_REPEATS = 5
_ENOUGH_S = 2.0


class Case(NamedTuple):
    """A stride-1 SAME convolution; the first layer of a network needs no input gradient."""

    name: str
    side: int
    kernel: tuple[int, int, int, int]
    first_layer: bool

    @property
    def flops(self) -> int:
        """FLOPs of one forward and backward pass of all clients, 1 MAC = 2 FLOPs."""
        passes = 2 if self.first_layer else 3
        return passes * 2 * CLIENTS * BATCH * self.side**2 * math.prod(self.kernel)


CASES = (
    Case("LEAF conv1, 5x5 1->32, 28x28", 28, (5, 5, 1, 32), True),
    Case("LEAF conv2, 5x5 32->64, 14x14", 14, (5, 5, 32, 64), False),
    Case("ResNet-20, 3x3 16->16, 32x32", 32, (3, 3, 16, 16), False),
)


def seconds(run: Callable[..., Any], *args: Any) -> float:
    """Best wall time of a compiled function: of five calls, or of as many as fit into 2 s."""
    jax.block_until_ready(run(*args))
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _ENOUGH_S:
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_rate(size: int = 1024) -> float:
    """GFLOP/s of a square float32 matrix product."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    return 2 * size**3 / seconds(jax.jit(lambda a: a @ a), a) / 1e9


def conv_rate(case: Case, how: Lowering, side_by_side: bool) -> float:
    """GFLOP/s of one lowering.

    Args:
      case: the convolution.
      how: the lowering.
      side_by_side: all clients under `vmap`, or one at a time under `lax.map`.

    Returns:
      The rate, forward and backward pass.
    """
    x = jax.random.normal(jax.random.key(0), (CLIENTS, BATCH, case.side, case.side, case.kernel[2]))
    kernel = 0.1 * jax.random.normal(jax.random.key(1), (CLIENTS, *case.kernel))

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        y = conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(jnp.square(y))

    step = jax.grad(loss, 0 if case.first_layer else (0, 1))
    run = jax.vmap(step) if side_by_side else functools.partial(one_by_one, step)
    with lowering(how):
        return case.flops / seconds(jax.jit(run), kernel, x) / 1e9


def one_by_one(step: Callable[..., Any], *args: jax.Array) -> Any:
    """`step` for one client after the other."""
    return jax.lax.map(lambda client: step(*client), args)


def report() -> Iterator[str]:
    """Lines of the table, as they are measured."""
    backend = jax.default_backend()
    yield f"{backend}, {CLIENTS} clients x {BATCH} samples, float32, forward and backward, GFLOP/s"
    for case in CASES:
        extra_rows = (case.side + case.kernel[0] - 1) / case.side - 1
        chosen = choose(backend, jnp.float32, case.kernel, extra_rows)
        yield f"\n{case.name}; matrix product {matmul_rate():.0f}"
        yield f"  {'lowering':12s}{'one at a time':>15s}{'all at once':>15s}"
        for how in get_args(Lowering):
            rates = [conv_rate(case, how, side_by_side) for side_by_side in (False, True)]
            mark = "  <- chosen" if how == chosen else ""
            yield f"  {how:12s}{rates[0]:15.1f}{rates[1]:15.1f}{mark}"


def main() -> None:
    """Prints the report."""
    for line in report():
        print(line, flush=True)


if __name__ == "__main__":
    main()
