"""What devices did for their tasks: parts, pauses and waiting, and the energy that it takes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_het.contract.clock import Closing, Flight, Status
from fedjax_het.fleet.availability import Availability
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.energy import task_joules
from fedjax_het.fleet.interruption import work_ends


class Effort(NamedTuple):
    """What devices did for their tasks until the merge, arrays of length k.

    Dropped tasks count as whole ones, but nothing of them is sent.

    Attributes:
      download, compute, upload: share of each part that was done, float64[k].
      sent: share of the upload that took place, float64[k].
      paused_s: seconds for which the task was suspended, float64[k].
      lasts_s: seconds from dispatch to arrival or failure, float64[k].
      wait_s: seconds for which the device waited for the merge afterwards, float64[k].
    """

    download: np.ndarray
    compute: np.ndarray
    upload: np.ndarray
    sent: np.ndarray
    paused_s: np.ndarray
    lasts_s: np.ndarray
    wait_s: np.ndarray


def promised(flight: Flight) -> Effort:
    """What devices will do for whole tasks until those arrive or fail, without waiting."""
    done = np.ones((len(flight.client), 3))
    paused_s = np.zeros(len(done))
    if flight.interruptions is not None:
        done, paused_s = flight.interruptions.done, flight.interruptions.paused_s
    download, compute, upload = done.T
    lasts_s = flight.ends_s - flight.dispatched_s
    return Effort(download, compute, upload, upload, paused_s, lasts_s, np.zeros(len(done)))


def effort_of(
    flight: Flight, closing: Closing, presence: Availability, released: bool = False
) -> Effort:
    """What devices did for the tasks that a step settled.

    Args:
      flight: tasks as dispatched.
      closing: decision of the pace on these tasks.
      presence: times at which the devices are on, for the pauses of partial tasks.
      released: whether a client is free once its result has arrived, and does not wait for the
        merge (a pace that refills).
    """
    partial, dropped = (
        np.asarray([status is kind for status in closing.status], bool)
        for kind in (Status.PARTIAL, Status.DROPPED)
    )
    steps = np.where(partial, closing.steps / flight.steps, 1.0)
    download, compute, upload = np.ones(len(steps)), steps, np.ones(len(steps))
    timing, paused_s = flight.timing, np.zeros(len(steps))
    lasts_s = timing.download_s + timing.compute_s * steps + timing.upload_s
    if flight.interruptions is not None:
        done, paused_s, failed = (
            flight.interruptions.done,
            flight.interruptions.paused_s,
            closing.fails,
        )
        download, compute, upload = (
            np.where(failed, share, whole)
            for share, whole in zip(done.T, (download, compute, upload), strict=True)
        )
        if paused_s.any() and partial.any():
            # The pauses of the flight are those of the whole task.
            _, shorter_s = work_ends(presence, flight.client, flight.dispatched_s, lasts_s)
            paused_s = np.where(partial, shorter_s, paused_s)
        lasts_s = np.where(failed, flight.ends_s - flight.dispatched_s, lasts_s + paused_s)
    # A dropped task arrives after the merge, and a failed one never, so they do not wait.
    wait_s = np.maximum(closing.at_s - flight.dispatched_s - lasts_s, 0.0)
    wait_s = wait_s * (closing.merges & (not released))
    sent = np.where(dropped, 0.0, upload)
    return Effort(download, compute, upload, sent, paused_s, lasts_s, wait_s)


def joules_of(fleet: Fleet, flight: Flight, effort: Effort) -> np.ndarray:
    """Joules that devices spent on tasks, float64[k], see `task_joules`.

    A transfer that a failure cut short costs in proportion to what was done of it, and not by whole
    bytes. A task takes no more than the charge that its device had: one that waits on, or whose
    task counts as a whole one because it was dropped, spends what is left.

    Args:
      fleet: devices in round 0.
      flight: tasks as dispatched.
      effort: what the devices did for them.
    """
    flops = flight.timing.flops * effort.compute
    down, up = flight.timing.bytes_down * effort.download, flight.timing.bytes_up * effort.sent

    def of(now: Fleet, i: np.ndarray) -> np.ndarray:
        return task_joules(now, flight.client[i], flops[i], down[i], up[i], effort.wait_s[i])

    joules = at_dispatch(fleet, flight, of)
    if flight.interruptions is None:
        return joules
    return np.minimum(joules, flight.interruptions.left_joules)


def at_dispatch(
    fleet: Fleet, flight: Flight, value: Callable[[Fleet, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The value of each task on the fleet of the round of its dispatch, float64[k].

    Args:
      fleet: devices in round 0.
      flight: tasks as dispatched.
      value: function of a fleet and of the indices of its tasks.
    """
    values = np.empty(len(flight.client))
    for step in set(flight.version.tolist()):
        tasks = np.flatnonzero(flight.version == step)
        values[tasks] = value(fleet.at(step), tasks)
    return values
