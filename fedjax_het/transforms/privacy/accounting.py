"""Epsilon of Gaussian noise over the rounds of a run, by the package dp-accounting."""

import functools
import importlib.util
import math

import numpy as np

from fedjax_het.common.errors import require


def require_accountant() -> None:
    """Raises `InputError` unless the package dp-accounting is installed."""
    require(
        importlib.util.find_spec("dp_accounting") is not None,
        "privacy with noise",
        "reports its epsilon by the package dp-accounting, which is not installed",
        "run: pip install 'fedjax-het[privacy]'",
    )


def epsilon(noise: float, rounds: int, delta: float, *, size: int = 1, clients: int = 1) -> float:
    r"""Epsilon after some rounds, in which Gaussian noise hides any one client.

    Two data sets are neighbours if they differ in one client, all of whose samples are replaced
    (the number of clients is public). A client whose update has at most the norm C then moves the
    sum by at most 2 C, so noise of the deviation `noise` C has the multiplier z = `noise` / 2 (the
    Renyi accountant takes the ratio to the sensitivity).

    Without sampling, T rounds equal one round of the multiplier $z / \sqrt T$, whose epsilon is
    exact. Cohorts drawn uniformly without replacement amplify privacy, if nobody is told who took
    part; a bound is composed in Renyi divergence, where sampling is never taken to do harm.

    Args:
      noise: standard deviation of the noise over the limit C of the norm.
      rounds: number of rounds, at least 1.
      delta: probability that the bound does not hold, in (0, 1).
      size: number of clients of a cohort.
      clients: number of clients from whom every cohort is drawn uniformly; `size` for no sampling.

    Returns:
      Epsilon, inf without noise.

    References:
      Balle and Wang, *Improving the Gaussian Mechanism for Differential Privacy*, 2018; Wang, Balle
      and Kasiviswanathan, *Subsampled Renyi Differential Privacy*, 2019, Theorem 27.
    """
    if noise == 0:
        return math.inf
    import dp_accounting  # here, because it takes two seconds and is not always installed

    if size == clients:
        return float(dp_accounting.get_epsilon_gaussian(noise / 2 / math.sqrt(rounds), delta))
    orders, divergence = _sampled(noise, size, clients)
    spent, _ = dp_accounting.rdp.compute_epsilon(orders, rounds * divergence, delta)
    return float(spent)


@functools.lru_cache
def _sampled(noise: float, size: int, clients: int) -> tuple[np.ndarray, np.ndarray]:
    """The orders, and the Renyi divergence of one round at each of them, float64[m]."""
    import dp_accounting
    from dp_accounting import rdp

    class Accountant(rdp.RdpAccountant):
        """Gives the divergences away, because composing anew takes half a second a round."""

        def divergences(self, event: dp_accounting.DpEvent) -> tuple[np.ndarray, np.ndarray]:
            self.compose(event)
            return self._orders, self._rdp

    whole = dp_accounting.GaussianDpEvent(noise / 2)
    events = whole, dp_accounting.SampledWithoutReplacementDpEvent(clients, size, whole)
    relation = dp_accounting.NeighboringRelation.REPLACE_ONE
    (orders, without), (_, sampled) = (
        Accountant(neighboring_relation=relation).divergences(event) for event in events
    )
    return orders, np.minimum(without, sampled)
