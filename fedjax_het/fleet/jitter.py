"""Random factors of mean one for durations."""

import numpy as np

# A draw of exactly 0 would violate the rule that no duration is zero.
_LEAST = 1e-9


def lognormal(log_std: np.ndarray, rng: np.random.Generator | None) -> np.ndarray | float:
    """Log-normal factors `exp(s z - s^2 / 2)` of mean one.

    Args:
      log_std: log-std s, float64[k].
      rng: generator that draws z; None for the mean.

    Returns:
      The factors, float64[k], or 1.0 if nothing is random.
    """
    if rng is None or not log_std.any():
        return 1.0
    return np.exp(log_std * rng.standard_normal(log_std.size) - log_std**2 / 2)


def mean_of_stages(stages: int, count: int, rng: np.random.Generator | None) -> np.ndarray | float:
    """Means of `stages` exponentials of mean one, float64[count]; 1.0 without `rng`."""
    if rng is None:
        return 1.0
    return np.maximum(rng.gamma(stages, 1.0 / stages, count), _LEAST)


def exponentials(count: int, stages: int, rng: np.random.Generator) -> np.ndarray:
    """Exponential factors for every stage of every task, float64[count, stages]."""
    return np.maximum(rng.exponential(size=(count, stages)), _LEAST)
