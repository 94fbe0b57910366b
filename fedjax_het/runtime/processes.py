"""Runs with several processes: their start, their roles and their synchronisation.

Every process runs the same host program on the same data, and all share one mesh of devices. Only
the first process writes the files of a run; they lie on a file system that all processes can read.
"""

import contextlib
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from fedjax_het.common.errors import InputError, require


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Makes this process one of several. Call it before anything asks JAX for its devices.

    Args:
      coordinator: address and port of the first process, `HOST:PORT`; None reads it from the
        cluster (Slurm, Open MPI, Kubernetes, TPU pods).
      processes: number of processes; None reads it from the cluster.
      process: index of this process, from 0; None reads it from the cluster.

    Raises:
      InputError: for arguments that do not fit, or if the processes cannot connect.
    """
    known = sum(value is not None for value in (coordinator, processes, process))
    require(
        known in (0, 3),
        f"coordinator = {coordinator}, num_processes = {processes}, process_id = {process}",
        "must be given all three, or none on a cluster that JAX knows",
        "write --coordinator=HOST:PORT --num_processes=2 --process_id=0",
    )
    require(
        processes is None or process is None or 0 <= process < processes,
        f"process_id = {process} of num_processes = {processes}",
        "must lie in 0..num_processes-1",
        "number the processes from 0",
    )
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"coordinator = {coordinator}: the processes did not come together ({error}); start "
            "all of them, with the address of the first"
        ) from error


def divide_cpu(devices: int) -> None:
    """Lets a CPU pose as this many devices, over which clients can be sharded.

    Operations too small for all cores, such as the steps of an LSTM, are faster if every core has
    a client of its own. Call it before anything asks JAX for its devices; later, and for more
    devices than cores, it does nothing. A number of devices in `XLA_FLAGS` stands.
    """
    named = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if 1 < devices <= (os.cpu_count() or 1) and not named:
        # RuntimeError: JAX has its devices.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", devices)


def count() -> int:
    """Number of processes of the run."""
    return jax.process_count()


def is_leader() -> bool:
    """Whether this is the first process, which writes the files."""
    return jax.process_index() == 0


def meet(place: str) -> None:
    """Waits until all processes have called this with the same `place`."""
    if count() > 1:
        multihost_utils.sync_global_devices(place)


def leaders(value: float) -> float:
    """The value of the first process, because measured values differ between processes."""
    if count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))
