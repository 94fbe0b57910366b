"""Ahead-of-time compilation, timed and counted apart from the run, and kept between processes."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from fedjax_het.runtime import compilation_cache

# Of what XLA would hand to its library YNNPACK on a CPU, reductions alone; products are Eigen's.
# YNNPACK leaves a product of few columns, as those of narrow convolutions are, to one core
# (`benchmarks/micro/products.py`). Products of several clients side by side stay with it.
_CPU_OPTIONS: dict[str, str | bool] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"
}


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """What XLA is told beyond its flags on the default backend; nothing where it does not know."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options=_CPU_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        logging.info("products are left to XLA's choice of library: %s", error)
        return {}
    return _CPU_OPTIONS


class Compiler:
    """Compiles functions for the arguments at hand; the first one turns the persistent cache on.

    Attributes:
      seconds: spent tracing, lowering and compiling, or reading back, so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._cache = compilation_cache.enable()

    def compile(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        donate: tuple[int, ...] = (),
        side_by_side: bool = False,
    ) -> Callable[..., Any]:
        """`jit(function)` compiled for arguments of these shapes and placements.

        Args:
          function: pure function of pytrees of arrays.
          *arguments: what it will be called with first.
          donate: positions of arguments whose memory the result may take over.
          side_by_side: whether it computes for several clients at once.
        """
        began = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        compiled = lowered.compile(compiler_options={} if side_by_side else compiler_options())
        if self._cache is not None:
            self._cache.publish()
        self.seconds += time.perf_counter() - began
        return compiled
