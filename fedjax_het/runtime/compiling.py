"""Ahead-of-time compilation, timed separately from the run, with results kept between processes."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import logging

from fedjax_het.runtime import compilation_cache

# On a CPU, XLA gives products and reductions to its library YNNPACK. With this option it gives it
# reductions only, and products to Eigen, because YNNPACK computes a product with few columns, such
# as that of a narrow convolution, on one core (`benchmarks/micro/products.py`). Products of several
# clients side by side are still computed by YNNPACK.
_CPU_OPTIONS: dict[str, str | bool] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"
}


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """Compiler options for the default backend beyond XLA's flags; empty if XLA rejects them."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options=_CPU_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        logging.info("products are left to XLA's choice of library: %s", error)
        return {}
    return _CPU_OPTIONS


def options_of_one_run() -> dict[str, str | bool | int]:
    """Compiler options for a program that runs once on the default backend and does little."""
    # Generated without optimisation, the code of an initialisation takes a quarter of the time.
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


class Compiler:
    """Compiles functions for given arguments; the first compiler enables the persistent cache.

    Attributes:
      seconds: time spent so far on tracing, lowering, and compiling or reading from the cache.
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
          *arguments: arguments of the first call.
          donate: positions of arguments whose memory the result may reuse.
          side_by_side: whether the function computes for several clients at once.
        """
        began = time.perf_counter()
        lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
        compiled = lowered.compile(compiler_options={} if side_by_side else compiler_options())
        if self._cache is not None:
            self._cache.publish()
        self.seconds += time.perf_counter() - began
        return compiled
