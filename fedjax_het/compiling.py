"""Ahead-of-time compilation, timed and counted apart from the run, and kept between processes."""

import time
from collections.abc import Callable
from typing import Any

import jax

from fedjax_het import compilation_cache


class Compiler:
    """Compiles functions for the arguments at hand; the first one turns the persistent cache on.

    Attributes:
      seconds: spent tracing, lowering and compiling, or reading back, so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._cache = compilation_cache.enable()

    def compile(
        self, function: Callable[..., Any], *arguments: Any, donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """`jit(function)` compiled for arguments of these shapes and placements.

        Args:
          function: pure function of pytrees of arrays.
          *arguments: what it will be called with first.
          donate: positions of arguments whose memory the result may take over.
        """
        began = time.perf_counter()
        compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
        if self._cache is not None:
            self._cache.publish()
        self.seconds += time.perf_counter() - began
        return compiled
