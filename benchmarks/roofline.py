"""Lower bounds of the time of a cohort's training on this machine, and the measured time.

    python -m benchmarks.roofline --model leaf_cnn --clients 16 --steps 5 --batch 20
    python -m benchmarks.roofline --model resnet20 --clients 4 --json roofline.json

There are three lower bounds ("floors") of the time of a round, from rates measured in the same run:

* compute: the FLOPs of the model's cost table at the rate of a large matrix product;
* products: the model's own products and convolutions, each at the rate that its shape reaches;
* memory: the bytes that cannot stay in a cache, at the rate of a long vector sum: per step the
  batch and all passes over the parameters, per client the update and the merge.

The efficiency is the floor over the measured time. The rest of the time is the work between the
products (slices, activations, normalisation, pooling), dispatch, and planning on the host.
"""

import argparse
import functools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.micro.training import INPUT_SHAPES, Trainer, Work, make_work
from fedjax_het.algorithms.fedavg import fedavg
from fedjax_het.contract.algorithm import Variables
from fedjax_het.data.batches import Batch
from fedjax_het.fleet.flops import contraction_flops
from fedjax_het.models.base import BlockModel
from fedjax_het.objectives import classification
from fedjax_het.runtime.compiling import compiler_options

# A vector of this many float32, 64 MB, does not stay in a cache.
_STREAM = 2**24
_PRODUCT_REPEATS = 7
_FLOAT_BYTES = 4


# What says which product is meant, of the parameters of its equation.
_MEANT = {
    "dot_general": ("dimension_numbers",),
    "conv_general_dilated": (
        "window_strides",
        "padding",
        "lhs_dilation",
        "rhs_dilation",
        "dimension_numbers",
        "feature_group_count",
        "batch_group_count",
    ),
}


class Product(NamedTuple):
    """A matrix product or a convolution of a step, as it could be run on its own."""

    name: str
    left: tuple[int, ...]
    right: tuple[int, ...]
    parameters: tuple[Any, ...]

    def run(self, left: jax.Array, right: jax.Array) -> jax.Array:
        """The product of two arrays of these shapes."""
        return getattr(jax.lax, self.name)(
            left, right, **dict(zip(_MEANT[self.name], self.parameters))
        )

    @property
    def flops(self) -> float:
        """2 FLOPs a multiply-add."""
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (self.left, self.right))
        return float(contraction_flops(self.run, *shapes))

    @property
    def bytes(self) -> int:
        """Bytes of the factors and of the result."""
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (self.left, self.right)]
        result = jax.eval_shape(self.run, *shapes)
        return _FLOAT_BYTES * sum(a.size for a in (*shapes, result))


