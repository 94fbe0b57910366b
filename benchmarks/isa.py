"""The instruction set that a benchmark may use, so that any machine shows the lesser kind too.

A limit holds for XLA's own code, for oneDNN, PyTorch and MKL, and for all processes started later.
Libraries that choose their kernels themselves while they run do not ask: products of XLA by Eigen
are compiled once for all machines, and YNNPACK takes what the processor has. The rate of a matrix
product that every benchmark prints is measured under the same limit, and shows what remains.
"""

import argparse
import os
from collections.abc import Sequence

NATIVE, AVX2, AVX512 = CHOICES = ("native", "avx2", "avx512")
# Environment of each limit: XLA, oneDNN, the kernels of PyTorch, MKL.
_LIMITS = {
    AVX2: ("AVX2", "AVX2", "avx2", "AVX2"),
    AVX512: ("AVX512", "AVX512_CORE", "avx512", "AVX512"),
}
_NAMES = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
_FLAG = "--xla_cpu_max_isa"


def native() -> str:
    """The largest set of this machine: "avx512", "avx2", or "unknown" where nothing says so."""
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next((line.split() for line in lines if line.startswith("flags")), [])
    except OSError:
        flags = []
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(flags):
        return AVX512
    return AVX2 if "avx2" in flags else "unknown"


def limited() -> str:
    """The set in use: a limit, or that of the machine."""
    words = os.environ.get("XLA_FLAGS", "").split()
    found = [word.partition("=")[2] for word in words if word.startswith(f"{_FLAG}=")]
    chosen = {xla: isa for isa, (xla, *_) in _LIMITS.items()}
    return chosen.get(found[-1], found[-1]) if found else native()


def limit(isa: str) -> None:
    """Limits this process and all that it starts; before JAX looks for devices.

    Args:
      isa: one of `CHOICES`; "native" changes nothing.

    Raises:
      ValueError: if the machine lacks the set.
    """
    if isa == NATIVE:
        return
    if isa == AVX512 != native():
        raise ValueError(f"this machine has {native()}, not {isa}; leave --isa out")
    xla, *others = _LIMITS[isa]
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}={xla}".strip()
    os.environ.update(zip(_NAMES, others, strict=True))


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """The arguments of a benchmark without `--isa`, which is added and takes effect.

    Args:
      parser: knows the benchmark's arguments.
      arguments: command line; None for that of the process.
    """
    parser.add_argument("--isa", choices=CHOICES, default=NATIVE, help="largest instruction set")
    given = parser.parse_args(arguments)
    try:
        limit(given.isa)
    except ValueError as error:
        parser.error(str(error))
    del given.isa
    return given
