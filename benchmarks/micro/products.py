"""Matrix products of training steps in a loop, with XLA's default library for CPUs and with Eigen.

fedjax_het compiles its programs with `compiling.compiler_options`, which select Eigen for products.
This benchmark measures the gain, on one core (`taskset -c 0`) and on all.

    python -m benchmarks.micro.products
"""

import argparse
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import harness, isa
from fedjax_het.models.product import product
from fedjax_het.runtime.compiling import compiler_options

# Name, rows, contracted, columns.
CASES = (
    ("LEAF conv1", 15680, 25, 32),
    ("LEAF linear, 20 samples", 20, 3136, 512),
    ("ResNet-20, 16 channels, 10 samples", 10880, 48, 48),
    ("ResNet-20, 32 channels, 10 samples", 2880, 96, 96),
    ("2NN of 200 units, 10 samples", 10, 784, 200),
)
_LOOP_FLOPS = 1e9

Step = Callable[[jax.Array, jax.Array], jax.Array]


def forward(x: jax.Array, weights: jax.Array) -> jax.Array:
    """The product; `[rows, k] x [k, n]`."""
    return product(x, weights)


def backward(g: jax.Array, weights: jax.Array) -> jax.Array:
    """The gradient of its left factor, `[rows, n] x [k, n]^T`, as XLA is given it plainly."""
    return g @ weights.T


def backward_as_written(g: jax.Array, weights: jax.Array) -> jax.Array:
    """The same as `models.product` writes it."""
    x = jnp.zeros((g.shape[0], weights.shape[0]), g.dtype)
    return jax.vjp(lambda x: product(x, weights), x)[1](g)[0]


def loop(step: Step, count: int) -> Step:
    """The step so many times, as in training; none of them can be left out."""

    def run(x: jax.Array, weights: jax.Array) -> jax.Array:
        def body(_: jax.Array, y: jax.Array) -> jax.Array:
            # The smaller factor changes, which costs next to nothing.
            if x.size < weights.size:
                return step(x + 0.0 * y[0, 0], weights)
            return step(x, weights + 0.0 * y[0, 0])

        return jax.lax.fori_loop(0, count, body, jnp.zeros(jax.eval_shape(step, x, weights).shape))

    return run


def wait(program: Callable[..., jax.Array], *arguments: jax.Array) -> None:
    """Runs it to the end."""
    jax.block_until_ready(program(*arguments))


def measure(repeats: int) -> list[list[str]]:
    """Rows of the table: GFLOP/s, median and range of alternating repeats."""
    rows = []
    for name, m, k, n in CASES:
        count = max(1, int(_LOOP_FLOPS / (2 * m * k * n)))
        weights = jnp.ones((k, n))
        for label, step, width in (
            ("forward", forward, k),
            ("input gradient, g w^T", backward, n),
            ("input gradient, models.product", backward_as_written, n),
        ):
            run, arguments = loop(step, count), (jnp.ones((m, width)), weights)
            programs = {
                library: jax.jit(run).lower(*arguments).compile(compiler_options=options)
                for library, options in (("default", {}), ("eigen", compiler_options()))
            }
            timed = harness.interleave(
                {
                    library: functools.partial(wait, program, *arguments)
                    for library, program in programs.items()
                },
                repeats,
            )
            flops = 2 * m * k * n * count
            rates = [
                harness.spread([flops / s / 1e9 for s in timed[library].samples_s])
                for library in programs
            ]
            rows.append([name, label, *map(str, rates)])
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    arguments = isa.parse(parser)
    print(harness.describe(harness.machine()))
    header = ("product", "which", "XLA's choice, GFLOP/s", "Eigen, GFLOP/s")
    print(harness.table(header, measure(arguments.repeats)))


if __name__ == "__main__":
    main()
