r"""Networks that are cut between a device and the server: costs of both halves, times of tasks.

    T_k(m) = transfer_k(m) + max( client_k(m), server(m) )        in parallel: DTFL, equation 5
    T_k    = transfer_k    + client_k + server                    one after the other: SplitFed

A device sends its half of the model and the activations and labels of every processed sample. It
receives its half and, in SplitFed, the gradients of the activations. The server computes on every
client's copy at `server_flops_per_s`; infinity ignores its time, as DTFL's published clock does.
"""

from typing import NamedTuple

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.contract.plan import Timing
from fedjax_het.fleet.bandwidth import TraceLink
from fedjax_het.fleet.cost import CostTable
from fedjax_het.fleet.device import Fleet

# Labels are sent with the activations as 64-bit integers (DTFL's code).
LABEL_BYTES = 8


class Tiers(NamedTuple):
    """M cuts of a network, ordered from the shallowest client half; arrays of length M.

    Tier m (DTFL's paper counts from 1) is entry m - 1. Tier 1 leaves most work to the server.

    Attributes:
      cut: int64, last block of the client half.
      client_flops: float64, FLOPs per sample of a step of the client half and its auxiliary head.
      server_flops: float64, FLOPs per sample of a step of the server half.
      activation_bytes: int64, bytes per sample of the output z of the client half.
      down_bytes: int64, bytes of the downloaded client half, running statistics and head.
      up_bytes: int64, bytes of the uploaded client half, running statistics and head.
    """

    cut: np.ndarray
    client_flops: np.ndarray
    server_flops: np.ndarray
    activation_bytes: np.ndarray
    down_bytes: np.ndarray
    up_bytes: np.ndarray

    @property
    def size(self) -> int:
        """M, the number of tiers."""
        return len(self.cut)


class Bytes(NamedTuple):
    """Bytes that a task transfers, int64 arrays that broadcast over clients and tiers."""

    down: np.ndarray
    up: np.ndarray


# ---- cuts and their prices -----------------------------------------------------------------------


def cuts(num_blocks: int, count: int | None = None) -> np.ndarray:
    """Last blocks of the client halves, int64[M]: every boundary, or the deepest `count`.

    With fewer tiers than boundaries, tier i of M is tier `L - 1 - M + i` of all of them.

    Args:
      num_blocks: number of blocks, L >= 2.
      count: number of tiers, M, within 1..L-1; None for all.

    References:
      methods/dtfl.md 2.
    """
    require(
        num_blocks >= 2,
        f"a model of {num_blocks} block(s)",
        "cannot be cut",
        "use a model of at least two blocks",
    )
    count = num_blocks - 1 if count is None else count
    require(
        1 <= count <= num_blocks - 1,
        f"tiers = {count}",
        f"must be between 1 and the {num_blocks - 1} boundaries of the model's blocks",
        "leave it out to allow them all",
    )
    return np.arange(num_blocks - 1 - count, num_blocks - 1)


def single_cut(num_blocks: int, client_blocks: int) -> np.ndarray:
    """Last block of a client half of `client_blocks` blocks, int64[1].

    Args:
      num_blocks: number of blocks, L >= 2.
      client_blocks: number of blocks of the client half, within 1..L-1.
    """
    boundaries = cuts(num_blocks)
    require(
        1 <= client_blocks <= len(boundaries),
        f"client_blocks = {client_blocks}",
        f"must be between 1 and {len(boundaries)} of the model's {num_blocks} blocks",
        "use 2",
    )
    return boundaries[[client_blocks - 1]]


