"""Times: sizes of sub-models, transfers over one server link, and the pace of the server."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from fedjax_het.algorithms.prfl.ranking import Network
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Unlimited
from fedjax_het.common.options import check_types
from fedjax_het.contract.clock import Closing, Flight, Pace, arrival_order, barrier, take
from fedjax_het.contract.plan import Situation, Timing
from fedjax_het.fleet.cost import price
from fedjax_het.fleet.published import MIB
from fedjax_het.problem import Problem

# Bytes per kept weight (down, up), and whether a bitmap of all weights is sent.
SIZES = {
    "bitmap": (4, 4, True),
    "dense": (4, 4, False),
    "index": (8, 8, False),
    "coo64": (20, 4, False),
}
Way = Literal["residual", "distinct", "unicast"]
WAYS: tuple[Way, ...] = get_args(Way)
# Number of first merges that wait for all clients, so that all buffers are filled.
WARM_UP = 2
_CLUSTER_S = 0.15


@dataclass(frozen=True)
class Links:
    """Options of the server's link.

    Attributes:
      sizes: encoding of sub-models, see `model_bytes`.
      server_up_bytes_per_s: rate at which the server sends; inf for no limit.
      server_down_bytes_per_s: rate at which the server receives; inf for no limit.
      server_jitter: log-std of one sample of the factor on both rates; 20 samples are averaged.
      slack_s: seconds added to the time of a broadcast by the server.
    """

    sizes: Literal["bitmap", "dense", "index", "coo64"] = "bitmap"
    server_up_bytes_per_s: Unlimited = 10 * MIB
    server_down_bytes_per_s: Unlimited = 50 * MIB
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
            up > 0 and down > 0 and 0 <= jitter <= 10,
            f"server link of {up} and {down} bytes/s, jitter {jitter}",
            "must be positive, with a jitter of at least 0 and at most 10",
            "use inf for a link without a limit",
        )
        require(self.slack_s >= 0, f"slack_s = {self.slack_s}", "must be at least 0", "use 0.1")


class Traffic(NamedTuple):
    """The last task of each of n clients on the server's link, as planned.

    The upload of a task that fails or pauses keeps its planned place on the link, so that later
    uploads make room for it all the same.

    Attributes:
      sent_s: float64[n, 2], times of dispatch and of arrival; -1 before the first task.
      uplink: float64[n, 3], upload as (start, end, mean rate).
    """

    sent_s: np.ndarray
    uplink: np.ndarray


def no_traffic(clients: int) -> Traffic:
    """Traffic before the first dispatch."""
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
    """Prices of tasks in the current fleet, with one server link for all transfers.

    Args:
      problem: model, data and fleet.
      situation: cohort and time of dispatch.
      traffic: tasks on the server's link so far.
      net: sizes of the model.
      count: number of weights of the sub-models, int64[k].
      samples: number of samples that each task processes, int64[k].
      dense_share: option of this name of `Density`.
      links: options of the server's link.
      way: distribution of sub-models, see `sent_bytes`.

    Returns:
      The timing, the seconds until the server is ready for another broadcast, and the traffic with
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
    """Bytes of sub-models, down and up, int64[k] each.

    Args:
      kind: encoding. "bitmap": 4 B per kept weight and a bit per weight. "dense": 4 B per kept
        weight without its place, as the author's runs count whole models. "index": 4 B value and
        4 B index per kept weight. "coo64": as the author's code encodes sub-models, 20 B down (two
        int64 indices), 4 B up.
      kept: number of kept weights of each sub-model, int64[k].
      weights: number of prunable weights of the model, N.
      dense: number of parameters that are never pruned, of 4 B each.
    """
    require_known(kind, SIZES, "sizes")
    down, up, bitmap = SIZES[kind]
    rest = 4 * dense + (-(-weights // 8) if bitmap else 0)
    kept = np.asarray(kept, np.int64)
    return down * kept + rest, up * kept + rest


def sent_bytes(way: str, sizes: np.ndarray) -> int:
    """Bytes that the server sends to clients with sub-models of these sizes.

    Args:
      way: distribution. "residual": the differences between nested sub-models, each once, which add
        up to the largest. "distinct": every different sub-model once. "unicast": one copy per
        client.
      sizes: bytes of each sub-model, int64[k].
    """
    require_known(way, WAYS, "distribution")
    if way == "residual":
        return int(np.max(sizes))
    return int(np.sum(np.unique(sizes) if way == "distinct" else sizes))


def download_s(
    way: str, sizes: np.ndarray, own_s: np.ndarray, server_bytes_per_s: float
) -> np.ndarray:
    """Seconds until each client has its sub-model, float64[k].

    The server sends in the order of size to a relay, from which every client downloads the
    available bytes at its own rate; both rates are constant during the transfer. A client's bytes
    are the first that are sent (residual), or one range of bytes after those of smaller models.

    Args:
      way: distribution of sub-models, see `sent_bytes`.
      sizes: bytes of each sub-model, int64[k].
      own_s: seconds on each client's own link, float64[k].
      server_bytes_per_s: rate at which the server sends; inf for no limit.
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
    """Seconds of each upload if all share the server's receiving rate, float64[k].

    The model is fluid, with priority by start time: an upload gets at most its own rate and the
    rate that earlier uploads leave. Uploads of earlier dispatches have priority at any start time.

    Args:
      start_s: start time of each upload, float64[k].
      sizes: bytes of each upload, int64[k].
      own_s: seconds at the client's own rate, float64[k].
      server_bytes_per_s: rate at which the server receives; inf for no limit.
      busy: uploads of earlier dispatches as (start, end, mean rate), float64[m, 3].
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
    """Mean of `draws` samples of LogNormal(0, sigma), the author's factor on a link's rate."""
    return float(np.mean(rng.lognormal(0.0, sigma, draws))) if sigma else 1.0


def window_rule(interval_s: float, *, single: bool = False) -> Pace:
    """Semi-asynchronous windows (methods/pr_fl.md 8).

    A window ends `Plan.deadline_s` after the newest dispatch: the time in which the server sends
    the models, and at least `interval_s`. If no task has ended, it is extended by whole
    intervals. If a single client has arrived, it is extended until one interval after the second
    arrival, and after the last of those that arrived together with the first. The first two merges
    wait for all clients, so that all buffers are filled. Failed tasks leave with the first window
    that ends later; a window in which tasks only failed merges nothing.

    Args:
      interval_s: shortest window in seconds.
      single: whether a window merges only the earliest arrival (the author's FedAsyn).
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
        if newest < WARM_UP:
            return everyone(flight)
        end_s = float(np.max(flight.deadline_s[flight.version == newest]))
        soonest_s = float(np.min(flight.ends_s))
        if soonest_s > end_s:
            end_s += float(np.ceil((soonest_s - end_s) / interval_s)) * interval_s
            end_s = max(end_s, soonest_s)
        if single:
            order = arrival_order(flight)
            return take(flight, order[flight.arrives_s[order] <= end_s][:1], end_s)
        order = np.sort(flight.arrives_s[~flight.failed])
        if order.size > 1 and order[0] <= end_s < order[1]:
            together = np.append(np.diff(order) > _CLUSTER_S, True)
            end_s = max(order[np.argmax(together)], order[1]) + interval_s
        return take(flight, np.flatnonzero(flight.arrives_s <= end_s), end_s)

    name = "one per window" if single else "window rule"
    return Pace(f"{name}({interval_s:g} s)", close, may_wait=True)
