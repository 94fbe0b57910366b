"""What traced functions contain."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal


def inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Jaxprs among the parameters of an equation: jit, remat, custom rules, scan, cond, while."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations in their order; those of inner jaxprs come after the equation around them."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from equations(inner)


def operations(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations that compute something.

    Calls (jit, custom rules) have no work of their own, and their names change with JAX.
    """
    return [each for each in equations(jaxpr) if next(inner_jaxprs(each), None) is None]


def digest(traced: ClosedJaxpr, names: Any = ()) -> str:
    """A digest of what a traced function computes: operations, their shapes, and constants.

    Args:
      traced: result of `jax.make_jaxpr`.
      names: further values of the digest, with a `repr` of their own.

    Returns:
      Twelve hexadecimal digits.
    """
    every = list(equations(traced.jaxpr))
    content = [
        *names,
        *(_words(each) for each in operations(traced.jaxpr)),
        *(np.asarray(v.val).tolist() for e in every for v in e.invars if isinstance(v, Literal)),
        *(hashlib.sha256(np.asarray(constant).tobytes()).hexdigest() for constant in traced.consts),
    ]
    return hashlib.sha256(repr(content).encode()).hexdigest()[:12]


def _words(equation: JaxprEqn) -> Any:
    """Name of an operation, its plain parameters, and the shapes that it takes and returns."""
    plain = {k: v for k, v in equation.params.items() if isinstance(v, bool | int | float | str)}
    shapes = [str(value.aval) for value in (*equation.invars, *equation.outvars)]
    return equation.primitive.name, sorted(plain.items()), shapes
