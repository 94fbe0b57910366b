"""Where a network may be cut between client and server, and what either half costs."""

from typing import NamedTuple

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.fleet.cost import CostTable

# Labels travel with the activations, as 64-bit integers (the authors' code).
LABEL_BYTES = 8


class Tiers(NamedTuple):
    """M cuts of a network, shallowest client half first; arrays of length M.

    Tier m (the paper counts from 1) is entry m - 1. Tier 1 leaves most of the work to the server.

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


def cuts(num_blocks: int, count: int | None = None) -> np.ndarray:
    """The last blocks of the client halves, int64[M]: every boundary, or the deepest `count`.

    With fewer tiers than boundaries, tier i of M is tier `L - 1 - M + i` of all of them.

    Args:
      num_blocks: L >= 2.
      count: M, within 1..L-1; None for all.

    References:
      DTFL, the study of the number of tiers: with M = 6, tier 1 is md1 and md2; M = 1 is md1..md7.
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


def split(cost: CostTable, cut: np.ndarray, *, returned: bool = False) -> Tiers:
    """Prices both halves of the network at every cut.

    Args:
      cost: prices of the blocks.
      cut: int64[M].
      returned: True where the server sends the gradient of z back and the client half has no head
        (SplitFed): the server then also computes that gradient.

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
