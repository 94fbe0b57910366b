"""The parts of a local step, ours beside PyTorch's and beside the rate of the matrix product.

    python -m benchmarks.micro.parts --models leaf_cnn,resnet20 --torch TORCH_PYTHON --isa avx2

A part is one pass of a layer: forward, gradient of the input, gradient of the kernel; activations,
pooling and norms forward and back in one. Each is run by itself, for a single client, in the layout
and with the lowering that the library chooses, and by PyTorch in its own. The bound is the part's
FLOPs at the rate of a large matrix product through JAX. What XLA fuses in a whole step it cannot
fuse here, so that activations weigh more than they do there. Of networks over symbols only the
products are measured.
"""

import argparse
import functools
import json
import math
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import harness
from benchmarks.peers import nets
from fedjax_het.models import autotune
from fedjax_het.models.conv import conv_general_dilated
from fedjax_het.models.norm import GroupNorm
from fedjax_het.models.pooling import max_pool
from fedjax_het.models.product import product
from fedjax_het.runtime.compiling import compiler_options

_REPEATS = 7
# FLOPs, and elements of activations, in one measured call.
_FLOPS, _ELEMENTS = 4e8, 4e6
_SIDES = {
    "leaf_cnn": (28, 1, 62),
    "pfl_cnn": (32, 3, 10),
    "resnet20": (32, 3, 10),
    "vgg11": (32, 3, 10),
}
_SYMBOLS, _WINDOW = 80, 80
_PASSES = ("forward", "input gradient", "kernel gradient")


class Part(NamedTuple):
    """A pass of a layer.

    Attributes:
      step: "forward", "input gradient", "kernel gradient"; or the name of an activation.
      x: shape of the input, channels last; `[products, rows, k]` for products side by side.
      kernel: shape of the kernel, `[products, k, n]` for these; None for activations.
      stride: stride of a convolution.
      pad: zeros on each side of a convolution's image.
    """

    step: str
    x: tuple[int, ...]
    kernel: tuple[int, ...] | None = None
    stride: int = 1
    pad: int = 0

    @property
    def name(self) -> str:
        """For the table."""
        shape = "x".join(map(str, self.x))
        if self.kernel is None:
            return f"{self.step}, {shape}"
        kind = {2: "linear", 3: "side by side"}.get(len(self.kernel), "convolution")
        kernel = "x".join(map(str, self.kernel))
        by = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{kind} {shape} by {kernel}{by}, {self.step}"

    @property
    def flops(self) -> float:
        """2 FLOPs a multiply-add; 0 for activations."""
        if self.kernel is None:
            return 0.0
        if len(self.kernel) == 3:
            return 2.0 * self.x[1] * math.prod(self.kernel)
        places = math.prod(
            (len_ + 2 * self.pad - self.kernel[0]) // self.stride + 1 for len_ in self.x[1:-1]
        )
        return 2.0 * self.x[0] * places * math.prod(self.kernel)


