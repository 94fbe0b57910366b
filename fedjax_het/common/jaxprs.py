"""What traced functions contain."""

from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


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
