"""Wall time and compile time of a run, over all processes that continued it."""

import time
from collections.abc import Mapping, Sequence

from fedjax_het.runtime.compiling import Compiler


class Stopwatch:
    """Measures from its construction; compilation counts apart.

    Args:
      compilers: compilers whose seconds count, in so far as they pass from now on.
    """

    def __init__(self, compilers: Sequence[Compiler]):
        self._compilers = tuple(compilers)
        self._compiled_before_s = self._compiled_s()
        self._began_s = time.perf_counter()
        self._earlier = {"wall_s": 0.0, "compile_s": 0.0}

    def resume(self, saved: Mapping[str, float]) -> None:
        """Adds the times of an earlier process, a result of `read`."""
        self._earlier = {name: saved[name] for name in self._earlier}

    def read(self) -> dict[str, float]:
        """Seconds so far: `wall_s`, which does not include compilation, and `compile_s`."""
        compile_s = self._compiled_s() - self._compiled_before_s
        wall_s = time.perf_counter() - self._began_s - compile_s
        own = {"wall_s": wall_s, "compile_s": compile_s}
        return {name: self._earlier[name] + value for name, value in own.items()}

    def _compiled_s(self) -> float:
        return sum(compiler.seconds for compiler in self._compilers)
