"""Fleets that change over the rounds: at intervals, a share of the devices is re-drawn."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedjax_het.common.errors import require


@dataclass(frozen=True, eq=False)
class Redraw:
    """Device profiles, and the schedule by which clients change between them.

    In rounds `every_rounds`, `2 * every_rounds` and so on, `round(share * n)` clients are drawn
    without replacement. Each gets a profile drawn uniformly from `choices`, possibly its old one.

    Attributes:
      profile: int64[n], profile of each client at the start.
      flops_per_s: float64[P], speed of each profile.
      bytes_per_s: float64[P], link rate of each profile in both directions.
      choices: int64[c], profiles from which the draws choose.
      every_rounds: number of rounds between draws.
      share: share of the clients that are re-drawn, in [0, 1].
      seed: seed of the draws.
      prices: energy columns of `Fleet` by name, float64[P], that change with the profile; others
        stay with the client.

    References:
      DTFL, arXiv 2312.05642: 30 % of the clients every 50 rounds (Table 3), every 20 rounds in the
      study of the number of tiers.
    """

    profile: np.ndarray
    flops_per_s: np.ndarray
    bytes_per_s: np.ndarray
    choices: np.ndarray
    every_rounds: int
    share: float
    seed: int
    prices: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            self.every_rounds >= 1,
            f"redraw_every = {self.every_rounds}",
            "must be at least 1 round",
            "use 50, or leave it out for constant devices",
        )
        require(
            0 <= self.share <= 1,
            f"redraw_share = {self.share}",
            "must lie in [0, 1]",
            "use 0.3",
        )
        # Each draw depends on the previous one; results are cached, so a run draws each only once.
        object.__setattr__(self, "_after", functools.cache(self._draw))

    @property
    def num_devices(self) -> int:
        """n, the number of devices."""
        return self.profile.size

    def profiles(self, round: int) -> np.ndarray:
        """Profile of every client in a round, int64[n]; every call returns the same value."""
        place = self.profile
        for draw in range(1, round // self.every_rounds + 1):
            place = self._after(draw)  # type: ignore[attr-defined]
        return place

    def _draw(self, draw: int) -> np.ndarray:
        place = self.profiles((draw - 1) * self.every_rounds).copy()
        rng = np.random.default_rng([self.seed, 2, draw])
        who = rng.choice(place.size, round(self.share * place.size), replace=False)
        place[who] = self.choices[rng.integers(0, self.choices.size, who.size)]
        return place
