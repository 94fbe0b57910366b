"""Work that several processes share, on one machine or on several with the same file system.

The lock of a job's directory decides who does it; nothing else passes between the processes. A
process that is killed lets go of its locks, so another one takes over its job.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from fedjax_het.common.jsonio import jsonable, read_json
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.problem import Problem
from fedjax_het.report.records import RunRecord
from fedjax_het.runtime import processes
from fedjax_het.simulation.identity import identify
from fedjax_het.simulation.journal import require_own
from fedjax_het.simulation.lock import InUseError
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.start import find_start

_Job = TypeVar("_Job")
_Done = TypeVar("_Done")

# Waits for other processes, the first and the longest, in seconds.
_FIRST_S, _LONGEST_S = 0.5, 30.0


def share(groups: Sequence[Sequence[_Job]], take: Callable[[_Job], _Done]) -> dict[_Job, _Done]:
    """Does jobs together with other processes that call this for the same jobs.

    A process that meets a job of another one leaves the rest of its group to that one, until
    nothing else is left. When all jobs that remain are held by others, it waits for their results,
    and takes over what their processes give up.

    Args:
      groups: jobs. Those of a group cost less if one process does them, because they share compiled
        programs.
      take: function that does a job, or reads the result if the job has been done; raises
        `InUseError` if another process holds it.

    Returns:
      The results by job, in the order of the groups.
    """
    jobs = [job for group in groups for job in group]
    done: dict[_Job, _Done] = {}
    leaves, wait_s = True, _FIRST_S
    while len(done) < len(jobs):
        before, held = len(done), None
        for group in groups:
            for job in group:
                if job in done:
                    continue
                try:
                    done[job] = take(job)
                except InUseError as error:
                    held = error
                    if leaves:
                        break
        if len(done) > before:
            leaves, wait_s = True, _FIRST_S
        elif leaves:
            leaves = False
        else:
            if wait_s == _FIRST_S:
                left = len(jobs) - len(done)
                logging.warning("waiting for %d of %d runs: %s", left, len(jobs), held)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_S)
    return {job: done[job] for job in jobs}


def finished(
    algorithm: Algorithm, problem: Problem, config: Mapping[str, Any], options: RunOptions
) -> RunRecord | None:
    """The record of a run that has ended with these options; takes no lock.

    Args:
      algorithm: method of the run.
      problem: model, data and fleet.
      config: resolved configuration of the run.
      options: options of the run, with a work directory.

    Returns:
      The record; None if the run has not ended, or if its length or its name were others.

    Raises:
      InputError: if the directory holds a run of another configuration, or is damaged.
    """
    place = Path(str(options.workdir))
    # The summary is written last, and removed when a run continues. Processes of one run must take
    # the same turn, although a shared file system may show them different files.
    if not processes.leaders(float(os.path.lexists(place / "summary.json"))):
        return None
    start = find_start(options.initial, problem.model, place)
    require_own(place, identify(algorithm, problem, options, config, start.digest))
    saved = read_json(place / "config.json")
    if saved.get("run") != jsonable(config["run"]):
        return None
    record = RunRecord.load(place)
    return record if record.summary["name"] == (options.name or algorithm.name) else None
