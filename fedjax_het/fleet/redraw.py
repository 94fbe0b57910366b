"""Fleets that change over the rounds: every so often, a share of the devices is drawn anew."""

import functools
from dataclasses import dataclass

import numpy as np

from fedjax_het.common.errors import require


@dataclass(frozen=True, eq=False)
class Redraw:
    """Device profiles, and how clients move between them.

    In round `every_rounds`, and after as many again, `round(share * n)` clients, drawn without
    replacement, get a profile each, uniformly from `choices` (perhaps the one they had).

    Attributes:
      profile: int64[n], profile of each client at the start.
      flops_per_s: float64[P].
      bytes_per_s: float64[P], both ways.
      choices: int64[c], the profiles that are drawn from.
      every_rounds: rounds between draws.
      share: of the clients that are re-drawn, in [0, 1].
      seed: of the draws.

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
        # The draws follow each other; remembered, so that a run draws each of them once.
        object.__setattr__(self, "_after", functools.cache(self._draw))

    @property
    def num_devices(self) -> int:
        """n, the number of devices."""
        return self.profile.size

    def profiles(self, round: int) -> np.ndarray:
        """int64[n]: the profile of every client in a round, the same whenever it is asked."""
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