def price_tiers(cost: CostTable, cut: np.ndarray, *, returned: bool = False) -> Tiers:
    """Prices both halves of the network at every cut.

    Args:
      cost: prices of the blocks.
      cut: last blocks of the client halves, int64[M].
      returned: whether the server computes and returns the gradient of z, and the client half has
        no head (SplitFed).

    Returns:
      The tiers. Client and server together cost a full step, except for the head and, without
      `returned`, for the gradient of z, which is not needed.
    """
    inner = cost.input_grad_flops.copy()
    inner[0] = 0.0  # the gradient of the data is not needed
    behind = np.cumsum(cost.forward_flops + cost.weight_grad_flops + inner)
    client, server = behind[cut], behind[-1] - behind[cut]
    held = np.cumsum(cost.param_bytes)[cut]
    stats = np.cumsum(cost.stats_bytes)[cut]
    if not returned:
        head = cost.exit_forward_flops + cost.exit_weight_grad_flops + cost.exit_input_grad_flops
        client, server = client + head[cut], server - cost.input_grad_flops[cut + 1]
        held = held + cost.exit_param_bytes[cut]
    up = held + stats if cost.uploads_stats else held
    return Tiers(cut, client, server, cost.activation_bytes[cut], held + stats, up)


def server_speed(server_flops_per_s: float | None, fleet: Fleet) -> float:
    """FLOP/s of the server on one client's copy; None for the speed of the fastest device."""
    if server_flops_per_s is None:
        return float(np.max(fleet.flops_per_s))
    require(
        server_flops_per_s > 0,
        f"server_flops_per_s = {server_flops_per_s}",
        "must be positive",
        "use infinity for a server whose time is left out",
    )
    return float(server_flops_per_s)


# ---- bytes and seconds of tasks ------------------------------------------------------------------


def split_bytes(
    tiers: Tiers, tier: np.ndarray, samples: np.ndarray, labels: int, *, returned: bool = False
) -> Bytes:
    """Bytes of tasks of `samples` samples in tiers `tier` (from 0); both broadcast.

    Args:
      tiers: prices of the tiers.
      tier: tier of each task, int64[...].
      samples: number of processed samples, int64[...].
      labels: number of labels of a sample: 1, or the length of its sequence.
      returned: whether the gradient of every activation is sent back.
    """
    sent = samples * tiers.activation_bytes[tier]
    up = sent + samples * (LABEL_BYTES * labels) + tiers.up_bytes[tier]
    down = tiers.down_bytes[tier] + (sent if returned else 0 * sent)
    return Bytes(down, up)


def transfer_s(fleet: Fleet, clients: np.ndarray, moved: Bytes) -> np.ndarray:
    """Expected seconds of both transfers at the links' mean rates, in the shape of `moved`.

    Args:
      fleet: fleet in the current round.
      clients: ids of the clients, int64[k].
      moved: bytes of each task, shape [k] or [k, M].
    """
    extra = (slice(None),) + (None,) * (moved.up.ndim - 1)

    def one_way(amount: np.ndarray, rate: np.ndarray, trace: TraceLink | None) -> np.ndarray:
        rate = rate if trace is None else trace.mean_bytes_per_s()
        return fleet.latency_s[clients][extra] + amount / rate[clients][extra]

    down = one_way(moved.down, fleet.downlink_bytes_per_s, fleet.downlink_trace)
    return down + one_way(moved.up, fleet.uplink_bytes_per_s, fleet.uplink_trace)


def split_timing(
    fleet: Fleet,
    clients: np.ndarray,
    client_flops: np.ndarray,
    server_s: np.ndarray,
    moved: Bytes,
    now_s: float | np.ndarray,
    rng: np.random.Generator,
    *,
    parallel: bool = True,
) -> tuple[Timing, np.ndarray]:
    """The timing of the tasks of a round.

    Args:
      fleet: fleet in the current round.
      clients: ids of the clients, int64[k].
      client_flops: work of each device in FLOPs, float64[k].
      server_s: time of the server on each client's copy, float64[k].
      moved: bytes of each task, shape [k].
      now_s: virtual time of dispatch in seconds.
      rng: generator that draws the jitter.
      parallel: whether server and device compute in parallel.

    Returns:
      The timing, whose `compute_s` covers both sides and whose `flops` are the device's; and the
      compute time of the device without the server in seconds, float64[k].
    """
    client_s = fleet.timing(clients, client_flops, 0, 0, now_s, rng).compute_s
    compute_s = np.maximum(client_s, server_s) if parallel else client_s + server_s
    both = fleet.timing(
        clients, client_flops, moved.down, moved.up, now_s, rng, compute_s=compute_s
    )
    return both, client_s
