"""Methods composed of a method and transformations of it."""

import inspect
from collections.abc import Callable

from fedjax_het.common.errors import InputError, require
from fedjax_het.contract.algorithm import Algorithm

# A function from a method to the method that it becomes.
Transformation = Callable[[Algorithm], Algorithm]


def compose(algorithm: Algorithm, *transformations: Transformation) -> Algorithm:
    """The method after all transformations, from left to right.

    Args:
      algorithm: method to transform.
      *transformations: functions `Algorithm -> Algorithm`, e.g. `select.oort()`; of two
        selections, the later one holds.

    Raises:
      InputError: if something is no method or no transformation.
    """
    require(
        isinstance(algorithm, Algorithm),
        f"compose of a {type(algorithm).__name__}",
        "begins with an Algorithm",
        "call the factory of the method, e.g. fedavg(problem, learning_rate=0.1)",
    )
    for number, transformation in enumerate(transformations, start=1):
        what = f"transformation {number}, {getattr(transformation, '__name__', transformation)!r}"
        limit = "must be a function from one Algorithm to another"
        remedy = "call its factory, e.g. select.oort() in place of select.oort"
        try:
            inspect.signature(transformation).bind(algorithm)
        except TypeError as error:
            raise InputError(f"{what}: {limit}; {remedy}") from error
        algorithm = transformation(algorithm)
        require(isinstance(algorithm, Algorithm), what, limit, remedy)
    return algorithm
