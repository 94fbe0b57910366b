"""Copies of this command on this machine, each with its share of the processor cores or GPUs.

A copy is the command with `--workers=1`: what machines that share a work directory start. So copies
pass nothing to each other or back but what they write there.
"""

import ctypes
import functools
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging

from fedjax_het.common.errors import require
from fedjax_het.common.writing import make_directory, refusing, usable_path

# Part of a GPU's memory that copies on it take together; JAX alone takes 0.75.
_MEMORY = 0.9
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl.h


def run(workers: int, workdir: str | Path) -> None:
    """Runs this command in several processes and waits for them; call it before JAX has a device.

    Each process has its own part of the processor cores that this one may use (Linux), and of the
    GPUs in `CUDA_VISIBLE_DEVICES`, or of all. If there are fewer GPUs than processes, processes
    share a GPU and its memory. On Linux they end with this process, however it ends.

    A process that fails is no error, because the caller does what is left. If it was killed, or its
    program is at fault, there is a warning.

    Args:
      workers: number of processes.
      workdir: work directory; their output goes to `workdir/workers/<host>-<index>.log`.

    Raises:
      InputError: if there are more processes than cores, or the directory cannot be written to.
    """
    require_cores(workers)
    cores = _cores()
    place = usable_path(workdir, "workdir") / "workers"
    make_directory(place, f"workdir = {str(workdir)!r}")
    started = []
    for index in range(workers):
        log = place / f"{platform.node()}-{index}.log"
        environment = {**os.environ, **share_of_gpus(index, workers, _gpus(), os.environ)}
        started.append((log, _start(cores[index::workers], environment, log)))
    for log, process in started:
        code = process.wait()
        # An input error, 2, is one of this process as well.
        if code not in (0, 2):
            how = f"signal {-code}" if code < 0 else f"status {code}"
            logging.warning("a process ended with %s, see %s; others do its work", how, log)


def require_cores(workers: int) -> None:
    """Raises `InputError` if there are more processes than processor cores for this one."""
    cores = len(_cores())
    require(
        workers <= cores,
        f"workers = {workers}",
        f"must be at most the {cores} processor cores of this process",
        "use fewer",
    )


def _start(cores: Sequence[int], environment: Mapping[str, str], log: Path) -> subprocess.Popen:
    command = [sys.executable, *sys.orig_argv[1:], "--workers=1"]
    before = _cores()
    with refusing(str(log)), log.open("ab") as output:
        try:
            # A process inherits the cores of the thread that starts it.
            _bind(cores)
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                preexec_fn=_ends_with_parent(),
            )
        finally:
            _bind(before)


def share_of_gpus(
    index: int, workers: int, gpus: Sequence[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """The environment variables that give a process its share of the GPUs.

    Args:
      index: index of the process.
      workers: number of processes.
      gpus: names of the GPUs, as in `CUDA_VISIBLE_DEVICES`; may be empty.
      environment: variables that are set already; a part of the memory that is set stays.
    """
    if not gpus:
        return {}
    if workers <= len(gpus):
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[index::workers])}
    chosen = {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]}
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in environment:
        most = -(-workers // len(gpus))
        chosen["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{_MEMORY / most:.3f}"
    return chosen


def _gpus() -> list[str]:
    """The GPUs that this process may use; none if JAX is told to use another platform."""
    if not {"", "cuda", "gpu"} & set(os.environ.get("JAX_PLATFORMS", "").lower().split(",")):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    found = Path("/dev").glob("nvidia[0-9]*")
    return sorted((path.name.removeprefix("nvidia") for path in found), key=int)


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _bind(cores: Sequence[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _ends_with_parent() -> functools.partial | None:
    """What a new process calls to be killed when this one is gone; None if it cannot."""
    if sys.platform != "linux":
        return None
    return functools.partial(ctypes.CDLL(None).prctl, _SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