def parts_of(layers: Sequence[nets.Layer], x: tuple[int, ...]) -> tuple[Counter[Part], tuple]:
    """The parts of a step of these layers, and the shape of their output.

    Args:
      layers: as in `benchmarks.peers.nets`.
      x: shape of the input, channels last.
    """
    found: Counter[Part] = Counter()
    for kind, *rest in layers:
        if kind == "conv":
            features, window, stride, padding, _ = rest
            pad = window // 2 if padding == "same" else 0
            kernel = (window, window, x[-1], features)
            found.update(Part(step, x, kernel, stride, pad) for step in _PASSES)
            side = (x[1] + 2 * pad - window) // stride + 1
            x = (x[0], side, side, features)
        elif kind == "dense":
            found.update(Part(step, x, (x[1], rest[0])) for step in _PASSES)
            x = (x[0], rest[0])
        elif kind == "unit":
            inner, after = parts_of(rest[0], x)
            found += inner + parts_of(rest[1], x)[0]
            found[Part("relu", after)] += 1
            x = after
        elif kind in ("relu", "norm", "pool"):
            step = {"relu": "relu", "norm": "group norm", "pool": "max pooling"}[kind]
            found[Part(step, x)] += 1
            x = (x[0], x[1] // 2, x[2] // 2, x[3]) if kind == "pool" else x
        elif kind in ("flatten", "mean"):
            x = (x[0], math.prod(x[1:]) if kind == "flatten" else x[-1])
    return found, x


def _products(x: tuple[int, ...], kernel: tuple[int, ...], times: int = 1) -> Counter[Part]:
    return Counter({Part(step, x, kernel): times for step in _PASSES})


def _char_lstm(batch: int) -> Counter[Part]:
    """The products of LEAF's LSTM; those of the recurrence come one position after the other."""
    units, rows = 256, batch * _WINDOW
    found = _products((batch, units), (units, _SYMBOLS))
    for inputs in (8, units):
        found += _products((rows, inputs), (inputs, 4 * units))
        recurrence = _products((batch, units), (units, 4 * units), _WINDOW)
        # The gradient of the kernel is taken at once.
        del recurrence[Part("kernel gradient", (batch, units), (units, 4 * units))]
        found += recurrence
        found[Part("kernel gradient", (rows, units), (units, 4 * units))] += 1
    return found


def _transformer(batch: int) -> Counter[Part]:
    """The products of four layers of width 64 with four heads, and of the output."""
    width, heads, rows = 64, 4, batch * _WINDOW
    found = _products((rows, width), (width, _SYMBOLS))
    for _ in range(4):
        found += _products((rows, width), (width, width), 4)
        found += _products((rows, width), (width, 2 * width))
        found += _products((rows, 2 * width), (2 * width, width))
        of_heads, each = batch * heads, width // heads
        found += _products((of_heads, _WINDOW, each), (of_heads, each, _WINDOW))
        found += _products((of_heads, _WINDOW, _WINDOW), (of_heads, _WINDOW, each))
    return found


_OVER_SYMBOLS = {"char_lstm": _char_lstm, "transformer": _transformer}
MODELS = (*_SIDES, *_OVER_SYMBOLS)


def network(model: str, batch: int) -> Counter[Part]:
    """The parts of one of `MODELS`, without the gradient of the image."""
    if model in _OVER_SYMBOLS:
        return _OVER_SYMBOLS[model](batch)
    side, channels, classes = _SIDES[model]
    found = parts_of(nets.layers(model, classes), (batch, side, side, channels))[0]
    image = (batch, side, side, channels)
    return Counter({p: n for p, n in found.items() if p[:2] != ("input gradient", image)})


def run_of(part: Part) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]:
    """One computation of a part, and its arguments."""
    x = jax.random.normal(jax.random.key(0), part.x)
    if part.kernel is None:
        ways: dict[str, Any] = {"relu": jax.nn.relu, "max pooling": max_pool, "group norm": _normed}
        forward = ways[part.step]
        return functools.partial(_both_ways, forward), (
            x,
            jnp.ones(jax.eval_shape(forward, x).shape),
        )
    kernel = jax.random.normal(jax.random.key(1), part.kernel)
    if len(part.kernel) == 2:
        run: Callable[..., jax.Array] = product
    elif len(part.kernel) == 3:
        run = jnp.matmul
    else:
        pads = [(part.pad, part.pad)] * 2
        run = functools.partial(
            conv_general_dilated,
            window_strides=(part.stride, part.stride),
            padding=pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    if part.step == "forward":
        return run, (x, kernel)
    g = jnp.ones(jax.eval_shape(run, x, kernel).shape)
    # Only what a gradient depends on is an argument, one of which changes with every repetition.
    if part.step == "input gradient":
        return lambda g, kernel: jax.vjp(lambda x: run(x, kernel), x)[1](g)[0], (g, kernel)
    return lambda g, x: jax.vjp(lambda kernel: run(x, kernel), kernel)[1](g)[0], (g, x)


def _both_ways(run: Callable[[jax.Array], jax.Array], x: jax.Array, g: jax.Array) -> jax.Array:
    """The gradient, and so much of the result that nothing of it can be left out."""
    out, back = jax.vjp(run, x)
    return back(g)[0] + 1e-30 * jnp.sum(out)


def _normed(x: jax.Array) -> jax.Array:
    norm = GroupNorm(8)
    return jnp.asarray(norm.apply(norm.init(jax.random.key(0), x), x))


def seconds(part: Part) -> float:
    """Best time of a part; several in a row, each waiting for the one before."""
    run, arguments = run_of(part)
    size = math.prod(part.x)
    count = int(max(1, min(200, _FLOPS / part.flops if part.flops else _ELEMENTS / size)))

    def several(*arguments: jax.Array) -> jax.Array:
        def again(_: Any, carry: jax.Array) -> jax.Array:
            # The smallest argument changes, which costs next to nothing.
            least = min(range(len(arguments)), key=lambda i: arguments[i].size)
            own = [a + carry if i == least else a for i, a in enumerate(arguments)]
            # Behind the barrier, XLA cannot see that most of the result is never read.
            out = jax.lax.optimization_barrier(run(*own))
            return 1e-30 * out[(0,) * out.ndim]

        return jax.lax.fori_loop(0, count, again, jnp.float32(0))

    timed = functools.partial(jax.jit(several, compiler_options=compiler_options()), *arguments)
    return min(harness.interleave({"": timed}, _REPEATS)[""].samples_s) / count


def torch_seconds(parts: Sequence[Part], python: str) -> list[float]:
    """The same in PyTorch, in a process of its own."""
    described = [
        {"pass": p.step, "x": p.x, "kernel": p.kernel, "stride": p.stride, "pad": p.pad}
        for p in parts
    ]
    command = [python, "-m", "benchmarks.micro.torch_parts"]
    done = subprocess.run(
        command, input=json.dumps(described), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)["seconds"]


def measure(models: str, batch: int, torch: str, tuned: bool) -> dict[str, Any]:
    """Runs the benchmark; see the module.

    Args:
      models: of `MODELS`, comma-separated.
      batch: samples of a step.
      torch: Python with PyTorch; "" leaves it out.
      tuned: whether lowerings are measured, in place of the table.
    """
    facts, rows = harness.machine(), []
    square, square_flops = harness.gemm()
    rate = square_flops / min(harness.interleave({"": square}, _REPEATS)[""].samples_s)
    for model in models.split(","):
        found = network(model, batch)
        with autotune.choosing(autotune.Tuner(None) if tuned else None, 1):
            ours = [seconds(part) for part in found]
        theirs = torch_seconds(list(found), torch) if torch else [math.nan] * len(found)
        rows += [
            {
                "model": model,
                "part": part.name,
                "count": count,
                "ours_s": count * own,
                "torch_s": count * other,
                "bound_s": count * part.flops / rate,
            }
            for (part, count), own, other in zip(found.items(), ours, theirs, strict=True)
        ]
    return {"machine": facts, "gemm_flop_per_s": rate, "batch": batch, "rows": rows}


def report(results: dict[str, Any]) -> str:
    """The tables as text."""
    lines = [
        harness.describe(results["machine"]),
        f"matrix product {results['gemm_flop_per_s'] / 1e9:.0f} GFLOP/s, "
        f"{results['batch']} samples",
    ]
    header = ("part", "times", "ours ms", "PyTorch ms", "PyTorch / ours", "bound ms")
    for model in dict.fromkeys(row["model"] for row in results["rows"]):
        own = [row for row in results["rows"] if row["model"] == model]
        own.sort(key=lambda row: -row["ours_s"])
        sums = {name: sum(r[name] for r in own) for name in ("ours_s", "torch_s", "bound_s")}
        table = [_line(row) for row in [*own, {"part": "all", "count": "", **sums}]]
        lines += ["", model, "", harness.table(header, table)]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> list[str]:
    times = [1e3 * row[name] for name in ("ours_s", "torch_s", "bound_s")]
    ours, theirs, bound = (f"{t:.3f}" for t in times)
    return [row["part"], str(row["count"]), ours, theirs, f"{times[1] / times[0]:.2f}", bound]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--batch", type=int, default=20, help="samples of a step")
    parser.add_argument("--torch", default="", help="a Python that has PyTorch")
    parser.add_argument("--tuned", action="store_true", help="measure the lowerings")
    harness.command(parser, measure, report)


if __name__ == "__main__":
    main()
