r"""How long a split task takes (DTFL, equation 5).

    T_k(m) = transfer_k(m) + max( client_k(m), server(m) )        side by side: DTFL
    T_k    = transfer_k    + client_k + server                    one after the other: SplitFed

A device sends the activations and labels of every sample it processes and its half of the model;
it receives its half, and in SplitFed the gradients of the activations. The server works on every
client's copy at `server_flops_per_s`; infinity leaves its time out, as the authors' clock does.
"""

from typing import NamedTuple

import numpy as np

from fedjax_het.algorithms.dtfl.tiers import LABEL_BYTES, Tiers
from fedjax_het.common.errors import require
from fedjax_het.contract.plan import Timing
from fedjax_het.fleet.device import Fleet


class Bytes(NamedTuple):
    """What a task moves, int64 arrays that broadcast over clients and tiers."""

    down: np.ndarray
    up: np.ndarray


def split_bytes(
    tiers: Tiers, tier: np.ndarray, samples: np.ndarray, labels: int, *, returned: bool = False
) -> Bytes:
    """Bytes of tasks of `samples` samples in tiers `tier` (from 0); both broadcast.

    Args:
      tiers: prices of the tiers.
      tier: int64[...].
      samples: int64[...], samples that are processed.
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
      clients: int64[k].
      moved: bytes of shape [k] or [k, M].
    """
    extra = (slice(None),) + (None,) * (moved.up.ndim - 1)

    def one_way(amount: np.ndarray, rate: np.ndarray, trace: object) -> np.ndarray:
        rate = rate if trace is None else trace.mean_bytes_per_s()  # type: ignore[attr-defined]
        return fleet.latency_s[clients][extra] + amount / rate[clients][extra]

    down = one_way(moved.down, fleet.downlink_bytes_per_s, fleet.downlink_trace)
    return down + one_way(moved.up, fleet.uplink_bytes_per_s, fleet.uplink_trace)


def timing(
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
      clients: int64[k].
      client_flops: float64[k], work of each device.
      server_s: float64[k], the server's time on each client's copy.
      moved: bytes, [k].
      now_s: virtual time of dispatch.
      rng: draws the jitter.
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
