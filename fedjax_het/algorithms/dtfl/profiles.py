"""Profiles of the tiers: relative client times and server times that the scheduler assumes.

The assumed times may differ from the times of the clock, which permits studies of wrong profiles.
The transfer is always that of the model itself, because the table of bytes in the authors' code is
reversed and ten times too small.
"""

from typing import Literal, NamedTuple

import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.fleet.block_times import MeasuredProfile
from fedjax_het.fleet.cost import cost_table
from fedjax_het.fleet.profile import with_measured
from fedjax_het.fleet.splits import Tiers, cuts, price_tiers
from fedjax_het.models.base import BlockModel

Source = Literal["analytic", "paper", "code"]

# ResNet-56, six tiers: ratios to tier 1 (Table 2 of the paper), seconds per batch (authors' code).
_TABLES = {
    "paper": ((1.00, 1.63, 2.16, 2.68, 3.30, 3.81), (1.00, 0.82, 0.65, 0.51, 0.33, 0.20)),
    "code": (
        (0.019, 0.037, 0.060, 0.065, 0.118, 0.160),
        (0.133, 0.105, 0.098, 0.063, 0.026, 0.005),
    ),
}


class Profile(NamedTuple):
    """Times in each of M tiers.

    Attributes:
      client_s: float64[M], client seconds per sample on one device; only the ratios matter.
      server_s: float64[M], server seconds per sample.
    """

    client_s: np.ndarray
    server_s: np.ndarray


def analytic(tiers: Tiers, server_flops_per_s: float) -> Profile:
    """Times in proportion to the FLOPs of the halves; a server of infinite speed takes no time."""
    return Profile(tiers.client_flops, tiers.server_flops / server_flops_per_s)


def measured(
    model: BlockModel, timed: MeasuredProfile, server_flops_per_s: float, count: int | None = None
) -> Profile:
    """Times in proportion to the measured times of the blocks (`fleet.profile.measure`).

    Args:
      model: measured model, with exit heads.
      timed: measured profile of the model.
      server_flops_per_s: speed of the server in FLOPs as in the counted table.
      count: number of tiers; None for all.
    """
    cost = with_measured(cost_table(model), timed)
    return analytic(price_tiers(cost, cuts(model.num_blocks, count)), server_flops_per_s)


def published(source: str, tiers: Tiers, server_flops_per_s: float) -> Profile:
    """Published ratios between the tiers of ResNet-56, with the analytic server time of tier 1.

    See methods/dtfl.md 6.

    Args:
      source: source of the ratios: "paper" (Table 2) or "code" (constants of the authors'
        scheduler).
      tiers: prices of at most six tiers; fewer tiers get the ratios of the deepest.
      server_flops_per_s: speed of the server.
    """
    require_known(source, _TABLES, "profile")
    require(
        tiers.size <= 6,
        f"profile = {source!r} with {tiers.size} tiers",
        "is published for six",
        "set tiers = 6, or use profile = 'analytic'",
    )
    client, server = (np.asarray(column)[6 - tiers.size :] for column in _TABLES[source])
    first_s = tiers.server_flops[0] / server_flops_per_s
    return Profile(client, server / server[0] * first_s)


def choose(source: Source | Profile, tiers: Tiers, server_flops_per_s: float) -> Profile:
    """The profile of this name, or a given profile after a check of its number of tiers."""
    if isinstance(source, str):
        require_known(source, ("analytic", *_TABLES), "profile")
        if source == "analytic":
            return analytic(tiers, server_flops_per_s)
        return published(source, tiers, server_flops_per_s)
    client_s, server_s = (np.asarray(column, np.float64) for column in source)
    require(
        client_s.shape == server_s.shape == (tiers.size,)
        and bool(np.all(client_s > 0) and np.all(server_s >= 0)),
        f"profile of shapes {client_s.shape} and {server_s.shape}",
        f"needs a positive client time and a server time >= 0 for each of {tiers.size} tiers",
        "make it with the functions of fedjax_het.algorithms.dtfl.profiles",
    )
    return Profile(client_s, server_s)