def products(model: BlockModel, batch: int) -> Counter[Product]:
    """The products of one client's step: forward and backward pass of the whole model."""
    x = jax.ShapeDtypeStruct((batch, *model.input_shape), model.input_dtype)
    y = jax.ShapeDtypeStruct((batch,), jnp.int32)

    def loss(params: Any, stats: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits, _ = model.apply(Variables(params, stats), x, train=True, key=jax.random.key(0))
        return classification().mean(logits, Batch(x, y, jnp.ones(y.shape, jnp.float32), y))

    traced = jax.make_jaxpr(jax.grad(loss))(*model.shapes, x, y)
    return Counter(_products(traced.jaxpr))


def _products(jaxpr: Any) -> Iterator[Product]:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _MEANT:
            left, right = (v.aval.shape for v in equation.invars)
            parameters = tuple(equation.params[key] for key in _MEANT[name])
            yield Product(name, left, right, parameters)
        # A batch that runs in parts does so in a scan.
        times = equation.params["length"] if name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from times * list(_products(inner))


class Demand(NamedTuple):
    """What a round needs, whatever runs it.

    Attributes:
      flops: of the model's cost table.
      input_bytes: batches, read once.
      parameter_bytes: parameters per step: read forward, read backward, and written; a step's
        gradient is used up where it arises.
      merge_bytes: per client the start read, the result read, and the sums read and written.
    """

    flops: float
    input_bytes: float
    parameter_bytes: float
    merge_bytes: float

    @property
    def bytes(self) -> float:
        """All of them."""
        return self.input_bytes + self.parameter_bytes + self.merge_bytes


def demand(work: Work) -> Demand:
    """Of one round of `work`."""
    cost = work.problem.cost
    parameters = float(np.sum(cost.param_bytes))
    samples = work.samples(work.clients, work.steps)
    one = math.prod(work.problem.data.input_shape) * work.problem.data.x.dtype.itemsize
    return Demand(
        flops=float(cost.step_flops()) * samples,
        input_bytes=float(samples * one),
        parameter_bytes=3.0 * parameters * work.clients * work.steps,
        merge_bytes=4.0 * parameters * work.clients,
    )


def stream() -> tuple[harness.Run, float]:
    """A sum of two vectors that fit into no cache, and the bytes that it moves."""
    a = jnp.ones(_STREAM, jnp.float32)
    add = jax.jit(lambda a, b: a + 2.0 * b)
    return lambda: add(a, a), 2.0 * _FLOAT_BYTES * _STREAM


def product_seconds(product: Product) -> float:
    """Best time of a product on its own, its operands as they would lie in a cache."""
    left, right = jnp.ones(product.left), jnp.ones(product.right)
    # Several in a row, each waiting for the one before: a single one may be shorter than a call.
    count = max(1, min(100, int(2e8 / product.flops)))

    def several(left: jax.Array, right: jax.Array) -> jax.Array:
        def again(_: jax.Array, carry: jax.Array) -> jax.Array:
            # The smaller factor changes, which costs next to nothing.
            changed = (left + carry, right) if left.size < right.size else (left, right + carry)
            return carry + 0.0 * jnp.ravel(product.run(*changed))[0]

        return jax.lax.fori_loop(0, count, again, jnp.float32(0))

    run = functools.partial(jax.jit(several, compiler_options=compiler_options()), left, right)
    return min(harness.interleave({"": run}, _PRODUCT_REPEATS)[""].samples_s) / count


def measure(
    model: str = "leaf_cnn", clients: int = 16, steps: int = 5, batch: int = 20, repeats: int = 5
) -> dict[str, Any]:
    """Runs the report; see the module.

    Args:
      model: a key of `INPUT_SHAPES`.
      clients: in the cohort.
      steps: local steps per client.
      batch: samples per step.
      repeats: rounds.
    """
    facts = harness.machine()
    work = make_work(model, clients, steps, batch)
    training: dict[str, Any] = {
        "learning_rate": 0.01,
        "batch_size": batch,
        "local_steps": steps,
    }
    engine = Trainer(fedavg(work.problem, **training), work)
    product, product_flops = harness.gemm()
    vector, vector_bytes = stream()
    runs: dict[str, harness.Run] = {
        "product": product,
        "vector": vector,
        "round": functools.partial(engine, clients, steps),
    }
    times = harness.interleave(runs, repeats)
    needs = demand(work)
    found = products(work.problem.model, batch)
    rows: list[dict[str, Any]] = [
        {
            "left": list(one.left),
            "right": list(one.right),
            "count": count,
            "gflop": one.flops * count / 1e9,
            "seconds": product_seconds(one) * count,
        }
        for one, count in found.items()
    ]
    rate = product_flops / min(times["product"].samples_s)
    bandwidth = vector_bytes / min(times["vector"].samples_s)
    floors = {
        "compute": needs.flops / rate,
        "products": clients * steps * sum(row["seconds"] for row in rows),
        "memory": needs.bytes / bandwidth,
    }
    best = min(times["round"].samples_s)
    return {
        "machine": facts,
        "model": model,
        "clients": clients,
        "steps": steps,
        "batch": batch,
        "demand": needs._asdict(),
        "product_flops": sum(row["gflop"] for row in rows) * 1e9 * clients * steps,
        "gemm_flop_per_s": rate,
        "stream_byte_per_s": bandwidth,
        "round_s": harness.spread(times["round"].samples_s)._asdict(),
        "floors_s": floors,
        "stands_at": {name: floor / best for name, floor in floors.items()},
        "products": sorted(rows, key=lambda row: -row["seconds"]),
    }


def report(results: dict[str, Any]) -> str:
    """The report as text."""
    needs, floors = results["demand"], results["floors_s"]
    header = ("floor", "amount", "rate", "s a round", "% of the time")
    gflop = f"{needs['flops'] / 1e9:.1f} GFLOP"
    own = f"{results['product_flops'] / 1e9:.1f} GFLOP"
    moved = sum(value for name, value in needs.items() if name.endswith("bytes")) / 1e6
    amounts = {
        "compute": (gflop, f"{results['gemm_flop_per_s'] / 1e9:.0f} GFLOP/s"),
        "products": (own, f"{results['product_flops'] / floors['products'] / 1e9:.0f} GFLOP/s"),
        "memory": (f"{moved:.0f} MB", f"{results['stream_byte_per_s'] / 1e9:.1f} GB/s"),
    }
    rows = [
        [name, *amounts[name], f"{floor:.3f}", f"{100 * results['stands_at'][name]:.0f}"]
        for name, floor in floors.items()
    ]
    measured = harness.Spread(*results["round_s"].values())
    reached = f"{needs['flops'] / measured.low / 1e9:.0f} GFLOP/s"
    rows.append(["measured", "", reached, str(measured), "100"])
    parts = ("product", "times", "% of FLOPs", "GFLOP/s")
    total = sum(row["gflop"] for row in results["products"])
    listed = [
        [
            f"{row['left']} x {row['right']}",
            f"{row['count']}",
            f"{100 * row['gflop'] / total:.1f}",
            f"{row['gflop'] / row['seconds']:.0f}",
        ]
        for row in results["products"]
    ]
    title = "{model}, {clients} clients x {steps} steps x {batch} samples".format(**results)
    return "\n".join(
        [
            harness.describe(results["machine"]),
            title,
            "",
            harness.table(header, rows),
            "",
            harness.table(parts, listed),
        ]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="leaf_cnn", choices=sorted(INPUT_SHAPES))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    harness.command(parser, measure, report)


if __name__ == "__main__":
    main()
