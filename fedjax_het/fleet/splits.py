r"""Networks cut between a device and the server: what either half costs, and how long tasks take.

    T_k(m) = transfer_k(m) + max( client_k(m), server(m) )        side by side: DTFL, equation 5
    T_k    = transfer_k    + client_k + server                    one after the other: SplitFed

A device sends the activations and labels of every sample it processes and its half of the model;
it receives its half, and in SplitFed the gradients of the activations. The server works on every
client's copy at `server_flops_per_s`; infinity leaves its time out, as DTFL's published clock does.
"""

from typing import NamedTuple

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.contract.plan import Timing
from fedjax_het.fleet.bandwidth import TraceLink
from fedjax_het.fleet.cost import CostTable
from fedjax_het.fleet.device import Fleet

# Labels travel with the activations, as 64-bit integers (DTFL's code).
LABEL_BYTES = 8


class Tiers(NamedTuple):
    """M cuts of a network, shallowest client half first; arrays of length M.

    Tier m (DTFL's paper counts from 1) is entry m - 1. Tier 1 leaves most work to the server.

    Attributes:
      cut: int64, last block of the client half.
      client_flops: float64, step of the client half and of its auxiliary head, per sample.
      server_flops: float64, step of the server half, per sample.
      activation_bytes: int64, output z of the client half, per sample.
      down_bytes: int64, client half, running statistics and head as they are sent out.
      up_bytes: int64, the same as they come back.
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
    """What a task moves, int64 arrays that broadcast over clients and tiers."""

    down: np.ndarray
    up: np.ndarray


# ---- cuts and their prices -----------------------------------------------------------------------


def cuts(num_blocks: int, count: int | None = None) -> np.ndarray:
    """The last blocks of the client halves, int64[M]: every boundary, or the deepest `count`.

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
    """The last block of a client half of so many blocks, int64[1].

    Args:
      num_blocks: number of blocks, L >= 2.
      client_blocks: blocks of the client half, within 1..L-1.
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
      returned: whether the server sends the gradient of z back and the client half has no head
        (SplitFed); the server then also computes that gradient.

    Returns:
      The tiers; client and server together cost a full step, but for the gradient of z that nobody
      needs without `returned`, and for the head.
    """
    inner = cost.input_grad_flops.copy()
    inner[0] = 0.0  # nobody needs the gradient of the data
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
    """FLOP/s of the server on one client's copy; None: as fast as the fastest device."""
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
      samples: samples that are processed, int64[...].
      labels: labels of a sample: 1, or the length of its sequence.
      returned: whether the gradient of every activation comes back.
    """
    sent = samples * tiers.activation_bytes[tier]
    up = sent + samples * (LABEL_BYTES * labels) + tiers.up_bytes[tier]
    down = tiers.down_bytes[tier] + (sent if returned else 0 * sent)
    return Bytes(down, up)


def transfer_s(fleet: Fleet, clients: np.ndarray, moved: Bytes) -> np.ndarray:
    """Expected seconds of both ways at the links' mean rates, shape of `moved`.

    Args:
      fleet: the devices as they are now.
      clients: ids of the clients, int64[k].
      moved: bytes of shape [k] or [k, M].
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
    now_s: float,
    rng: np.random.Generator,
    *,
    parallel: bool = True,
) -> tuple[Timing, np.ndarray]:
    """Prices the tasks of a round.

    Args:
      fleet: the devices as they are now.
      clients: ids of the clients, int64[k].
      client_flops: work of each device, float64[k].
      server_s: time of the server on each client's copy, float64[k].
      moved: bytes of each task, [k].
      now_s: virtual time of dispatch.
      rng: generator that draws the jitter.
      parallel: whether server and device work side by side.

    Returns:
      The timing, whose `compute_s` covers both sides and whose `flops` are the device's; and the
      seconds that the device alone computes, float64[k].
    """
    client_s = fleet.timing(clients, client_flops, 0, 0, now_s, rng).compute_s
    compute_s = np.maximum(client_s, server_s) if parallel else client_s + server_s
    both = fleet.timing(
        clients, client_flops, moved.down, moved.up, now_s, rng, compute_s=compute_s
    )
    return both, client_s
