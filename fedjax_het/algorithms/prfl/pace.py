"""When PR-FL's server merges."""

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.contract.clock import Closing, Flight, Pace, barrier, take

# Merges at the start that wait for everyone, so that all buffers are filled.
WARM_UP = 2
_CLUSTER_S = 0.15


def window_rule(interval_s: float, *, single: bool = False) -> Pace:
    """Semi-asynchronous windows, section 8.

    A window ends `Plan.deadline_s` after the newest dispatch: the time that the server needs to
    send the models out, and at least `interval_s`. If nothing has arrived, it is prolonged by whole
    intervals. If a single client made it, it is prolonged until an interval after the second, and
    after the last of those that arrived together with the first. The first two merges wait for
    everyone, so that all buffers are filled.

    Args:
      interval_s: shortest window.
      single: merges one arrival per window, the one that has waited longest (the author's FedAsyn).
    """
    require(
        np.isfinite(interval_s) and interval_s > 0,
        f"interval_s = {interval_s}",
        "must be a positive number of seconds",
        "the author uses 1 for CIFAR-10 and 0.5 for FEMNIST",
    )
    everyone = barrier().close

    def close(flight: Flight) -> Closing:
        newest = np.max(flight.version)
        arrives_s = flight.arrives_s
        if newest < WARM_UP:
            return everyone(flight)
        end_s = float(np.max(flight.deadline_s[flight.version == newest]))
        soonest_s = float(np.min(arrives_s))
        if soonest_s > end_s:
            end_s += float(np.ceil((soonest_s - end_s) / interval_s)) * interval_s
        if single:
            return take(flight, np.lexsort((flight.client, arrives_s))[:1], end_s)
        order = np.sort(arrives_s)
        if order.size > 1 and order[1] > end_s:
            together = np.append(np.diff(order) > _CLUSTER_S, True)
            end_s = max(order[np.argmax(together)], order[1]) + interval_s
        return take(flight, np.flatnonzero(arrives_s <= end_s), end_s)

    name = "one per window" if single else "window rule"
    return Pace(f"{name}({interval_s:g} s)", close, may_wait=True)
