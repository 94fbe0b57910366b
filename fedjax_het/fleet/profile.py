"""Measured prices of a model's blocks on the current backend, beside or instead of counted ones.

profile = measure(model, batch=32)
print(format_table(cost_table(model), profile))
problem = Problem(model, data, fleet, cost_override=with_measured(cost_table(model), profile))
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.fleet.block_times import MeasuredProfile
from fedjax_het.fleet.cost import CostTable
from fedjax_het.fleet.flops import differentiable
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import Block
from fedjax_het.models.lowering import lowering


def xla_flops(fn: Callable[..., Any], *args: Any) -> float:
    """FLOPs of `fn(*args)` as XLA counts them in the compiled program.

    Convolutions are lowered to patches here, because other lowerings may contain loops, whose body
    XLA counts once, or kernels, which it does not count.

    Args:
      fn: function of arrays; compiled, not run.
      *args: pytrees of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      The number of FLOPs; 0 if the backend does not report it.
    """
    with lowering("patches"):
        # A new function, so that JAX traces it here.
        compiled = jax.jit(lambda *arguments: fn(*arguments)).lower(*args).compile()
    return float((compiled.cost_analysis() or {}).get("flops", 0.0))


def measure(
    model: BlockModel, batch: int, *, repeats: int = 10, key: jax.Array | None = None
) -> MeasuredProfile:
    """Times every block and head separately: forward pass, weight gradient, input gradient.

    Each is compiled separately, called once without timing and then `repeats` times; the result is
    the median. The forward pass is that of training, which keeps the residuals.

    Args:
      model: model to measure, with random weights and inputs.
      batch: samples per call, >= 1.
      repeats: number of timed calls, >= 1.
      key: typed PRNG key of weights and inputs; `jax.random.key(0)` if None.

    Returns:
      The measured profile.
    """
    require(
        batch >= 1 and repeats >= 1,
        f"batch = {batch}, repeats = {repeats}",
        "must be >= 1",
        "use the local batch size and about 10 repeats",
    )
    key = jax.random.key(0) if key is None else key
    variables = model.init(key)
    params, stats = variables.params, variables.stats
    shapes = (
        model.input_shapes(batch),
        *model.activation_shapes(batch),
    )
    parts = [
        (block, params["blocks"][b], stats["blocks"][b], shapes[b])
        for b, block in enumerate(model.blocks)
    ] + [
        (head, params["exits"][slot], stats["exits"][slot], shapes[b + 1])
        for b, head in enumerate(model.exits)
        for slot in (model.exit_slot(b),)
    ]
    rows = []
    for block, p, s, shape in parts:
        train = model.stats_policy == "mean" or not jax.tree.leaves(s)
        rows.append(_time_block(block, p, s, _sample(shape, key), train, key, repeats))
    columns = tuple(zip(*rows))
    return MeasuredProfile(
        model.name,
        f"{jax.default_backend()}: {jax.devices()[0].device_kind}",
        batch,
        repeats,
        tuple(part[0].name for part in parts),
        model.num_blocks,
        *columns,
    )


def _sample(shapes: PyTree, key: jax.Array) -> PyTree:
    def one(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if jnp.issubdtype(shape.dtype, jnp.inexact):
            return jax.random.normal(key, shape.shape, shape.dtype)
        return jnp.zeros(shape.shape, shape.dtype)

    return jax.tree.map(one, shapes)


def _time_block(
    block: Block, params: PyTree, stats: PyTree, x: jax.Array, train: bool, key: Any, repeats: int
) -> tuple[float, float, float, float, float]:
    """`(forward_s, weight_grad_s, input_grad_s, xla forward, xla backward)` of one block."""

    def run(p: PyTree, z: jax.Array) -> jax.Array:
        return block.apply(p, stats, z, train=train, key=key)[0]

    def weights_only(p: PyTree, z: jax.Array) -> Any:
        return jax.vjp(lambda p: run(p, z), p)

    def both(p: PyTree, z: jax.Array) -> Any:
        return jax.vjp(run, p, z)

    # The pullback is a pytree of residuals, so the backward pass can be timed separately.
    def backward(pullback: Any, g: jax.Array) -> Any:
        return pullback(g)

    def counted(make: Callable[..., Any]) -> float:
        with lowering("patches"):
            y, pullback = jax.eval_shape(lambda *arguments: make(*arguments), params, x)
        return xla_flops(backward, pullback, y)

    def timed(make: Callable[..., Any]) -> tuple[float, float, float]:
        forward = jax.jit(make).lower(params, x).compile()
        y, pullback = forward(params, x)
        g = jnp.ones_like(y)
        back = jax.jit(backward).lower(pullback, g).compile()
        return (
            _median_s(lambda: forward(params, x), repeats),
            _median_s(lambda: back(pullback, g), repeats),
            counted(make),
        )

    forward_s, weight_s, back_flops = timed(weights_only)
    input_s = 0.0
    if differentiable(x):
        _, both_s, back_flops = timed(both)
        input_s = max(both_s - weight_s, 0.0)
    return forward_s, weight_s, input_s, xla_flops(run, params, x), back_flops


def _median_s(call: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def with_measured(table: CostTable, profile: MeasuredProfile) -> CostTable:
    """The table with measured prices: its FLOPs become measured seconds times one common rate.

    The rate keeps the cost of a full step, so `Fleet.flops_per_s` keeps its meaning and only the
    ratios between blocks change.

    Args:
      table: counted prices of the model.
      profile: measured profile of the same model.

    Returns:
      A table of effective FLOPs; bytes are unchanged.

    Raises:
      InputError: if table and profile belong to different models.
    """
    L = table.num_blocks
    heads = L - 1 if table.has_exits else 0
    require(
        profile.num_blocks == L
        and profile.names[:L] == table.names
        and len(profile.names) == L + heads,
        f"profile of {profile.model!r} with blocks {profile.names}",
        f"must match the table's blocks {table.names} and {heads} exit heads",
        "measure the same model",
    )
    flops_per_s = float(table.step_flops()) / profile.step_s

    def effective(seconds: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        flops = flops_per_s * np.asarray(seconds, np.float64)
        return flops[:L], np.append(flops[L:], np.zeros(L - heads))

    forward, exit_forward = effective(profile.forward_s)
    weight, exit_weight = effective(profile.weight_grad_s)
    inputs, exit_inputs = effective(profile.input_grad_s)
    return replace(
        table,
        forward_flops=forward,
        weight_grad_flops=weight,
        input_grad_flops=inputs,
        exit_forward_flops=exit_forward,
        exit_weight_grad_flops=exit_weight,
        exit_input_grad_flops=exit_inputs,
    )


def format_table(table: CostTable, profile: MeasuredProfile | None = None) -> str:
    """The prices of each block per sample as text, one line per block.

    Args:
      table: counted prices.
      profile: measured profile, which adds to each line XLA's FLOPs per sample (forward and
        backward), the measured milliseconds per batch of the three passes and the resulting FLOP/s.

    Returns:
      Lines of aligned columns; the last line holds the totals of a full step.
    """
    L = table.num_blocks
    head = ["block", "params", "bytes", "activation B", "stored B", "forward", "weight grad"]
    head += ["input grad"]
    rows = [
        [
            name,
            *(
                f"{int(column[b]):,}"
                for column in (
                    table.param_count,
                    table.param_bytes + table.stats_bytes,
                    table.activation_bytes,
                    table.stored_bytes,
                    table.forward_flops,
                    table.weight_grad_flops,
                    table.input_grad_flops,
                )
            ),
        ]
        for b, name in enumerate(table.names)
    ]
    foot = f"full step {float(table.step_flops()):,.0f} FLOPs/sample"
    if profile is not None:
        counted = table.forward_flops + table.weight_grad_flops + table.input_grad_flops
        shares = with_measured(table, profile)
        measured = shares.forward_flops + shares.weight_grad_flops + shares.input_grad_flops
        head += ["XLA forward", "XLA backward", "fwd ms", "weight ms", "input ms", "GFLOP/s"]
        head += ["counted %", "measured %"]
        for b, row in enumerate(rows):
            passes = (profile.forward_s[b], profile.weight_grad_s[b], profile.input_grad_s[b])
            row += [
                f"{profile.xla_forward_flops[b] / profile.batch:,.0f}",
                f"{profile.xla_backward_flops[b] / profile.batch:,.0f}",
                *(f"{1e3 * seconds:.3f}" for seconds in passes),
                f"{counted[b] * profile.batch / sum(passes) / 1e9:.2f}",
                f"{100 * counted[b] / counted.sum():.1f}",
                f"{100 * measured[b] / measured.sum():.1f}",
            ]
        foot += (
            f"; {1e3 * profile.step_s:.3f} ms per batch of {profile.batch} on {profile.backend}, "
            f"{float(table.step_flops()) * profile.batch / profile.step_s / 1e9:.2f} GFLOP/s"
        )
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in [head, *rows[:L]]
    ]
    return "\n".join([*lines, foot])
