"""Time: what sub-models weigh, how one server link carries them, and when the server merges."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from fedjax_het.algorithms.prfl.ranking import Network
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import check_types
from fedjax_het.contract.clock import Closing, Flight, Pace, arrival_order, barrier, take
from fedjax_het.contract.plan import Situation, Timing
from fedjax_het.fleet.cost import price
from fedjax_het.fleet.published import MIB
from fedjax_het.problem import Problem

# Bytes per kept weight on the way (down, up), and whether a bitmap of all weights goes with them.
SIZES = {"bitmap": (4, 4, True), "index": (8, 8, False), "coo64": (20, 4, False)}
Way = Literal["residual", "distinct", "unicast"]
WAYS: tuple[Way, ...] = get_args(Way)
# Merges at the start that wait for everyone, so that all buffers are filled.
WARM_UP = 2
_CLUSTER_S = 0.15


@dataclass(frozen=True)
class Links:
    """The server's link, and what is sent over it.

    Attributes:
      sizes: encoding of sub-models, see `model_bytes`.
      server_up_bytes_per_s: rate of the server's link towards the clients; inf for no limit.
      server_down_bytes_per_s: rate at which it receives.
      server_jitter: log-std of one sample of the factor on both, 20 are averaged.
      slack_s: seconds added to the time that the server needs to send a broadcast.
    """

    sizes: Literal["bitmap", "index", "coo64"] = "bitmap"
    server_up_bytes_per_s: float = 10 * MIB
    server_down_bytes_per_s: float = 50 * MIB
    server_jitter: float = 0.1
    slack_s: float = 0.1

    def __post_init__(self) -> None:
        check_types(vars(self), "link option", type(self))
        up, down, jitter = (
            self.server_up_bytes_per_s,
            self.server_down_bytes_per_s,
            self.server_jitter,
        )
        require(
            up > 0 and down > 0 and jitter >= 0,
            f"server link of {up} and {down} bytes/s, jitter {jitter}",
            "must be positive, with a jitter of at least 0",
            "use inf for a link without a limit",
        )
        require(self.slack_s >= 0, f"slack_s = {self.slack_s}", "must be at least 0", "use 0.1")


class Traffic(NamedTuple):
    """The last task of each client (n of them) on the server's link.

    Attributes:
      sent_s: float64[n, 2], when it was sent out, and when it arrives; -1 before the first.
      uplink: float64[n, 3], its upload as (from, to, mean rate).
    """

    sent_s: np.ndarray
    uplink: np.ndarray


def no_traffic(clients: int) -> Traffic:
    """Before anything is sent out."""
    return Traffic(np.full((clients, 2), -1.0), np.zeros((clients, 3)))


def priced(
    problem: Problem,
    situation: Situation,
    traffic: Traffic,
    net: Network,
    count: np.ndarray,
    samples: np.ndarray,
    *,
    dense_share: float,
    links: Links,
    way: Way,
) -> tuple[Timing, float, Traffic]:
    """What tasks cost on the devices as they are now, with one server link for all transfers.

    Args:
      problem: model, data and fleet.
      situation: cohort that is sent out, and the time.
      traffic: tasks on the server's link so far.
      net: sizes of the model.
      count: int64[k], weights of the sub-models.
      samples: int64[k], samples that each task processes.
      dense_share: option of that name, see `Density`.
      links: the server's link.
      way: distribution of sub-models, see `sent_bytes`.

    Returns:
      The prices, the seconds until the server is ready for another broadcast, and the traffic with
      these tasks.
    """
    clients, now_s, rng = situation.clients, situation.now_s, situation.rng
    down, up = model_bytes(links.sizes, count, net.weights, net.dense)
    work = dense_share + (1 - dense_share) * count / net.weights
    alone = price(
        problem.cost,
        problem.fleet.at(situation.round),
        clients,
        0,
        None,
        samples,
        now_s,
        rng,
        flops=samples * problem.cost.step_flops() * work,
        bytes_down=down,
        bytes_up=up,
    )
    rate_up = links.server_up_bytes_per_s * lognormal_mean(rng, links.server_jitter)
    rate_down = links.server_down_bytes_per_s * lognormal_mean(rng, links.server_jitter)
    fetched_s = download_s(way, down, alone.download_s, rate_up)
    others = np.setdiff1d(np.flatnonzero(traffic.sent_s[:, 1] > now_s), clients)
    start_s = now_s + fetched_s + alone.compute_s
    lasts_s = upload_s(start_s, up, alone.upload_s, rate_down, traffic.uplink[others])
    timing = alone._replace(download_s=fetched_s, upload_s=lasts_s)
    sent_s, uplink = traffic.sent_s.copy(), traffic.uplink.copy()
    sent_s[clients] = np.stack([np.full(len(clients), now_s), now_s + timing.total_s], axis=1)
    rate = up / np.maximum(lasts_s, 1e-12)
    uplink[clients] = np.stack([start_s, start_s + lasts_s, rate], axis=1)
    return timing, sent_bytes(way, down) / rate_up + links.slack_s, Traffic(sent_s, uplink)


def model_bytes(
    kind: str, kept: np.ndarray, weights: int, dense: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of sub-models, down and up, int64[k] both.

    Args:
      kind: "bitmap": 4 B a kept weight and a bit for every weight. "index": 4 B value and 4 B
        index. "coo64": the author's, 20 B down (two int64 indices), 4 B up.
      kept: int64[k], weights left in each.
      weights: N, prunable weights of the model.
      dense: parameters that are never pruned, at 4 B.
    """
    require_known(kind, SIZES, "sizes")
    down, up, bitmap = SIZES[kind]
    rest = 4 * dense + (-(-weights // 8) if bitmap else 0)
    kept = np.asarray(kept, np.int64)
    return down * kept + rest, up * kept + rest


def sent_bytes(way: str, sizes: np.ndarray) -> int:
    """What the server sends so that clients with sub-models of these sizes get them all.

    Args:
      way: "residual": the differences between nested sub-models, each once: the largest.
        "distinct": every different sub-model once. "unicast": every client its own.
      sizes: int64[k], bytes.
    """
    require_known(way, WAYS, "distribution")
    if way == "residual":
        return int(np.max(sizes))
    return int(np.sum(np.unique(sizes) if way == "distinct" else sizes))


def download_s(
    way: str, sizes: np.ndarray, own_s: np.ndarray, server_bytes_per_s: float
) -> np.ndarray:
    """Seconds until each client has its sub-model, float64[k].

    The server sends in ascending size to a relay, from which everyone fetches what is there
    already at its own rate; both are constant during the transfer. The pieces of a client are the
    first ones that are sent (residual), or one run of bytes after those of smaller models.

    Args:
      way: distribution of sub-models, see `sent_bytes`.
      sizes: int64[k], bytes.
      own_s: float64[k], seconds on each client's own link.
      server_bytes_per_s: rate of the server's link; inf for none.
    """
    before = np.zeros(len(sizes))
    if way == "distinct":
        different = np.unique(sizes)
        before = (np.cumsum(different) - different)[np.searchsorted(different, sizes)]
    elif way == "unicast":
        order = np.argsort(sizes, kind="stable")
        before[order] = np.cumsum(sizes[order]) - sizes[order]
    return before / server_bytes_per_s + np.maximum(own_s, sizes / server_bytes_per_s)


def upload_s(
    start_s: np.ndarray,
    sizes: np.ndarray,
    own_s: np.ndarray,
    server_bytes_per_s: float,
    busy: np.ndarray,
) -> np.ndarray:
    """Seconds each upload takes where all share the server's receiving rate, float64[k].

    Fluid, first come first served by start: an upload gets its own rate as far as earlier ones
    leave it. Those in flight since before have precedence, whenever they start.

    Args:
      start_s: float64[k], when each may start.
      sizes: int64[k], bytes.
      own_s: float64[k], seconds at the client's own rate.
      server_bytes_per_s: rate at which the server can receive; inf for no limit.
      busy: float64[m, 3], uploads since before as (from, to, mean rate).
    """
    rate = sizes / np.maximum(own_s, 1e-12)
    if np.sum(rate) + np.sum(busy[:, 2]) <= server_bytes_per_s:
        return own_s
    # What is taken of the server's rate: constant from each edge to the next one.
    edges = np.append(-np.inf, np.unique(busy[:, :2]))
    during = (busy[:, :1] <= edges) & (edges < busy[:, 1:2])
    taken = busy[:, 2] @ during
    lasts_s = np.zeros(len(sizes))
    for i in np.lexsort((np.arange(len(sizes)), start_s)):
        first = int(np.searchsorted(edges, start_s[i], side="right"))
        edges = np.insert(edges, first, start_s[i])
        taken = np.insert(taken, first, taken[first - 1])
        free = np.clip(server_bytes_per_s - taken[first:], 0.0, rate[i])
        free[-1] = min(rate[i], server_bytes_per_s)  # when all the others are done
        so_far = np.cumsum(free * np.diff(edges[first:], append=np.inf))
        last = int(np.searchsorted(so_far, sizes[i]))
        left = sizes[i] - (so_far[last - 1] if last else 0.0)
        done_s = edges[first + last] + left / free[last]
        edges = np.insert(edges, first + last + 1, done_s)
        taken = np.insert(taken, first + last + 1, taken[first + last])
        taken[first : first + last + 1] += free[: last + 1]
        lasts_s[i] = done_s - start_s[i]
    return lasts_s


def lognormal_mean(rng: np.random.Generator, sigma: float, draws: int = 20) -> float:
    """Mean of `draws` samples of LogNormal(0, sigma): the author's factor on a link's rate."""
    return float(np.mean(rng.lognormal(0.0, sigma, draws))) if sigma else 1.0


def window_rule(interval_s: float, *, single: bool = False) -> Pace:
    """Semi-asynchronous windows (methods/pr_fl.md 8).

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
            return take(flight, arrival_order(flight)[:1], end_s)
        order = np.sort(arrives_s)
        if order.size > 1 and order[1] > end_s:
            together = np.append(np.diff(order) > _CLUSTER_S, True)
            end_s = max(order[np.argmax(together)], order[1]) + interval_s
        return take(flight, np.flatnonzero(arrives_s <= end_s), end_s)

    name = "one per window" if single else "window rule"
    return Pace(f"{name}({interval_s:g} s)", close, may_wait=True)
