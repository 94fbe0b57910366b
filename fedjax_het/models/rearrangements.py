"""Labels of arrays whose values are moved: reshaped, sliced, joined, looked up.

See `tying` for rules; arithmetic is in `operations`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jax.extend.core import JaxprEqn

from fedjax_het.models.tying import FIXED, Kind, Label, Labels, Rules, Ties, shape_of

RULES = Rules()


@RULES.of("iota")
def _iota(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    along = equation.params["dimension"]
    axes = range(len(equation.params["shape"]))
    return [tuple(Kind.VARIES if axis == along else Kind.CONSTANT for axis in axes)]


@RULES.of("reshape")
def _reshape(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    result: list[Label] = []
    if 0 in before:
        return [(Kind.VARIES,) * len(after)]
    for axes, shape in _matched(before, after):
        labels = [inputs[0][axis] for axis in axes]
        if len(axes) == len(shape) == 1:
            result += labels
            continue
        result += _regrouped(ties, labels, [before[axis] for axis in axes], shape)
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
        return ties.refuse("reshape", labels, shape, "merges two axes of hidden units")
    if not units:
        varies = any(label is not Kind.CONSTANT for label in labels)
        return [Kind.VARIES if varies else Kind.CONSTANT] * len(shape)
    along = [-1 if a == units[0] else 1 for a in range(len(sizes))]
    atoms = np.asarray(labels[units[0]]).reshape(along)
    if not shape:
        ties.fix(labels[units[0]])
        return []
    return ties.split(np.broadcast_to(atoms, sizes).reshape(shape))


@RULES.of("transpose")
def _transpose(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    return [tuple(inputs[0][axis] for axis in equation.params["permutation"])]


@RULES.of("squeeze")
def _squeeze(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    return [_without(ties, inputs[0], equation.params["dimensions"])]


def _without(ties: Ties, labels: Labels, axes: Sequence[int]) -> Labels:
    """Labels without some axes, whose units, if any, have no place to go and are fixed."""
    for axis in axes:
        ties.fix(labels[axis])
    return tuple(label for axis, label in enumerate(labels) if axis not in axes)


@RULES.of("broadcast_in_dim")
def _broadcast(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    shape, before = equation.params["shape"], shape_of(equation.invars[0])
    result: list[Label] = [Kind.CONSTANT] * len(shape)
    for axis, to in enumerate(equation.params["broadcast_dimensions"]):
        if before[axis] == shape[to]:
            result[to] = inputs[0][axis]
        else:
            ties.fix(inputs[0][axis])
    return [tuple(result)]


@RULES.of("slice")
def _slice(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    starts, stops = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(starts)
    places = (slice(*each) for each in zip(starts, stops, steps, strict=True))
    return [tuple(ties.part(k, place) for k, place in zip(inputs[0], places, strict=True))]


@RULES.of("split")
def _split(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    axis, start = equation.params["axis"], 0
    results = []
    for size in equation.params["sizes"]:
        labels = list(inputs[0])
        labels[axis] = ties.part(labels[axis], slice(start, start + size))
        results.append(tuple(labels))
        start += size
    return results


@RULES.of("stack")
def _stack(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    joined = [ties.join(axis) for axis in zip(*inputs, strict=True)]
    joined.insert(equation.params["axis"], Kind.VARIES)
    return [tuple(joined)]


@RULES.of("unstack")
def _unstack(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    return [_without(ties, inputs[0], (equation.params["axis"],))] * len(equation.outvars)


@RULES.of("tile")
def _tile(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    return [
        tuple(
            np.tile(k, n) if isinstance(k, np.ndarray) else k if n == 1 else Kind.VARIES
            for k, n in zip(inputs[0], equation.params["reps"], strict=True)
        )
    ]


@RULES.of("dynamic_slice")
def _dynamic_slice(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    before = shape_of(equation.invars[0])
    result = []
    for label, size, whole in zip(inputs[0], equation.params["slice_sizes"], before, strict=True):
        result += [label] if size == whole else ties.refuse("dynamic_slice", [label], [size])
    return [tuple(result)]


@RULES.of("dynamic_update_slice")
def _update(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    operand, update = (shape_of(value) for value in equation.invars[:2])
    result = []
    for axis, labels in enumerate(zip(*inputs[:2], strict=True)):
        if operand[axis] == update[axis]:
            result.append(ties.join(labels))
        else:
            result += ties.refuse("dynamic_update_slice", labels, [operand[axis]])
    return [tuple(result)]


@RULES.of("concatenate")
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
    sizes = [shape_of(value)[equation.params["dimension"]] for value in equation.invars]
    fixed = [np.full(size, FIXED) for size in sizes]
    return np.concatenate(
        [k if isinstance(k, np.ndarray) else f for k, f in zip(labels, fixed, strict=True)]
    )


@RULES.of("pad")
def _pad(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    result: list[Label] = []
    shape = shape_of(equation.outvars[0])
    for label, edges, size in zip(inputs[0], equation.params["padding_config"], shape, strict=True):
        if not any(edges):
            result.append(label)
        elif isinstance(label, np.ndarray) and min(edges) >= 0 and edges[2] == 0:
            # The positions beside the units stay where they are.
            result.append(np.pad(label, edges[:2]))
        else:
            result += ties.refuse("pad", [label], [size])
    return [tuple(result)]


@RULES.of("rev")
def _reverse(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    turned = equation.params["dimensions"]
    return [
        tuple(
            k[::-1] if a in turned and isinstance(k, np.ndarray) else k
            for a, k in enumerate(inputs[0])
        )
    ]


@RULES.of("gather")
def _gather(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    """Rows of a table that are chosen by data are fixed; axes that are taken whole stay."""
    operand, indices = inputs
    ties.refuse("gather", indices)
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [axis for axis in range(len(operand)) if axis not in gone]
    result: list[Label] = [Kind.VARIES] * len(shape_of(equation.outvars[0]))
    for axis, label in enumerate(operand):
        whole = sizes[axis] == shape_of(equation.invars[0])[axis]
        if axis in kept and whole:
            result[numbers.offset_dims[kept.index(axis)]] = label
        else:
            ties.fix(label)
    return [tuple(result)]
