"""Failures and pauses in the middle of tasks, drawn when the tasks are dispatched."""

import numpy as np

from fedjax_het.contract.clock import Interruptions
from fedjax_het.contract.plan import Plan
from fedjax_het.fleet.battery import part_joules, runs_out_after
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
    spent. If its device goes off, it goes on, fails or pauses by `on_interrupt`.

    Args:
      fleet: fleet in the round of the dispatch.
      plan: tasks with their prices.
      now_s: virtual time of dispatch in seconds, at which all clients are on.
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
    if left_joules is not None:
        joules = part_joules(fleet, clients, plan.timing)
        works_s = np.minimum(works_s, runs_out_after(joules, plan.timing, left_joules))
    deadline_s = now_s + plan.deadline_s
    if fleet.on_interrupt == "pause":
        fails_s, paused_s = _paused(fleet, clients, now_s, total_s, works_s)
        usable_s = np.full(len(clients), np.inf)
        if np.isfinite(deadline_s):
            usable_s = fleet.presence.on_between(clients, now_s, deadline_s)
    else:
        until_s = fleet.leaves_s[clients]
        if fleet.on_interrupt == "lose":
            until_s = fleet.presence.on_until(clients, now_s)
        fails_s = np.minimum(now_s + works_s, until_s)
        fails_s = np.where(fails_s < now_s + total_s, fails_s, np.inf)
        paused_s = np.zeros(len(clients))
        usable_s = np.full(len(clients), deadline_s - now_s)
    # A task takes some time, so that a run goes on however soon its tasks fail.
    return Interruptions(np.maximum(fails_s, np.nextafter(now_s, np.inf)), paused_s, usable_s)


def _paused(
    fleet: Fleet, clients: np.ndarray, now_s: float, total_s: np.ndarray, works_s: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Times of failure, and seconds of pauses until the end, of tasks that wait for their devices.

    Args:
      fleet: fleet in the round of the dispatch.
      clients: ids of the clients, int64[k].
      now_s: virtual time of dispatch in seconds.
      total_s: seconds of work of each task, float64[k].
      works_s: seconds of work until it fails, float64[k]; inf for none.

    Returns:
      Two arrays float64[k]; the times are inf for tasks that arrive.
    """
    presence = fleet.presence
    fails = works_s < total_s
    works_s = np.minimum(works_s, total_s)
    # Exact for a task whose device does not go off.
    whole = presence.on_until(clients, now_s) >= now_s + works_s
    ends_s = np.where(whole, now_s + works_s, presence.spent_at(clients, now_s, works_s))
    # A task whose device is never on for long enough fails when the device is off for good.
    gone, gone_s = np.isinf(ends_s), presence.off_after(clients)
    left_s = presence.on_between(clients, now_s, np.where(gone, gone_s, now_s))
    ends_s, works_s = np.where(gone, gone_s, ends_s), np.where(gone, left_s, works_s)
    paused_s = np.where(whole, 0.0, np.maximum(ends_s - now_s - works_s, 0.0))
    return np.where(gone | fails, ends_s, np.inf), paused_s
