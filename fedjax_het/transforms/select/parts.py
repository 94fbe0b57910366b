"""Parts that selections share: the transformation that sets one, weighted draws, quantiles."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.selection import Candidates, Seen, Select, Selector
from fedjax_het.transforms.compose import Transformation


def selecting(name: str, select: Select | Selector, **options: Any) -> Transformation:
    """The transformation that gives a method this selection.

    Args:
      name: name of the selection.
      select: selection.
      **options: its resolved options in JSON types, which become part of `Algorithm.options`.
    """

    def transformation(algorithm: Algorithm) -> Algorithm:
        own = algorithm.select
        fixed = own.replaceable if isinstance(own, Selector) else True
        require(
            fixed is True,
            f"select {name} of {algorithm.name}",
            f"cannot be composed: {fixed}",
            "keep the method's own selection, or take another method",
        )
        said = {**(algorithm.options or {}), "select": {"name": name, **options}}
        return algorithm._replace(select=select, options=said)

    return transformation


def stateless(choose: Callable[[Candidates], np.ndarray]) -> Selector:
    """A selection without state that looks at what is known, or asks for prices."""
    return Selector(
        init=lambda n: (),
        choose=lambda state, candidates: (choose(candidates), state),
        observe=unchanged,
    )


def unchanged(state: PyTree, seen: Seen) -> PyTree:
    """`Selector.observe` of a selection that learns only through `Known`."""
    del seen
    return state


def drawn(
    rng: np.random.Generator, clients: np.ndarray, weight: np.ndarray, count: int
) -> np.ndarray:
    """Clients drawn one after the other in proportion to their weights, without replacement.

    Args:
      rng: generator of the draw.
      clients: ids to draw from, int64[m].
      weight: weights, at least 0, float64[m]; clients of weight 0 are drawn after all others.
      count: number of clients to draw, at most m.

    Returns:
      Ids in the order of the draw, int64[count].
    """
    if not count:
        return clients[:0]
    positive = np.maximum(weight, np.finfo(np.float64).tiny)
    return rng.choice(clients, count, replace=False, p=positive / np.sum(positive))


def at_share(values: np.ndarray, share: float) -> float:
    """The value below which a share of the values lies: number floor(share m) in ascending order.

    Args:
      values: at least one value, float64[m].
      share: share in [0, 1]; 1 takes the largest value.
    """
    place = min(int(share * len(values) + 1e-9), len(values) - 1)
    return float(np.partition(values, place)[place])
