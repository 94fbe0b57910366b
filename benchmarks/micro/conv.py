"""Convolutions per client: every lowering, with one client at a time and with all together.

Prints GFLOP/s of forward and backward pass over clients with their own kernels, the rate of a
matrix product in the same run, and the lowering that the table would choose. With 16 clients on two
cores it takes half a minute, most of it for `lax` under `vmap`.

    python -m benchmarks.micro.conv
    python -m benchmarks.micro.conv --clients 128 --dtypes float32,bfloat16     # on a GPU
"""

import argparse
import datetime
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp

from benchmarks import harness, isa
from fedjax_het.models import onednn
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.lowering import Convolution, Lowering, choose, device_fits, lowering
from fedjax_het.runtime.compiling import compiler_options

_REPEATS = 5
_ENOUGH_S = 2.0


class Case(NamedTuple):
    """A SAME convolution; the first layer of a network needs no input gradient."""

    name: str
    side: int
    kernel: tuple[int, int, int, int]
    first_layer: bool
    stride: int = 1

    def flops(self, samples: int) -> int:
        """FLOPs of one forward and backward pass, 1 MAC = 2 FLOPs."""
        passes = 2 if self.first_layer else 3
        out = -(-self.side // self.stride)
        return passes * 2 * samples * out**2 * math.prod(self.kernel)

    def convolution(self, batch: int, dtype: str) -> Convolution:
        """The properties by which the table chooses."""
        lhs = (batch, self.side, self.side, self.kernel[2])
        strides = (self.stride, self.stride)
        padding = jax.lax.padtype_to_pads(lhs[1:3], self.kernel[:2], strides, "SAME")
        implicit = device_fits()
        return Convolution(dtype, lhs, self.kernel, strides, tuple(padding), implicit)


CASES = (
    Case("LEAF conv1, 5x5 1->32, 28x28", 28, (5, 5, 1, 32), True),
    Case("LEAF conv2, 5x5 32->64, 14x14", 14, (5, 5, 32, 64), False),
    Case("ResNet-20, 3x3 16->16, 32x32", 32, (3, 3, 16, 16), False),
    Case("ResNet-20, 3x3 64->64, 8x8", 8, (3, 3, 64, 64), False),
    Case("ResNet-20, 3x3 32->64, 16x16, stride 2", 16, (3, 3, 32, 64), False, 2),
    Case("VGG-11, 3x3 256->512, 4x4", 4, (3, 3, 256, 512), False),
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


def matmul_rate(dtype: str, size: int) -> float:
    """GFLOP/s of a square matrix product."""
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    return 2 * size**3 / seconds(jax.jit(lambda a: a @ a), a) / 1e9


def conv_rate(
    case: Case, how: Lowering, side_by_side: bool, clients: int, batch: int, dtype: str
) -> float | None:
    """GFLOP/s of one lowering.

    Args:
      case: the convolution.
      how: the lowering.
      side_by_side: all clients under `vmap`, or one at a time under `lax.map`.
      clients: each with a kernel of its own.
      batch: samples of each.
      dtype: of the operands.

    Returns:
      The rate, forward and backward pass; None if this device does not have the lowering.
    """
    if how == "implicit" and not device_fits():
        return None
    alone = not side_by_side and case.stride == 1 and dtype == "float32"
    if how == "onednn" and not (alone and onednn.available()):
        return None
    shape = (clients, batch, case.side, case.side, case.kernel[2])
    x = jax.random.normal(jax.random.key(0), shape).astype(dtype)
    kernel = (0.1 * jax.random.normal(jax.random.key(1), (clients, *case.kernel))).astype(dtype)
    strides = (case.stride, case.stride)

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        y = conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    step = jax.grad(loss, 0 if case.first_layer else (0, 1))
    run = jax.vmap(step) if side_by_side else functools.partial(one_by_one, step)
    jitted = jax.jit(run, compiler_options=compiler_options())
    with lowering(how):
        return case.flops(clients * batch) / seconds(jitted, kernel, x) / 1e9


def one_by_one(step: Callable[..., Any], *args: jax.Array) -> Any:
    """`step` for one client after the other."""
    return jax.lax.map(lambda client: step(*client), args)


def report(clients: int, batch: int, dtypes: list[str], size: int = 1024) -> Iterator[str]:
    """Lines of the table, as they are measured."""
    yield f"{datetime.date.today()}, {harness.describe(harness.machine())}"
    yield f"{clients} clients x {batch} samples, forward and backward, GFLOP/s"
    for case in CASES:
        for dtype in dtypes:
            chosen = choose(jax.default_backend(), case.convolution(batch, dtype))
            yield f"\n{case.name}, {dtype}; matrix product {matmul_rate(dtype, size):.0f}"
            yield f"  {'lowering':12s}{'one at a time':>15s}{'all at once':>15s}"
            for how in get_args(Lowering):
                rates = [
                    conv_rate(case, how, side_by_side, clients, batch, dtype)
                    for side_by_side in (False, True)
                ]
                cells = ["-" if rate is None else f"{rate:.1f}" for rate in rates]
                mark = "  <- chosen" if how == chosen else ""
                yield f"  {how:12s}{cells[0]:>15s}{cells[1]:>15s}{mark}"


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=16, help="each with kernels of its own")
    parser.add_argument("--batch", type=int, default=20, help="samples of each client")
    parser.add_argument("--dtypes", default="float32", help="e.g. float32,bfloat16")
    arguments = isa.parse(parser)
    size = 1024 if jax.default_backend() == "cpu" else 8192
    for line in report(arguments.clients, arguments.batch, arguments.dtypes.split(","), size):
        print(line, flush=True)


if __name__ == "__main__":
    main()
