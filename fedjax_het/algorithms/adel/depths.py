"""How many layers a device finishes by the deadline, and how likely each layer is to be missed.

Backward passes finish the output layer first. With exponential layer times of mean 1/rate the
number of layers finished in a window is Poisson, so all probabilities here are Poisson tails.
Arrays over layers have the input side first, as everywhere in this library.
"""

import numpy as np
from scipy.special import gammaincc, gammaln, xlogy


def miss_probability(layers: int, expected_layers: np.ndarray | float) -> np.ndarray:
    r"""Probability that one client misses each layer: $q^\ell = Q(L+1-\ell, \lambda)$.

    $P(N \le L-\ell)$ for $N \sim$ Poisson($\lambda$), with Q the regularised upper incomplete gamma
    function.

    Args:
      layers: L.
      expected_layers: float64[...], lambda: mean number of layers that fit into the window if there
        were no end to them; 0 misses everything.

    Returns:
      float64[..., L], input side first: decreasing along the last axis.
    """
    needed = layers - np.arange(layers)
    return gammaincc(needed, np.asarray(expected_layers, np.float64)[..., None])


def log_miss(layers: int, expected_layers: np.ndarray) -> np.ndarray:
    """`log(miss_probability)` without underflow, from the finite sum that Q is for whole L."""
    rate = np.asarray(expected_layers, np.float64)[..., None]
    k = np.arange(layers)
    # The terms are rate^k / k!, and their running sums are Q(1), Q(2), ... times e^rate.
    running = np.logaddexp.accumulate(xlogy(k, rate) - gammaln(k + 1), axis=-1)
    return running[..., ::-1] - rate


def log_miss_slope(layers: int, expected_layers: np.ndarray) -> np.ndarray:
    """`log(-d miss_probability / d expected_layers)`, the log of a Poisson weight; same shape."""
    rate = np.asarray(expected_layers, np.float64)[..., None]
    k = layers - 1 - np.arange(layers)
    return xlogy(k, rate) - gammaln(k + 1) - rate


def batch_sizes(
    scale: float,
    power: np.ndarray,
    deadline_s: float,
    communication_s: np.ndarray,
) -> np.ndarray:
    r"""ADEL-FL's batch rule before rounding: $S_u = m P_u (T - B_u)^+ / T$.

    It makes the expected number of layers, $(T - B_u) P_u / S_u = T / m$, the same for everyone,
    which is what lets one constant per layer take the bias out of the merge.

    Args:
      scale: m, seconds per layer.
      power: float64[k], P, samples x layers per second.
      deadline_s: T; inf leaves communication out of the rule.
      communication_s: float64[k], B.

    Returns:
      float64[k], samples; 0 for a client whose communication takes the whole round.
    """
    share = 1.0 if np.isinf(deadline_s) else np.maximum(0.0, 1.0 - communication_s / deadline_s)
    return scale * power * share


def whole_batches(wanted: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Batch sizes that exist: rounded, at least one sample and at most `most`; int64[k]."""
    return np.clip(np.rint(wanted), 1, most).astype(np.int64)


def depths_reached(finished_s: np.ndarray, window_s: np.ndarray) -> np.ndarray:
    """int64[k]: layers finished within each window.

    Args:
      finished_s: float64[k, L], seconds after which each layer is done, output side first.
      window_s: float64[k].
    """
    return np.sum(finished_s <= window_s[:, None], axis=1)
