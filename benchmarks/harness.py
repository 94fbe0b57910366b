"""Common parts of the benchmarks: interleaved timing, machine speed, peak memory, tables."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import isa

Run = Callable[[], Any]

# Side of the square matrices whose product measures the machine.
GEMM_SIZE = 2048


class Spread(NamedTuple):
    """Median, smallest and largest of repeated measurements."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Median and range, three digits."""
        if self.low == self.high:
            return f"{self.median:.3g}"
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """`Spread` of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


class Timed(NamedTuple):
    """One contender's times.

    Attributes:
      first_s: the first call, which compiles or allocates; not among the samples.
      samples_s: the repeats in the order of the rounds; round r of all contenders goes together.
      processors_s: time of all processors of this process in the same repeats.
    """

    first_s: float
    samples_s: list[float]
    processors_s: Sequence[float] = ()

    @property
    def compile_s(self) -> float:
        """Seconds that the first call took beyond a typical one."""
        return max(self.first_s - statistics.median(self.samples_s), 0.0)


def interleave(contenders: Mapping[str, Run], repeats: int) -> dict[str, Timed]:
    """Times contenders in turn, A B C A B C ..., so that a disturbance hits neighbours alike.

    Compare within a round (ratios), then over rounds (median and range). Every contender is called
    once before the first round.

    Args:
      contenders: functions of no arguments; what they return is waited for.
      repeats: rounds, at least 1.

    Returns:
      The times by name, in the given order.
    """

    def call(run: Run) -> tuple[float, float]:
        began, spent = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        return time.perf_counter() - began, time.process_time() - spent

    first = {name: call(run)[0] for name, run in contenders.items()}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            samples[name].append(call(run))

    def timed(name: str) -> Timed:
        wall, processors = (list(column) for column in zip(*samples[name], strict=True))
        return Timed(first[name], wall, processors)

    return {name: timed(name) for name in contenders}


def ratios(of: Timed, to: Timed, *, processors: bool = False) -> Spread:
    """Spread over the rounds of `of / to`, in time, or in that of the processors."""
    times = (t.processors_s if processors else t.samples_s for t in (of, to))
    return spread([a / b for a, b in zip(*times, strict=True)])


def gemm() -> tuple[Run, float]:
    """A float32 product of two 2048 x 2048 matrices through JAX, and its FLOPs."""
    a = jnp.ones((GEMM_SIZE, GEMM_SIZE), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    return lambda: product(a), 2.0 * GEMM_SIZE**3


def machine() -> dict[str, Any]:
    """Description of the machine and its load; printed above every table."""
    device = jax.devices()[0]
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            models = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        name = models[0] if models else name
    return {
        "cpu": name,
        "isa": isa.limited(),
        "cores": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "device": f"{device.platform}: {device.device_kind}",
        "python": platform.python_version(),
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
    }


def describe(facts: Mapping[str, Any]) -> str:
    """`machine()` on one line."""
    return (
        f"{facts['cpu']}, {facts['isa']}, {facts['cores']} cores, "
        f"load {facts['load_1min']:.1f} at the start, "
        f"{facts['device']}, JAX {facts['jax']}, Python {facts['python']}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text in columns; the first is flush left, the others right."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def text(line: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([text(lines[0]), "  ".join("-" * w for w in widths), *map(text, lines[1:])])


def write(path: str | None, results: Any) -> None:
    """Writes results as JSON, if a path is given."""
    if path:
        with open(path, "w") as file:
            json.dump(results, file, indent=2)
            file.write("\n")


def command(
    parser: argparse.ArgumentParser, measure: Callable[..., Any], report: Callable[[Any], str]
) -> None:
    """Runs a benchmark from the command line: prints its report, and writes its results if asked.

    Args:
      parser: knows the benchmark's arguments; `--json` and `--isa` are added.
      measure: takes them by name.
      report: the results as text.
    """
    parser.add_argument("--json", help="also write the results here")
    arguments = vars(isa.parse(parser))
    path = arguments.pop("json")
    results = measure(**arguments)
    print(report(results))
    write(path, results)


def memory_bytes() -> dict[str, int]:
    """Resident memory of this process now and at its peak so far (Linux)."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {
        name: int(fields[key].split()[0]) * 1024
        for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))
    }


def reset_peak() -> None:
    """Makes the peak of `memory_bytes` start from now (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def in_child(module: str, arguments: Sequence[str]) -> Any:
    """Runs `python -m module arguments` in its own process; its last line of output is JSON.

    Raises:
      RuntimeError: the process failed; with the end of what it said.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
