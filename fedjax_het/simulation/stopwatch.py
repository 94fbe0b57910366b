"""The clock on the wall: the times that a run records, and the length of its batches of rounds.

Nothing else of a run looks at a clock, and the length of a batch decides only when rows are
written, not which: see `tests/simulation/test_clock.py`.
"""

import time
from collections.abc import Mapping, Sequence

from fedjax_het.runtime import processes
from fedjax_het.runtime.compiling import Compiler

# The clock, in seconds; tests set another.
clock = time.perf_counter

# The number of rounds in the longest batch, and the time in seconds that a batch should not exceed,
# because its rounds are shown and recorded only when it is over.
LONGEST, _LONGEST_S = 32, 0.5


class Stopwatch:
    """Measures from its construction; compilation counts apart.

    Args:
      compilers: compilers whose seconds count, in so far as they pass from now on.
    """

    def __init__(self, compilers: Sequence[Compiler]):
        self._compilers = tuple(compilers)
        self._compiled_before_s = self._compiled_s()
        self._began_s = clock()
        self._earlier = {"wall_s": 0.0, "compile_s": 0.0}

    def resume(self, saved: Mapping[str, float]) -> None:
        """Adds the times of an earlier process, a result of `read`."""
        self._earlier = {name: saved[name] for name in self._earlier}

    def read(self) -> dict[str, float]:
        """Seconds so far: `wall_s`, which does not include compilation, and `compile_s`."""
        compile_s = self._compiled_s() - self._compiled_before_s
        wall_s = clock() - self._began_s - compile_s
        own = {"wall_s": wall_s, "compile_s": compile_s}
        return {name: self._earlier[name] + value for name, value in own.items()}

    def _compiled_s(self) -> float:
        return sum(compiler.seconds for compiler in self._compilers)


class Batching:
    """The number of rounds in the next batch, which follows the time that batches take.

    Attributes:
      most: largest number of rounds in the next batch.
    """

    def __init__(self) -> None:
        self.most = 1
        self._began_s = self._took_s = 0.0

    def begin(self) -> None:
        """Starts the time of a batch."""
        self._began_s = clock()

    def end(self) -> None:
        """Ends it."""
        self._took_s = clock() - self._began_s

    def adapt(self) -> None:
        """Doubles or halves the number of rounds, alike in all processes."""
        short = processes.leaders(self._took_s) < _LONGEST_S
        self.most = min(2 * self.most, LONGEST) if short else max(self.most // 2, 1)
