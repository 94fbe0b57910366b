"""The convergence bound of ADEL-FL's planning, as a function of deadlines and batch scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from fedjax_het.algorithms.adel.depths import log_miss, log_miss_slope
from fedjax_het.algorithms.adel.workload import Setting
from fedjax_het.common.errors import require
from fedjax_het.common.options import check_types


@dataclass(frozen=True)
class Constants:
    """Assumptions of the bound on the objective; the defaults are those of the authors' code.

    The plan depends only on ratios: the noise of gradients against the cost of a missed layer
    (methods/adel_fl.md 3.3, A11, A12).

    Attributes:
      gradient_norm: bound G on the norm of a client's gradient.
      gradient_noise: standard deviation sigma_u of one sample's gradient, one value or one per
        client. The authors draw it from U(0, 5); the default is the mean of that.
      smoothness: constant of smoothness, rho_s.
      strong_convexity: constant of strong convexity, rho_c.
      heterogeneity: gap Gamma between the global optimum and the clients' own optima.
      noise_weight: factor alpha on the noise term in planning.
      initial_gap: squared distance Delta_1 from the optimum at the start; does not affect the plan.
    """

    gradient_norm: float = 0.1
    gradient_noise: float | Sequence[float] = 2.5
    smoothness: float = 1.0
    strong_convexity: float = 0.3
    heterogeneity: float = 1.0
    noise_weight: float = 1.0
    initial_gap: float = 1.0

    def __post_init__(self) -> None:
        check_types(vars(self), "constant of the bound", type(self))
        for name in vars(self):
            value = np.asarray(getattr(self, name), np.float64)
            require(
                bool((np.isfinite(value) & (value >= 0)).all()),
                f"{name} = {getattr(self, name)}",
                "must be finite and at least 0",
                "leave it out for the authors' value",
            )

    def noise(self, power: np.ndarray, cohort: int) -> float:
        r"""Expected $\frac{1}{U^2} \sum_u \sigma_u^2 / P_u$ over a cohort of U of the clients."""
        sigma = np.asarray(self.gradient_noise, np.float64)
        require(
            sigma.shape in ((), power.shape),
            f"gradient_noise of shape {sigma.shape}",
            f"must be one number or one for each of the {power.size} clients",
            "give a list with one entry per client",
        )
        return float(np.mean(sigma**2 / power)) / cohort


# Largest number of rounds whose deadlines are planned together.
_MOST_ROUNDS = 100_000

AUTHORS = Constants()


@dataclass(frozen=True, eq=False)
class Bound:
    r"""Bound on $E \lVert w_{R+1} - w^* \rVert^2$ after R rounds of one local step each.

    .. math::
        f(T, m) = \prod_t (1 - \rho_c \eta_t) \Delta_1 + \sum_t a_t (\alpha B(m) + C(T_t / m)),
        \quad a_t = \eta_t^2 \prod_{\tau > t} (1 - \rho_c \eta_\tau)

    with the gradient noise $B(m) = \frac{1}{U^2 m} \sum_u \sigma_u^2 / P_u + 6 \rho_s \Gamma$ and
    the price of missed layers $C(x) = \frac{4 G^2 U}{U-1} \sum_\ell \frac{1 + p_\ell}{1-2 p_\ell}$,
    $p_\ell = Q(L+1-\ell, x)^U$. C has a pole at p = 1/2 and is negative beyond it. Here it is
    infinite for p >= 1/2, so that no solver finds a minimum beyond the pole.

    Attributes:
      layers: number of layers, L.
      users: number of users, U >= 2.
      steps: step sizes eta, float64[R].
      noise: noise term, from `Constants.noise`.
      constants: assumptions on the objective.

    References:
      ADEL-FL, arXiv 2505.23973; the objective is that of the first author's code
      (methods/adel_fl.md 2.4, 3.1, A17).
    """

    layers: int
    users: int
    steps: np.ndarray
    noise: float
    constants: Constants

    def __post_init__(self) -> None:
        require(
            self.users >= 2,
            f"{self.users} client(s) in a round",
            "must be at least 2 for the variance over clients to exist",
            "sample more clients",
        )
        fastest = float(np.max(self.steps)) * self.constants.strong_convexity
        require(
            fastest < 1,
            f"strong_convexity x learning rate = {fastest:.4g}",
            "must be below 1 for the bound to contract",
            "lower the learning rate or the strong_convexity constant",
        )

    @property
    def weights(self) -> np.ndarray:
        """Weights a of the errors of each round in the bound, float64[R]."""
        shrink = 1.0 - self.constants.strong_convexity * self.steps
        after = np.append(np.cumprod(shrink[::-1])[::-1][1:], 1.0)
        return self.steps**2 * after

    @property
    def floor(self) -> float:
        """The part of the bound that does not depend on the plan."""
        c = self.constants
        start = float(np.prod(1.0 - c.strong_convexity * self.steps)) * c.initial_gap
        drift = 6.0 * c.smoothness * c.heterogeneity
        return start + float(np.sum(self.weights)) * c.noise_weight * drift

    @property
    def missing_factor(self) -> float:
        r"""Factor of the price of missed layers, $G^2 \cdot 4U / (U - 1)$."""
        return self.constants.gradient_norm**2 * 4.0 * self.users / (self.users - 1)

    def missing(self, expected_layers: np.ndarray) -> np.ndarray:
        r"""Sum $\sum_\ell (1 + p_\ell) / (1 - 2 p_\ell)$ over layers; inf if some $p_\ell \ge 1/2$.

        Args:
          expected_layers: expected number of layers T / m, float64[...].
        """
        p = np.exp(self.users * log_miss(self.layers, expected_layers))
        safe = np.where(p < 0.5, p, 0.0)
        terms = np.where(p < 0.5, (1.0 + safe) / (1.0 - 2.0 * safe), np.inf)
        return np.sum(terms, axis=-1)

    def log_missing_slope(self, expected_layers: np.ndarray) -> np.ndarray:
        """Logarithm of minus the derivative of `missing`, without underflow; needs p < 1/2."""
        log_q = log_miss(self.layers, expected_layers)
        p = np.exp(self.users * log_q)
        each = (
            np.log(3.0 * self.users)
            + (self.users - 1) * log_q
            + log_miss_slope(self.layers, expected_layers)
            - 2.0 * np.log1p(-2.0 * p)
        )
        return scipy.special.logsumexp(each, axis=-1)

    def excess(self, deadlines_s: np.ndarray, scale: float) -> float:
        """The bound without its `floor`; inf if a layer is missed with probability >= 1/2."""
        noise = self.constants.noise_weight * self.noise / scale
        missing = self.missing_factor * self.missing(deadlines_s / scale)
        return float(np.sum(self.weights * (noise + missing)))

    def value(self, deadlines_s: np.ndarray, scale: float) -> float:
        """The bound f(T, m).

        Args:
          deadlines_s: deadlines T, float64[R].
          scale: batch scale m.
        """
        return self.floor + self.excess(deadlines_s, scale)

    def gradient(self, deadlines_s: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
        """Derivatives of the bound by the deadlines, float64[R], and the scale; needs p < 1/2."""
        a, ratio = self.weights, deadlines_s / scale
        slope = -self.missing_factor * a * np.exp(self.log_missing_slope(ratio))
        noise = np.sum(a) * self.constants.noise_weight * self.noise
        return slope / scale, float(-np.sum(slope * ratio) - noise / scale) / scale


def bound_of(
    setting: Setting, rounds: int, power: np.ndarray, constants: Constants, start: int = 0
) -> Bound:
    """The bound over the rounds from `start` on, for devices of power `power`, float64[n].

    Raises:
      InputError: if the schedule has a step size of 0, for which no deadline is best.
    """
    steps = setting.steps(rounds)
    idle = np.flatnonzero(steps <= 0)[:1]
    require(
        idle.size == 0,
        f"schedule with a step size of 0 in round {idle}",
        "the deadlines are planned for rounds that train",
        "use a decay_factor above 0, or fewer rounds",
    )
    return Bound(
        layers=setting.layers.number,
        users=setting.cohort,
        steps=steps[start:],
        noise=constants.noise(power, setting.cohort),
        constants=constants,
    )


def require_budget(rounds: int, total_s: float, shortest_s: float | None = None) -> None:
    """Raises `InputError` unless these rounds, their time and shortest deadline can be planned."""
    require(
        1 <= rounds <= _MOST_ROUNDS,
        f"rounds = {rounds}",
        f"must be at least 1 and at most {_MOST_ROUNDS}, for each is planned before the first",
        "plan some rounds",
    )
    require(
        np.isfinite(total_s) and total_s > 0,
        f"total_s = {total_s}",
        "must be a positive number of virtual seconds",
        "give the time that all rounds together may take",
    )
    require(
        shortest_s is None or shortest_s >= 0,
        f"shortest_s = {shortest_s}",
        "must be at least 0",
        "leave it out for the slowest client's communication",
    )


def require_planned(round: int, rounds: int) -> None:
    """Raises `InputError` if a run continues after its last planned round."""
    require(
        round < rounds,
        f"round {round + 1}",
        f"is beyond the {rounds} rounds that the time was divided among",
        f"set run.rounds = {rounds}, or plan more rounds",
    )
