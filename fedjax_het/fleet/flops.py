"""Counts of FLOPs of a function from its jaxpr: contractions only, 1 multiply-add = 2 FLOPs.

Papers count contractions (`dot_general`, `conv_general_dilated`), and they take most of the time.
Element-wise work does not count, so the numbers are exact integers that can be compared with a
table. Nothing is compiled or run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn

from fedjax_het.common.errors import InputError
from fedjax_het.common.jaxprs import inner_jaxprs
from fedjax_het.common.types import PyTree
from fedjax_het.models.block import Block
from fedjax_het.models.lowering import lowering

# Primitives whose work does not appear in the jaxpr.
_OPAQUE = {
    "ffi_call",
    "io_callback",
    "pallas_call",
    "pure_callback",
    "ragged_dot",
    "ragged_dot_general",
}


def contraction_flops(fn: Callable[..., Any], *args: Any) -> int:
    """FLOPs of the contractions in `fn(*args)`.

    A scan counts as its body times its length, a conditional as its most expensive branch. Zeros
    that the input gradient of a strided convolution inserts do not count; zeros of padding do. A
    convolution thus has the usual `2 H_out W_out C_in C_out K^2` FLOPs, and with SAME padding so
    has each gradient.

    Args:
      fn: function of arrays.
      *args: pytrees of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      The number of FLOPs, an exact integer.

    Raises:
      InputError: if a `while` loop, whose trip count is unknown, contains a contraction, or if `fn`
        calls something without a jaxpr (a Pallas kernel, a callback).
    """
    return jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def jaxpr_flops(jaxpr: Jaxpr) -> int:
    """`contraction_flops` of a function that is already traced."""
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _conv(equation)
    if name in _OPAQUE:
        raise InputError(
            f"primitive {name!r}: its FLOPs cannot be counted; price the model with a lowering "
            "made of dot_general and conv_general_dilated, or use a measured profile"
        )
    inner = [jaxpr_flops(jaxpr) for jaxpr in inner_jaxprs(equation)]
    if name == "while" and any(inner):
        raise InputError(
            "contraction inside a while loop: the number of iterations must be known to price it; "
            "use lax.scan or a fori_loop with constant bounds"
        )
    if name == "cond":
        return max(inner)
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
    return 2 * math.prod(out) * math.prod(lhs[d] for d in contracted)


def _conv(equation: JaxprEqn) -> int:
    params = equation.params
    numbers = params["dimension_numbers"]
    rhs, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
    _, rhs_in, *rhs_spatial = numbers.rhs_spec
    out_batch, out_features, *out_spatial = numbers.out_spec
    pairs = 1
    for axis, (out_dim, rhs_dim) in enumerate(zip(out_spatial, rhs_spatial)):
        pairs *= _tap_pairs(
            out[out_dim],
            rhs[rhs_dim],
            params["window_strides"][axis],
            params["padding"][axis][0],
            params["lhs_dilation"][axis],
            params["rhs_dilation"][axis],
        )
    # Groups need no factor: rhs_in counts the input channels of one group, out_batch of one batch.
    return 2 * out[out_batch] * rhs[rhs_in] * out[out_features] * pairs


def _tap_pairs(
    out_size: int, window: int, stride: int, pad: int, lhs_dilation: int, rhs_dilation: int
) -> int:
    """Number of (output, tap) pairs along one axis that read no zero of `lhs_dilation`."""
    if lhs_dilation == 1:
        return out_size * window
    return sum(
        (o * stride + tap * rhs_dilation - pad) % lhs_dilation == 0
        for o in range(out_size)
        for tap in range(window)
    )


@dataclass(frozen=True)
class BlockPrice:
    """Prices per sample of one block or head; the columns of `cost.CostTable`."""

    forward_flops: int = 0
    weight_grad_flops: int = 0
    input_grad_flops: int = 0
    param_count: int = 0
    param_bytes: int = 0
    stored_bytes: int = 0


def price_block(
    block: Block, params: PyTree, stats: PyTree, x: PyTree, live: bool, key: Any
) -> BlockPrice:
    """Traces a block's forward and backward pass and counts their prices.

    The prices do not depend on the backend of the simulation. FLOPs are those of the convolution as
    a matrix product, in which each gradient costs as much as the forward pass. Stored bytes are
    those of a direct convolution, which keeps its input once.

    Args:
      block: block to price.
      params: shapes of its parameters.
      stats: shapes of its running statistics.
      x: shape of its input, with a batch axis of 1; a pytree of shapes in the first block.
      live: whether training updates running statistics; False if it uses them unchanged.
      key: shape of a typed PRNG key.

    Returns:
      The price of one sample.
    """
    train = live or not jax.tree.leaves(stats)

    def run(p: PyTree, z: Any, s: PyTree, k: Any) -> Any:
        return block.apply(p, s, z, train=train, key=k)[0]

    def weight_grad(p: PyTree, z: Any, s: PyTree, k: Any) -> Any:
        return jax.vjp(lambda p: run(p, z, s, k), p)

    def both_grads(p: PyTree, z: Any, s: PyTree, k: Any) -> Any:
        return jax.vjp(lambda p, z: run(p, z, s, k), p, z)

    def backward_flops(forward_and_pullback: Callable[..., Any]) -> int:
        def step(g: Any, *args: Any) -> Any:
            y, pullback = forward_and_pullback(*args)
            return y, pullback(g)

        return contraction_flops(step, y, *args) - forward

    def kept_bytes(batch: int) -> int:
        z = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), x)
        with lowering("lax"):
            # A pullback is a pytree of the values that it needs from the forward pass.
            return tree_bytes(jax.eval_shape(lambda *a: grads(*a)[1], params, z, stats, key))

    grads = both_grads if differentiable(x) else weight_grad
    args = (params, x, stats, key)
    with lowering("patches"):
        jaxpr, y = jax.make_jaxpr(run, return_shape=True)(*args)
        forward = jaxpr_flops(jaxpr.jaxpr)
        weight = backward_flops(weight_grad)
        both = backward_flops(grads)
    return BlockPrice(
        forward_flops=forward,
        weight_grad_flops=weight,
        input_grad_flops=both - weight,
        param_count=sum(leaf.size for leaf in jax.tree.leaves(params)),
        param_bytes=tree_bytes(params),
        stored_bytes=kept_bytes(2) - kept_bytes(1),
    )


def pricing(live: bool, key: Any) -> Callable[..., BlockPrice]:
    """The function `(block, params, stats, x) -> BlockPrice`, which traces equal blocks once.

    Deep networks repeat blocks, and tracing them takes most of the time.

    Args:
      live: as in `price_block`.
      key: as in `price_block`.
    """
    known: dict[Any, BlockPrice] = {}

    def priced(block: Block, params: PyTree, stats: PyTree, x: PyTree) -> BlockPrice:
        leaves, structure = jax.tree.flatten((params, stats, x))
        kind = block.apply, tuple(leaves), structure
        try:
            found = known.get(kind)
        except TypeError:  # a module with attributes that cannot be compared
            return price_block(block, params, stats, x, live, key)
        known[kind] = found or price_block(block, params, stats, x, live, key)
        return known[kind]

    return priced


def differentiable(x: PyTree) -> bool:
    """Whether the input of a block has a gradient, which tokens and masks have not."""
    return all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(x))


def tree_bytes(tree: PyTree) -> int:
    """Bytes of all arrays in a pytree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
