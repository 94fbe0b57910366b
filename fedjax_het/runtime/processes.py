"""Runs that span several processes: who is who, and how they keep in step.

Every process runs the same host program on the same data, and all share one mesh of devices. The
first process alone writes what a run leaves behind; it lies on a file system that all can read.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

from fedjax_het.common.errors import InputError, require


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Makes this process one of several; before anything else asks JAX for its devices.

    Args:
      coordinator: address and port of the first process, `HOST:PORT`; None finds it where the
        cluster says (Slurm, Open MPI, Kubernetes, TPU pods).
      processes: their number; None likewise.
      process: which of them this is, from 0; None likewise.

    Raises:
      InputError: arguments that do not fit, or processes that do not come together.
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


def count() -> int:
    """Processes of the run."""
    return jax.process_count()


def is_leader() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def meet(place: str) -> None:
    """Returns when all processes have come to the same place."""
    if count() > 1:
        multihost_utils.sync_global_devices(place)


def leaders(value: float) -> float:
    """The first process's value: what was measured may differ between them."""
    if count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))
