"""Parts that selections share: the transformation that sets one, weighted draws, quantiles."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.selection import Candidates, Seen, Select, Selector
from fedjax_het.transforms.compose import Transformation

# Values that bracket another one, and places of the bracket to both sides of it: four standard
# deviations of the place of a median among as many values drawn at random.
_BRACKETS, _REACH = 4096, 128
# Candidates for each client to draw that are many, and tries to find these among all clients.
MANY, TRIES = 16, 8


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


def drawn_by_samples(candidates: Candidates, count: int) -> np.ndarray:
    """Candidates drawn one after the other in proportion to their samples, without replacement.

    A few of many are drawn from all clients with replacement, and those that are no candidates, or
    were drawn before, are passed over. The next one then has the same chances as if it were drawn
    from the candidates that are left.

    Args:
      candidates: candidates of the draw.
      count: number of clients to draw, at most as many as candidates.

    Returns:
      Ids in the order of the draw, int64[count].
    """
    assert candidates.running is not None
    pool, rng, chosen = candidates.pool, candidates.rng, np.zeros(0, np.int64)
    for _ in range(TRIES if MANY * count <= len(pool) else 0):
        totals = candidates.running()
        places = rng.random(count - len(chosen)) * totals[-1]
        found = np.searchsorted(totals, places, side="right")
        chosen = np.append(chosen, found[pool.has(found)])
        chosen = chosen[np.sort(np.unique(chosen, return_index=True)[1])]
        if len(chosen) == count:
            return chosen
    left = pool.ids
    if len(chosen):
        left = left[~np.isin(left, chosen)]
    weight = candidates.samples[left]
    return np.append(chosen, drawn(rng, left, weight, count - len(chosen)))


def at_share(values: np.ndarray, share: float) -> float:
    """The value below which a share of the values lies: number floor(share m) in ascending order.

    Args:
      values: at least one value, float64[m].
      share: share in [0, 1]; 1 takes the largest value.
    """
    return nth(values, min(int(share * len(values) + 1e-9), len(values) - 1))


def nth(values: np.ndarray, place: int) -> float:
    """The value at a place in ascending order, from 0; of many values without moving all of them.

    Values at regular distances bracket it. Only those inside the bracket are sorted in part, or all
    values, if it is not there.

    Args:
      values: numbers, float64[m].
      place: place, from 0 to m - 1.
    """
    step = len(values) // _BRACKETS
    if step > 1:
        some = np.sort(values[::step])
        near = place // step
        low, high = some[max(near - _REACH, 0)], some[min(near + _REACH, len(some) - 1)]
        reach = values >= low
        before = len(values) - int(np.count_nonzero(reach))
        reach &= values <= high
        inside = values[np.flatnonzero(reach)]
        if before <= place < before + len(inside):
            values, place = inside, place - before
    return float(np.partition(values, place)[place])
