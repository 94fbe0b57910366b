"""The lock, the records and the checkpoints of a run that starts or resumes."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_het.common.errors import InputError
from fedjax_het.common.writing import WriteError
from fedjax_het.fleet.device import Fleet
from fedjax_het.runtime import processes
from fedjax_het.simulation.checkpoints import Checkpoints
from fedjax_het.simulation.journal import Journal, require_own
from fedjax_het.simulation.lock import Lock, first_takes
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.sinks import SinkRun, open_sinks


class Records(NamedTuple):
    """The place of a run's results.

    Attributes:
      journal: rows and summary, in memory or in the work directory.
      checkpoints: checkpoints; None without a work directory.
      lock: lock of the work directory; None if this process has none.
      writes: whether this process writes.
    """

    journal: Journal
    checkpoints: Checkpoints | None
    lock: Lock | None
    writes: bool

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Adds to the errors of writing inside how much of the run is safe."""
        try:
            yield
        except WriteError as error:
            step = None if self.checkpoints is None else self.checkpoints.last
            safe = "no round is safe yet, so the run will start over"
            if step is not None:
                safe = f"the run is safe up to round {step}, and continues there"
            raise InputError(f"{error}; {safe}") from None

    def close(self) -> None:
        """Closes the files and lets go of the lock, also after a failure."""
        try:
            with self.writing():
                self.journal.close()
        finally:
            if self.lock is not None:
                self.lock.release()


def open_records(
    workdir: Path | None,
    identity: Mapping[str, Any],
    options: RunOptions,
    config: Mapping[str, Any],
    fleet: Fleet,
) -> Records:
    """Opens the work directory of a run, if there is one.

    Args:
      workdir: work directory, or None.
      identity: identity of the run.
      options: options of the run.
      config: configuration to record; may be empty.
      fleet: fleet of the run.

    Raises:
      InputError: if the directory holds another run, or another process runs in it.
    """
    recorded = {**config, "identity": identity}
    if workdir is None:
        return Records(Journal(None, recorded, None, fleet), None, None, writes=True)
    # Only the first of several processes writes. It also removes damaged checkpoints, and the
    # other processes wait for this before they read.
    writes = processes.is_leader()
    lock = first_takes(workdir)
    try:
        require_own(workdir, identity)
        checkpoints = Checkpoints(workdir / "checkpoints")
        if not writes:
            processes.meet("checkpoints")
        checkpoints.newest(identity)
        if writes:
            processes.meet("checkpoints")
        told = SinkRun(workdir, options.name, config or identity)
        sinks = open_sinks(options.sinks if writes else (), told)
        journal = Journal(workdir if writes else None, recorded, sinks, fleet)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return Records(journal, checkpoints, lock, writes)
