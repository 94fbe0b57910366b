"""New variables of a model, drawn by one program, which also tells their shapes."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from fedjax_het.contract.algorithm import Variables
from fedjax_het.runtime import compiling


class Draw:
    """A function from a key to new variables, traced once and compiled at its first call.

    Operation by operation, every shape that a network draws would be compiled by itself, and a deep
    network has dozens. The program differs from that in last bits only.

    Args:
      function: pure function of a typed PRNG key.
    """

    def __init__(self, function: Callable[[jax.Array], Variables]):
        self._function = function

    @functools.cached_property
    def _traced(self) -> Any:
        return jax.jit(self._function).trace(_key())

    @functools.cached_property
    def _program(self) -> Callable[[jax.Array], Variables]:
        # Values that a network holds are not drawn: in the program they would be copies of now.
        if self._traced.jaxpr.consts:
            return self._function
        return self._traced.lower().compile(compiler_options=compiling.options_of_one_run())

    @property
    def shapes(self) -> Variables:
        """The variables as `ShapeDtypeStruct`s; nothing is computed."""
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self._traced.out_info)

    def __call__(self, key: jax.Array) -> Variables:
        """New variables from a typed PRNG key."""
        known = not isinstance(key, jax.core.Tracer) and key.dtype == _key().dtype
        return self._program(key) if known else self._function(key)


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))
