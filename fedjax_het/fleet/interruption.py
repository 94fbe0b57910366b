"""Failures and pauses in the middle of tasks, drawn when the tasks are dispatched."""

import numpy as np

from fedjax_het.contract.clock import Interruptions
from fedjax_het.contract.plan import Plan, Timing
from fedjax_het.fleet.availability import Availability
from fedjax_het.fleet.battery import covered, part_joules
from fedjax_het.fleet.device import Fleet


def interruptions(
    fleet: Fleet,
    plan: Plan,
    now_s: float,
    rng: np.random.Generator,
    left_joules: np.ndarray | None = None,
) -> Interruptions:
    """What goes wrong with the tasks of a plan on this fleet, see `Fleet.interrupts`.

    A task fails with the probability `failure_rate`, at a moment drawn uniformly from the seconds
    for which its device works on it; when its client leaves; and when the charge of its device is
    spent. If its device goes off, it goes on, fails or pauses by `on_interrupt`. If its device is
    off at the dispatch, because a selection has asked clients meanwhile, it goes on, fails at once
    or waits until the device is on; if the client has left, it fails at once.

    Args:
      fleet: fleet in the round of the dispatch.
      plan: tasks with their prices.
      now_s: virtual time of dispatch in seconds.
      rng: generator of the failures; a client's draw does not depend on its place in the plan.
      left_joules: charge of each device, float64[k]; None for no limits.

    Returns:
      The interruptions.
    """
    clients, total_s = plan.clients, np.asarray(plan.timing.total_s, np.float64)
    chance = np.empty((len(clients), 2))
    chance[np.argsort(clients)] = rng.random(chance.shape)
    fails = chance[:, 0] < fleet.failure_rate[clients]
    # Seconds of work until the failure; inf for none.
    works_s = np.where(fails, chance[:, 1] * total_s, np.inf)
    enough = np.ones((3, len(clients)))
    if left_joules is None:
        left_joules = np.full(len(clients), np.inf)
    else:
        enough = covered(part_joules(fleet, clients, plan.timing), left_joules)
        lasts_s = np.sum(enough * _parts_s(plan.timing), axis=0)
        works_s = np.where((enough < 1).any(axis=0), np.minimum(works_s, lasts_s), works_s)
    presence, deadline_s = fleet.presence, now_s + plan.deadline_s
    if fleet.on_interrupt == "pause":
        fails_s, paused_s, works_s = _paused(presence, clients, now_s, total_s, works_s)
        until_s, usable_s = presence.off_after(clients), np.full(len(clients), np.inf)
        if np.isfinite(deadline_s):
            usable_s = presence.on_between(clients, now_s, deadline_s)
    else:
        until_s = fleet.leaves_s[clients]
        if fleet.on_interrupt == "lose":
            on = presence.next_available(clients, now_s) <= now_s
            until_s = np.where(on, presence.on_until(clients, now_s), now_s)
        fails = np.isfinite(works_s) | (until_s < now_s + total_s)
        fails_s = np.where(fails, np.minimum(now_s + works_s, until_s), np.inf)
        works_s = np.minimum(works_s, until_s - now_s)
        paused_s = np.zeros(len(clients))
        usable_s = np.full(len(clients), deadline_s - now_s)
    done = np.minimum(_done_after(plan.timing, works_s), enough) * (until_s > now_s)
    done = np.where(np.isfinite(fails_s), done, 1.0).T
    # A task takes some time, so that a run goes on however soon its tasks fail.
    fails_s = np.maximum(fails_s, np.nextafter(now_s, np.inf))
    return Interruptions(fails_s, paused_s, usable_s, done, left_joules)


def work_ends(
    presence: Availability,
    clients: np.ndarray,
    now_s: float | np.ndarray,
    works_s: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Times at which work that pauses while devices are off is done, and seconds of the pauses.

    Args:
      presence: times at which the devices are on.
      clients: ids of the clients, int64[k].
      now_s: virtual time at which the work begins in seconds, a number or float64[k].
      works_s: seconds of work, float64[k].

    Returns:
      Two arrays float64[k]; inf for a device that is never on for so long.
    """
    ends_s = now_s + works_s
    # Exact for work whose device does not go off.
    whole = presence.next_available(clients, now_s) <= now_s
    whole &= presence.on_until(clients, now_s) >= ends_s
    ends_s = np.where(whole, ends_s, presence.spent_at(clients, now_s, works_s))
    return ends_s, np.where(whole, 0.0, np.maximum(ends_s - now_s - works_s, 0.0))


def _parts_s(timing: Timing) -> np.ndarray:
    """Seconds of download, computation and upload, float64[3, k]."""
    return np.stack([timing.download_s, timing.compute_s, timing.upload_s])


def _done_after(timing: Timing, works_s: np.ndarray) -> np.ndarray:
    """Share of each part that is done after so many seconds of work, float64[3, k]."""
    parts_s = _parts_s(timing)
    after_s = works_s - (np.cumsum(parts_s, axis=0) - parts_s)
    share = np.divide(after_s, parts_s, out=(after_s >= 0) * 1.0, where=parts_s > 0)
    return np.clip(share, 0.0, 1.0)


def _paused(
    presence: Availability,
    clients: np.ndarray,
    now_s: float,
    total_s: np.ndarray,
    works_s: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Failures, and seconds of pauses and of work, of tasks that wait for their devices.

    Args:
      presence: times at which the devices are on.
      clients: ids of the clients, int64[k].
      now_s: virtual time of dispatch in seconds.
      total_s: seconds of work of each task, float64[k].
      works_s: seconds of work until it fails, float64[k]; inf for none.

    Returns:
      Times of failure, inf for tasks that arrive, and seconds of pauses and of work until the end
      of the task; three arrays float64[k].
    """
    fails = np.isfinite(works_s)
    works_s = np.minimum(works_s, total_s)
    ends_s, paused_s = work_ends(presence, clients, now_s, works_s)
    # A task whose device is never on for long enough fails when the device is off for good.
    gone, gone_s = np.isinf(ends_s), presence.off_after(clients)
    left_s = presence.on_between(clients, now_s, np.where(gone, gone_s, now_s))
    ends_s, works_s = np.where(gone, gone_s, ends_s), np.where(gone, left_s, works_s)
    paused_s = np.where(gone, np.maximum(ends_s - now_s - works_s, 0.0), paused_s)
    return np.where(gone | fails, ends_s, np.inf), paused_s, works_s
