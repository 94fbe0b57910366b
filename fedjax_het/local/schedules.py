r"""Factors on the step size by round, for `Plan.learning_rate_scale`.

With t rounds since the warm-up, a time constant $t_0$ and a factor f:

* "constant": 1,
* "inverse": $1 / (1 + t / t_0)$, as in analyses of O(1/T),
* "step": $f^{\lfloor t / t_0 \rfloor}$,
* "exponential": $f^{t / t_0}$,
* "cosine": from 1 to f over $t_0$ rounds, half a period of a cosine; then f (Loshchilov and Hutter,
  *SGDR*, 2017).

The factors are those of optax's schedules, in float64: ADEL-FL plans with them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedjax_het.common import numbers
from fedjax_het.common.errors import InputError, require, require_known

_SHAPES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda t, f: 1.0,
    "inverse": lambda t, f: 1.0 / (1.0 + t),
    "step": lambda t, f: f ** math.floor(t),
    "exponential": lambda t, f: f**t,
    "cosine": lambda t, f: f + (1.0 - f) * 0.5 * (1.0 + math.cos(math.pi * min(t, 1.0))),
}


@dataclass(frozen=True)
class StepSchedule:
    """A schedule of the step size by round.

    Attributes:
      shape: "constant", "inverse", "step", "exponential" or "cosine", see the module; or a function
        of the round that returns the factor.
      decay_rounds: time constant t_0 in rounds.
      decay_factor: factor f in [0, 1].
      warmup_rounds: number w of rounds in which the factor rises linearly, $(t + 1) / (w + 1)$; the
        schedule begins after them, with t = 0.

    Raises:
      InputError: for values out of range.
    """

    shape: str | Callable[[int], float]
    decay_rounds: float
    decay_factor: float
    warmup_rounds: int

    def __post_init__(self) -> None:
        if not callable(self.shape):
            require_known(self.shape, _SHAPES, "schedule")
        require(
            math.isfinite(self.decay_rounds) and self.decay_rounds > 0,
            f"decay_rounds = {self.decay_rounds}",
            "must be positive",
            "try 50",
        )
        require(
            0 <= self.decay_factor <= 1,
            f"decay_factor = {self.decay_factor}",
            "must lie in [0, 1]",
            "use 0.1 for a tenth of the step size",
        )
        require(
            self.warmup_rounds >= 0,
            f"warmup_rounds = {self.warmup_rounds}",
            "must be at least 0",
            "leave it out for no warm-up",
        )

    def factor(self, round: int) -> float:
        """The factor in a round, from 0 on; `InputError` unless it is finite and at least 0."""
        t = round - self.warmup_rounds
        if t < 0:
            return (round + 1) / (self.warmup_rounds + 1)
        if not callable(self.shape):
            return _SHAPES[self.shape](t / self.decay_rounds, self.decay_factor)
        given = self.shape(t)
        factor = numbers.reals(given)
        if factor is None or factor.size != 1 or not np.isfinite(factor) or factor < 0:
            raise InputError(
                f"schedule({t}) = {numbers.shown(given)}: a factor on the step size must be a "
                f"number, finite and at least 0; correct the function for round {t}"
            )
        return float(factor.reshape(()))
