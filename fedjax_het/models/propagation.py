"""Labels of the results of a traced program, see `tying`; inner programs are followed."""

import itertools
from collections.abc import Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from fedjax_het.models import operations, rearrangements
from fedjax_het.models.tying import Kind, Labels, Ties, constant, shape_of

_RULES = {**operations.RULES, **rearrangements.RULES}


def follow(
    ties: Ties,
    program: ClosedJaxpr,
    inputs: Sequence[Labels],
    wanted: Sequence[bool] | None = None,
) -> list[Labels]:
    """Collects the ties of a program.

    Args:
      ties: ties so far; those of the program are added.
      program: traced program.
      inputs: labels of its inputs.
      wanted: which of its results are used; None for all. Operations that lead to no used result
        are left out.

    Returns:
      Labels of the results; of those that are not used, arbitrary ones.
    """
    jaxpr = program.jaxpr
    known: dict[Any, Labels] = dict(zip(jaxpr.invars, inputs, strict=True))
    known.update(zip(jaxpr.constvars, map(constant, program.consts), strict=True))

    def labels(value: Any) -> Labels:
        if isinstance(value, Literal):
            return constant(value.val)
        return known.get(value, (Kind.VARIES,) * len(shape_of(value)))

    needed = _needed(jaxpr, wanted)
    for equation in jaxpr.eqns:
        used = [value in needed for value in equation.outvars]
        if any(used):
            results = _run(ties, equation, [labels(value) for value in equation.invars], used)
            known.update(zip(equation.outvars, results, strict=True))
    return [labels(value) for value in jaxpr.outvars]


def used_inputs(program: ClosedJaxpr) -> list[bool]:
    """Whether the results of a program depend on each of its inputs."""
    needed = _needed(program.jaxpr, None)
    return [value in needed for value in program.jaxpr.invars]


def _needed(jaxpr: Jaxpr, wanted: Sequence[bool] | None) -> set[Any]:
    """The values on which the wanted results of a program depend."""
    ends = jaxpr.outvars if wanted is None else itertools.compress(jaxpr.outvars, wanted)
    needed = {value for value in ends if not isinstance(value, Literal)}
    for equation in reversed(jaxpr.eqns):
        used = [value in needed for value in equation.outvars]
        if not any(used):
            continue
        operands, program = equation.invars, _called(equation)
        if program is not None:
            inside = _needed(program.jaxpr, used)
            own = program.jaxpr.invars
            operands = [v for v, inner in zip(operands, own, strict=True) if inner in inside]
        needed.update(value for value in operands if not isinstance(value, Literal))
    return needed


def _called(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The program that an operation runs on its operands (jit, remat, custom rules), or None.

    It is told by its shapes, because the names of such operations change with JAX.
    """
    if equation.primitive.name in (*_RULES, "cond", "scan", "while"):
        return None
    programs = [p for p in equation.params.values() if isinstance(p, (ClosedJaxpr, Jaxpr))]
    if len(programs) != 1:
        return None
    [program] = programs
    program = program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())
    inside = program.jaxpr
    fits = all(
        [shape_of(v) for v in one] == [shape_of(v) for v in other]
        for one, other in ((equation.invars, inside.invars), (equation.outvars, inside.outvars))
    )
    return program if fits else None


def _run(
    ties: Ties, equation: JaxprEqn, inputs: list[Labels], used: list[bool]
) -> Sequence[Labels]:
    name, program = equation.primitive.name, _called(equation)
    if program is not None:
        return follow(ties, program, inputs, used)
    if name == "cond":
        branches = [
            follow(ties, branch, inputs[1:], used) for branch in equation.params["branches"]
        ]
        return [_joined(ties, results) for results in zip(*branches, strict=True)]
    if name == "scan":
        return _scan(ties, equation, inputs, used)
    if name == "while":
        return _while(ties, equation, inputs)
    return _RULES.get(name, _mixed)(ties, equation, inputs)


def _mixed(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> list[Labels]:
    """Of an operation without a rule: it mixes whatever units its operands have."""
    operands = [
        list(zip(own, shape_of(value), strict=True))
        for own, value in zip(inputs, equation.invars, strict=True)
    ]
    units = [label for own in inputs for label in own]
    results = []
    for value in equation.outvars:
        shape = shape_of(value)
        labels = ties.refuse(equation.primitive.name, units, shape)
        for own in operands:
            # An axis of the same place and length without units, as of samples, is not mixed.
            if len(own) == len(shape):
                for axis, (label, size) in enumerate(own):
                    if isinstance(label, Kind) and size == shape[axis]:
                        labels[axis] = Kind.VARIES
        results.append(tuple(labels))
    return results


def _joined(ties: Ties, each: Sequence[Labels]) -> Labels:
    return tuple(ties.join(axis) for axis in zip(*each, strict=True))


def _scan(
    ties: Ties, equation: JaxprEqn, inputs: list[Labels], used: list[bool]
) -> Sequence[Labels]:
    """The scanned axis of parameters, as of layers in a stack, is fixed: every step is its own."""
    consts, carried = equation.params["num_consts"], equation.params["num_carry"]
    rows = inputs[consts + carried :]
    for row in rows:
        ties.fix(row[0])
    wanted = [True] * carried + used[carried:]

    def step(carry: Sequence[Labels]) -> list[Labels]:
        given = [*inputs[:consts], *carry, *(row[1:] for row in rows)]
        return follow(ties, equation.params["jaxpr"], given, wanted)

    results = _repeated(ties, inputs[consts : consts + carried], step)
    return [*results[:carried], *((Kind.VARIES, *labels) for labels in results[carried:])]


def _while(ties: Ties, equation: JaxprEqn, inputs: list[Labels]) -> Sequence[Labels]:
    given = equation.params
    of_condition, of_body = given["cond_nconsts"], given["body_nconsts"]
    split = of_condition + of_body

    def step(carry: Sequence[Labels]) -> list[Labels]:
        follow(ties, given["cond_jaxpr"], [*inputs[:of_condition], *carry])
        return follow(ties, given["body_jaxpr"], [*inputs[of_condition:split], *carry])

    return _repeated(ties, inputs[split:], step)


def _repeated(ties: Ties, carry: Sequence[Labels], step: Any) -> list[Labels]:
    """The results of a step whose first results are its next inputs, when their labels stay."""
    while True:
        results = step(carry)
        joined = [_joined(ties, pair) for pair in zip(carry, results[: len(carry)], strict=True)]
        if all(a is b for old, new in zip(carry, joined) for a, b in zip(old, new)):
            return [*joined, *results[len(carry) :]]
        carry = joined
