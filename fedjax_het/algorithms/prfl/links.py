"""What sub-models weigh on the wire, and how one server link carries them to everybody."""

import numpy as np

from fedjax_het.common.errors import require_known

# Bytes per kept weight on the way (down, up), and whether a bitmap of all weights goes with them.
SIZES = {"bitmap": (4, 4, True), "index": (8, 8, False), "coo64": (20, 4, False)}
WAYS = ("residual", "distinct", "unicast")


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
      way: see `sent_bytes`.
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
      server_bytes_per_s: what the server can receive; inf for no limit.
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
