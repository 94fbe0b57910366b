"""Computing speeds that change over virtual time, as recorded factors."""

from dataclasses import dataclass

import numpy as np

from fedjax_het.common.arrays import require_unmasked
from fedjax_het.common.errors import require
from fedjax_het.common.options import checked

_TRY = "try step=0.2, every_s=10, until_s=200"
# Largest number of steps of a random walk.
_MOST_STEPS = 100_000


@dataclass(frozen=True, eq=False)
class SpeedTrace:
    """Piecewise-constant relative speeds, which model background load, heat and charging.

    A task keeps the speed that its device has at dispatch.

    Attributes:
      time_s: float64[p], times of change, starting at 0 and increasing strictly; the last speeds
        hold without end.
      factor: float64[p, n], relative speeds; device k computes at `factor[j, k] * flops_per_s` from
        `time_s[j]` on.
    """

    time_s: np.ndarray
    factor: np.ndarray

    def __post_init__(self) -> None:
        time_s, factor = self.time_s, self.factor
        require_unmasked(time_s, "time_s")
        require_unmasked(factor, "factor")
        require(
            time_s.ndim == 1
            and factor.ndim == 2
            and 1 <= time_s.size == factor.shape[0]
            and time_s[0] == 0
            and bool((np.diff(time_s) > 0).all()),
            f"{time_s.size} times from {time_s[:1]} and factors of shape {factor.shape}",
            "need a row of factors per time, and times that start at 0 and increase",
            "sort the times and subtract the first",
        )
        bad = np.argwhere(~(np.isfinite(factor) & (factor > 0)))
        require(
            bad.size == 0,
            f"speed factor {[factor[tuple(i)] for i in bad[:1]]} at point and device {bad[:1]}",
            "must be positive and finite",
            "a device that stands still is not available: see Availability",
        )

    @property
    def num_devices(self) -> int:
        """n, the number of devices."""
        return self.factor.shape[1]

    def at(self, clients: np.ndarray, now_s: float | np.ndarray) -> np.ndarray:
        """Relative speed of each client at `now_s` (a number or float64[k]), float64[k]."""
        row = np.searchsorted(self.time_s, np.broadcast_to(now_s, clients.shape), "right") - 1
        return self.factor[row, clients]


def require_walk(every_s: float, until_s: float) -> None:
    """Raises `InputError` unless a walk with these steps can be held; see `random_walk`."""
    for name, value in (("every_s", every_s), ("until_s", until_s)):
        require(value > 0, f"{name} = {value}", "must be positive and finite", _TRY)
    require(
        until_s / every_s <= _MOST_STEPS,
        f"until_s = {until_s} in steps of every_s = {every_s}",
        f"must be at most {_MOST_STEPS} steps, each of which is held",
        _TRY,
    )


@checked
def random_walk(
    num_devices: int, seed: int, *, step: float, every_s: float, until_s: float
) -> SpeedTrace:
    """Random walks of the log-speeds, with a normal step of log-std `step` every `every_s` seconds.

    Args:
      num_devices: number of devices, n.
      seed: seed of the walks.
      step: log-std of one step.
      every_s: seconds between steps.
      until_s: virtual time at which the walks end.
    """
    require(step > 0, f"step = {step}", "must be positive and finite", _TRY)
    require_walk(every_s, until_s)
    time_s = np.arange(0.0, until_s, every_s)
    steps = np.random.default_rng([seed, 1]).normal(0.0, step, (time_s.size, num_devices))
    steps[0] = 0.0
    return SpeedTrace(time_s, np.exp(np.cumsum(steps, axis=0)))
