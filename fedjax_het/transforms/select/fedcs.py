"""FedCS: as many clients as can be scheduled before a deadline."""

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.options import checked
from fedjax_het.contract.plan import Timing
from fedjax_het.contract.selection import Candidates
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.select.parts import selecting, stateless


@checked
def fedcs(*, deadline_s: float, asked: Count | None = None) -> Transformation:
    """FedCS: adds the client that lengthens the round least, until deadline or cohort are full.

    The round begins with the slowest download. Clients then compute side by side and upload one
    after the other, as in the paper, for a shared link. On the virtual clock, whose links are
    independent, a round without jitter ends no later than scheduled. Durations are those that the
    method would plan for the clients. Ties go to the lower id.

    Args:
      deadline_s: seconds within which all uploads must end; the clock closes the round by the pace
        of the method, not by this value.
      asked: number of available clients, drawn uniformly, that are asked for their durations; at
        least as many as the cohort has. None asks all of them.

    References:
      Nishio and Yonetani, *Client Selection for Federated Learning with Heterogeneous Resources in
      Mobile Edge*, ICC 2019, Algorithms 2 and 3.
    """
    require(deadline_s > 0, f"deadline_s = {deadline_s}", "must be positive", "use 180")
    require(
        asked is None or asked >= 1,
        f"asked = {asked}",
        "must be at least 1 client",
        "use ten times the cohort size, or None for all",
    )

    def choose(candidates: Candidates) -> np.ndarray:
        assert candidates.price is not None
        pool, count = candidates.pool, max(asked or 0, candidates.wanted)
        if asked is None or asked >= len(pool):
            clients = pool.ids
        else:
            clients = np.sort(pool.at(candidates.rng.choice(len(pool), count, replace=False)))
        timing = candidates.price(clients)
        chosen = scheduled(timing, candidates.wanted, deadline_s)
        require(
            chosen.size > 0,
            f"deadline_s = {deadline_s} of fedcs",
            f"is less than the {np.min(timing.total_s):.6g} s of the fastest client that was asked",
            f"use {2 * np.min(timing.total_s):.6g} or more",
        )
        return clients[chosen]

    return selecting("fedcs", stateless(choose), deadline_s=deadline_s, asked=asked)


def scheduled(timing: Timing, wanted: int, deadline_s: float) -> np.ndarray:
    """Indices of the clients that FedCS schedules, in order of their uploads, int64[k].

    Args:
      timing: prices of the candidates.
      wanted: largest number of clients.
      deadline_s: seconds within which all uploads must end.
    """
    # A client that is scheduled has an endless upload from then on.
    down, work, up = timing.download_s, timing.compute_s, timing.upload_s.astype(np.float64)
    starts_s, ends_s, total_s = np.empty((3, len(down)))
    chosen: list[int] = []
    slowest_s = uploaded_s = 0.0  # the slowest download; the end of the last upload after it
    while len(chosen) < min(wanted, len(down)):
        np.maximum(slowest_s, down, out=starts_s)
        np.maximum(work, uploaded_s, out=ends_s)
        ends_s += up
        np.add(starts_s, ends_s, out=total_s)
        best = int(np.argmin(total_s))
        if total_s[best] > deadline_s:
            break  # the others would end even later
        chosen.append(best)
        up[best] = np.inf
        slowest_s, uploaded_s = float(starts_s[best]), float(ends_s[best])
    return np.asarray(chosen, np.int64)
