"""Labels of the results of operations, and the ties that the operations make.

A rule is a function `(ties, equation, inputs) -> outputs` of the labels of the operands and of the
results, see `tying`. Operations without a rule mix the units of their operands.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from fedjax_het.models.tying import FIXED, Kind, Label, Labels, Ties

Rule = Callable[[Ties, JaxprEqn, list[Labels]], list[Labels]]

_MIXES = "mixes hidden units, so that a part of them would compute something else"

RULES: dict[str, Rule] = {}


def apply(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    """The labels of the results of an operation that has no inner program."""
    rule = RULES.get(equation.primitive.name, _mixed)
    return rule(ties, equation, inputs)


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _shape(value: Any) -> tuple[int, ...]:
    return value.aval.shape


def _mixed(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    ties.refuse(equation.primitive.name, _MIXES, [label for labels in inputs for label in labels])
    return [(Kind.VARIES,) * len(_shape(value)) for value in equation.outvars]


def _refused(
    ties: Ties, equation: JaxprEqn, labels: Sequence[Label], reason: str = _MIXES
) -> list[Label]:
    """Refuses the units of these axes, which vary in the result."""
    ties.refuse(equation.primitive.name, reason, labels)
    return [Kind.VARIES] * len(labels)


@_rule(
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh"),
    *("cbrt", "ceil", "clamp", "clz", "convert_element_type", "copy", "copy_p", "cos", "cosh"),
    *("digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge"),
    *("gt", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max"),
    *("min", "mul", "name", "ne", "neg", "nextafter", "not", "or", "population_count", "pow"),
    *("reduce_precision", "rem", "round", "rsqrt", "select_n", "shift_left"),
    *("shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt", "square"),
    *("stop_gradient", "sub", "tan", "tanh", "xor"),
)
def _elementwise(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    rank = max(len(labels) for labels in inputs)
    # Scalars are allowed next to arrays.
    arrays = [labels for labels in inputs if len(labels) == rank]
    return [tuple(ties.join(axis) for axis in zip(*arrays, strict=True))]


@_rule("optimization_barrier")
def _unchanged(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    return inputs


@_rule("iota")
def _iota(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    along = equation.params["dimension"]
    axes = range(len(equation.params["shape"]))
    return [tuple(Kind.VARIES if axis == along else Kind.CONSTANT for axis in axes)]


@_rule("dot_general")
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


@_rule("conv_general_dilated")
def _convolution(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    x, kernel = inputs
    x_axes, kernel_axes, result_axes = equation.params["dimension_numbers"]
    batch, channels = x[x_axes[0]], x[x_axes[1]]
    created, summed = kernel[kernel_axes[0]], kernel[kernel_axes[1]]
    _refused(ties, equation, [x[a] for a in x_axes[2:]])
    for axis in kernel_axes[2:]:
        ties.fix(kernel[axis])
    groups = equation.params["feature_group_count"], equation.params["batch_group_count"]
    if groups == (1, 1):
        ties.join([channels, summed])
    else:
        ties.fix(summed)
        reason = "convolves groups of channels apart, which a part of the channels would change"
        batch, _, created = _refused(ties, equation, [batch, channels, created], reason)
    result: list[Label] = [Kind.VARIES] * len(x)
    result[result_axes[0]], result[result_axes[1]] = batch, created
    return [tuple(result)]


@_rule("reshape")
def _reshape(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    before, after = _shape(equation.invars[0]), _shape(equation.outvars[0])
    result: list[Label] = []
    if 0 in before:
        return [(Kind.VARIES,) * len(after)]
    for axes, shape in _matched(before, after):
        labels = [inputs[0][axis] for axis in axes]
        if len(axes) == len(shape) == 1:
            result += labels
            continue
        result += _regrouped(ties, equation, labels, [before[axis] for axis in axes], shape)
    return [tuple(result)]


def _matched(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Axes of the operand and sizes in the result that hold the same positions, as few as fit."""
    i = j = 0
    while i < len(before) or j < len(after):
        start, begin = i, j
        # Where one side has ended, axes of length 1 remain on the other.
        i, j = min(i + 1, len(before)), min(j + 1, len(after))
        while (old := np.prod(before[start:i])) != (new := np.prod(after[begin:j])):
            i, j = (i + 1, j) if old < new else (i, j + 1)
        yield list(range(start, i)), list(after[begin:j])


def _regrouped(
    ties: Ties,
    equation: JaxprEqn,
    labels: list[Label],
    sizes: list[int],
    shape: list[int],
) -> Sequence[Label]:
    """Labels of the axes of these sizes, which become axes of the sizes `shape`."""
    units = [a for a, label in enumerate(labels) if isinstance(label, np.ndarray)]
    if len(units) > 1:
        for a in units:
            if sizes[a] == 1:
                ties.fix(labels[a])
        units = [a for a in units if not np.all(ties.fixed(np.asarray(labels[a])))]
    if len(units) > 1:
        _refused(ties, equation, labels, "merges two axes of hidden units")
        return [Kind.VARIES] * len(shape)
    if not units:
        varies = any(label is not Kind.CONSTANT for label in labels)
        return [Kind.VARIES if varies else Kind.CONSTANT] * len(shape)
    along = [-1 if a == units[0] else 1 for a in range(len(sizes))]
    atoms = np.asarray(labels[units[0]]).reshape(along)
    if not shape:
        ties.fix(labels[units[0]])
        return []
    return ties.split(np.broadcast_to(atoms, sizes).reshape(shape))


