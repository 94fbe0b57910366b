"""Selections in a few lines: uniform, by samples, and by last known loss."""

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.options import checked
from fedjax_het.contract import selection
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.selection import Candidates
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.select.parts import drawn_by_samples, selecting, stateless


def uniform() -> Transformation:
    """All available clients with equal probability, the selection of every method by default."""
    return selecting("uniform", selection.uniform)


def weighted() -> Transformation:
    """Available clients in proportion to their numbers of samples, without replacement.

    Weights of the merge stay as they are: a method whose clients count by samples as well counts
    large clients twice, unless it has `weighting = "uniform"`.
    """

    def choose(candidates: Candidates) -> np.ndarray:
        return drawn_by_samples(candidates, candidates.wanted)

    return selecting("weighted", choose)


@checked
def power_of_choice(*, d: Count, fresh: bool = False) -> Transformation:
    """Of d clients drawn in proportion to their samples, those with the highest loss.

    By default the loss of a client is its mean training loss when it last took part, and a client
    without one comes first (rpow-d), which costs nothing. Equal losses are ordered as drawn.

    Args:
      d: number of clients that are compared, at least the cohort size; if fewer are available, all
        are compared.
      fresh: whether the clients are asked for the loss of the current model on all their samples
        (cpow-d). The tasks begin when the slowest has downloaded the model, run it forward and
        answered; the time, FLOPs, bytes and joules are in the records, as rows "probed". The cohort
        then downloads what the method plans, although it holds the model already. A client that
        cannot answer, because it leaves or its charge is too low, comes last.

    References:
      Cho, Wang and Joshi, *Client Selection in Federated Learning: Convergence Analysis and
      Power-of-Choice Selection Strategies*, 2020, section 3.
    """
    require(d >= 1, f"d = {d}", "must be at least 1 client", "use twice the cohort size")

    def choose(candidates: Candidates) -> np.ndarray:
        assert candidates.known is not None
        _require_compared(d, candidates.wanted)
        compared = drawn_by_samples(candidates, min(d, len(candidates.pool)))
        loss, unknown = candidates.known.loss[compared], np.inf
        if fresh:
            assert candidates.losses is not None
            loss, unknown = candidates.losses(compared), -np.inf
        order = np.argsort(-np.where(np.isnan(loss), unknown, loss), kind="stable")
        return compared[order[: candidates.wanted]]

    selector = stateless(choose)._replace(probes=fresh)
    transformation = selecting("power_of_choice", selector, d=d, fresh=fresh)

    def checked(algorithm: Algorithm) -> Algorithm:
        _require_compared(d, algorithm.cohort_size)
        return transformation(algorithm)

    return checked


def _require_compared(d: Count, wanted: int) -> None:
    require(
        d >= wanted,
        f"d = {d} of power_of_choice",
        f"must be at least the cohort of {wanted} clients",
        "use twice the cohort size",
    )
