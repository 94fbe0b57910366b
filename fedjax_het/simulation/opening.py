"""The records and checkpoints of a run that starts or resumes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_het.fleet.device import Fleet
from fedjax_het.runtime import processes
from fedjax_het.simulation.checkpoints import Checkpoints
from fedjax_het.simulation.journal import Journal, require_own
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.sinks import tensorboard_writer


def open_records(
    workdir: Path | None,
    identity: Mapping[str, Any],
    options: RunOptions,
    config: Mapping[str, Any],
    fleet: Fleet,
) -> tuple[Checkpoints | None, Journal, bool]:
    """Opens the work directory of a run, if there is one.

    Args:
      workdir: work directory, or None.
      identity: identity of the run.
      options: options of the run.
      config: configuration to record; may be empty.
      fleet: fleet of the run.

    Returns:
      The checkpoints, None without a directory; the journal; and whether this process writes.

    Raises:
      InputError: if the directory holds another run.
    """
    if workdir is not None:
        require_own(workdir, identity)
    checkpoints = None if workdir is None else Checkpoints(workdir / "checkpoints")
    # Only the first of several processes writes. It also removes damaged checkpoints, and the
    # other processes wait for this before they read.
    writes = processes.is_leader() or workdir is None
    if not writes:
        processes.meet("checkpoints")
    if checkpoints is not None:
        checkpoints.newest(identity)
    if writes and workdir is not None:
        processes.meet("checkpoints")
    recorded = {**config, "identity": identity}
    sink = options.tensorboard and writes and tensorboard_writer(workdir)
    return checkpoints, Journal(workdir if writes else None, recorded, sink or None, fleet), writes