@_rule("transpose")
def _transpose(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    return [tuple(inputs[0][axis] for axis in equation.params["permutation"])]


@_rule("squeeze")
def _squeeze(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    return [_without(ties, inputs[0], equation.params["dimensions"])]


def _without(ties: Ties, labels: Labels, axes: Sequence[int]) -> Labels:
    """Labels without some axes, whose units, if any, have no place to go and are fixed."""
    for axis in axes:
        ties.fix(labels[axis])
    return tuple(label for axis, label in enumerate(labels) if axis not in axes)


@_rule("broadcast_in_dim")
def _broadcast(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    shape, before = equation.params["shape"], _shape(equation.invars[0])
    result: list[Label] = [Kind.CONSTANT] * len(shape)
    for axis, to in enumerate(equation.params["broadcast_dimensions"]):
        if before[axis] == shape[to]:
            result[to] = inputs[0][axis]
        else:
            ties.fix(inputs[0][axis])
    return [tuple(result)]


@_rule("slice")
def _slice(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    starts, stops = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    places = (slice(*each) for each in zip(starts, stops, steps, strict=True))
    return [tuple(ties.part(k, place) for k, place in zip(inputs[0], places, strict=True))]


@_rule("split")
def _split(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    axis, start = equation.params["axis"], 0
    results = []
    for size in equation.params["sizes"]:
        labels = list(inputs[0])
        labels[axis] = ties.part(labels[axis], slice(start, start + size))
        results.append(tuple(labels))
        start += size
    return results


@_rule("dynamic_slice")
def _dynamic_slice(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    before = _shape(equation.invars[0])
    result = []
    for label, size, whole in zip(inputs[0], equation.params["slice_sizes"], before, strict=True):
        result += [label] if size == whole else _refused(ties, equation, [label])
    return [tuple(result)]


@_rule("dynamic_update_slice")
def _update(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    operand, update = (_shape(value) for value in equation.invars[:2])
    result = []
    for axis, labels in enumerate(zip(*inputs[:2], strict=True)):
        if operand[axis] == update[axis]:
            result.append(ties.join(labels))
        else:
            result += _refused(ties, equation, labels)[:1]
    return [tuple(result)]


@_rule("concatenate")
def _concatenate(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    along = equation.params["dimension"]
    result = [
        _one_after_the_other(equation, axis) if a == along else ties.join(axis)
        for a, axis in enumerate(zip(*inputs, strict=True))
    ]
    return [tuple(result)]


def _one_after_the_other(equation: JaxprEqn, labels: Sequence[Label]) -> Label:
    """Label along the axis of a concatenation; what has no units is fixed beside units."""
    if not any(isinstance(label, np.ndarray) for label in labels):
        return Kind.VARIES
    sizes = [_shape(value)[equation.params["dimension"]] for value in equation.invars]
    fixed = [np.full(size, FIXED) for size in sizes]
    return np.concatenate(
        [k if isinstance(k, np.ndarray) else f for k, f in zip(labels, fixed, strict=True)]
    )


@_rule("pad")
def _pad(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    result: list[Label] = []
    for label, edges in zip(inputs[0], equation.params["padding_config"], strict=True):
        if not any(edges):
            result.append(label)
        elif isinstance(label, np.ndarray) and min(edges) >= 0 and edges[2] == 0:
            # The positions beside the units stay where they are.
            result.append(np.pad(label, edges[:2]))
        else:
            result += _refused(ties, equation, [label])
    return [tuple(result)]


@_rule("rev")
def _reverse(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    turned = equation.params["dimensions"]
    return [
        tuple(
            k[::-1] if a in turned and isinstance(k, np.ndarray) else k
            for a, k in enumerate(inputs[0])
        )
    ]


@_rule(
    *("argmax", "argmin", "reduce", "reduce_and", "reduce_max", "reduce_min", "reduce_or"),
    *("reduce_prod", "reduce_sum", "reduce_xor"),
)
def _reduce(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    axes = equation.params.get("axes") or equation.params.get("dimensions") or ()
    results = []
    for labels in inputs[: len(equation.outvars)]:
        _refused(ties, equation, [labels[axis] for axis in axes])
        results.append(tuple(k for a, k in enumerate(labels) if a not in axes))
    return results


def _along(name: str, ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    """Of an operation on each row along one axis, whose place is a parameter."""
    shared = [ties.join(axis) for axis in zip(*inputs, strict=True)]
    axis = equation.params.get(name, len(shared) - 1) % len(shared)
    [shared[axis]] = _refused(ties, equation, [shared[axis]])
    return [tuple(shared)] * len(equation.outvars)


for _name in ("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "top_k"):
    RULES[_name] = functools.partial(_along, "axis")
RULES["sort"] = functools.partial(_along, "dimension")


@_rule("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum")
def _window(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    given = equation.params
    results = []
    for labels in inputs[: len(equation.outvars)]:
        result: list[Label] = []
        for axis, label in enumerate(labels):
            names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
            whole = all(given[name][axis] == 1 for name in names)
            alone = whole and not any(given["padding"][axis])
            result += [label] if alone else _refused(ties, equation, [label])
        results.append(tuple(result))
    return results


@_rule("gather")
def _gather(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    """Rows of a table that are chosen by data are fixed; axes that are taken whole stay."""
    operand, indices = inputs
    _refused(ties, equation, indices)
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [axis for axis in range(len(operand)) if axis not in gone]
    result: list[Label] = [Kind.VARIES] * len(_shape(equation.outvars[0]))
    for axis, label in enumerate(operand):
        whole = sizes[axis] == _shape(equation.invars[0])[axis]
        if axis in kept and whole:
            result[numbers.offset_dims[kept.index(axis)]] = label
        else:
            ties.fix(label)
    return [tuple(result)]
