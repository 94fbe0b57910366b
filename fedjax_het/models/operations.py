"""Ties that arithmetic makes: elementwise operations, products, reductions and windows.

See `tying` for rules; operations that only move values are in `rearrangements`.
"""

import functools

from jax.extend.core import JaxprEqn

from fedjax_het.models.tying import Kind, Label, Labels, Rules, Ties, shape_of

RULES = Rules()

_ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy cos cosh digamma div eq erf erf_inv erfc
    exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p
    logistic lt max min mul name ne neg nextafter not or polygamma population_count pow real
    reduce_precision rem round rsqrt select_n sharding_constraint shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan
    tanh xor
"""


@RULES.of(*_ELEMENTWISE.split())
def _elementwise(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    rank = max(len(labels) for labels in inputs)
    # Scalars are allowed next to arrays.
    arrays = [labels for labels in inputs if len(labels) == rank]
    return [tuple(ties.join(axis) for axis in zip(*arrays, strict=True))]


@RULES.of("device_put", "optimization_barrier")
def _unchanged(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    return inputs


@RULES.of("dot_general")
def _product(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    left, right = inputs
    (summed_left, summed_right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    for one, other in zip(summed_left, summed_right, strict=True):
        ties.join([left[one], right[other]])
    shared = (
        ties.join([left[one], right[other]])
        for one, other in zip(left_batch, right_batch, strict=True)
    )
    of_left = (k for a, k in enumerate(left) if a not in (*summed_left, *left_batch))
    of_right = (k for a, k in enumerate(right) if a not in (*summed_right, *right_batch))
    return [(*shared, *of_left, *of_right)]


@RULES.of("conv_general_dilated")
def _convolution(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    x, kernel = inputs
    x_axes, kernel_axes, result_axes = equation.params["dimension_numbers"]
    batch, channels = x[x_axes[0]], x[x_axes[1]]
    created, summed = kernel[kernel_axes[0]], kernel[kernel_axes[1]]
    for axis in kernel_axes[2:]:
        ties.fix(kernel[axis])
    groups = equation.params["feature_group_count"], equation.params["batch_group_count"]
    if groups == (1, 1):
        ties.join([channels, summed])
    else:
        ties.fix(summed)
        reason = "convolves groups of channels apart, which a part of the channels would change"
        ties.refuse("conv_general_dilated", [batch, channels, created], (), reason)
    result: list[Label] = [Kind.VARIES] * len(x)
    result[result_axes[0]], result[result_axes[1]] = batch, created
    for axis, to in zip(x_axes[2:], result_axes[2:], strict=True):
        size = shape_of(equation.outvars[0])[to]
        [result[to]] = ties.refuse("conv_general_dilated", [x[axis]], [size])
    return [tuple(result)]


@RULES.of(
    *("argmax", "argmin", "reduce", "reduce_and", "reduce_max", "reduce_min", "reduce_or"),
    *("reduce_prod", "reduce_sum", "reduce_xor"),
)
def _reduce(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    axes = equation.params.get("axes") or equation.params.get("dimensions") or ()
    results = []
    for labels in inputs[: len(equation.outvars)]:
        ties.refuse(equation.primitive.name, [labels[axis] for axis in axes])
        results.append(tuple(k for a, k in enumerate(labels) if a not in axes))
    return results


def _along(name: str, ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    """Of an operation on each row along one axis, which keeps its length."""
    shared = [ties.join(axis) for axis in zip(*inputs, strict=True)]
    axis = equation.params[name]
    if shared[axis] is Kind.CONSTANT:
        shared[axis] = Kind.VARIES
    # The label stays, so that fixed units remain fixed in what follows.
    ties.refuse(equation.primitive.name, [shared[axis]])
    return [tuple(shared)] * len(equation.outvars)


for _name in ("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"):
    RULES[_name] = functools.partial(_along, "axis")
RULES["sort"] = functools.partial(_along, "dimension")


@RULES.of("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum")
def _window(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    given, name = equation.params, equation.primitive.name
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    results = []
    for labels in inputs[: len(equation.outvars)]:
        result: list[Label] = []
        for axis, label in enumerate(labels):
            alone = all(given[each][axis] == 1 for each in names)
            if alone and not any(given["padding"][axis]):
                result.append(label)
            else:
                size = shape_of(equation.outvars[0])[axis]
                result += ties.refuse(name, [label], [size])
        results.append(tuple(result))
    return results
