"""Paces as transformations of methods: when the server merges, with any method that allows it.

Each function returns a transformation, e.g. `compose(fedpmt(...), pace.first(10, of=13))`. What a
method does not allow (`Algorithm.paces`) is refused with the reason. A method has one pace, so a
second transformation of this module is refused as well.

`barrier`, `deadline` and `first` end a round for all of its tasks. Under `window`, `arrivals` and
`buffer` tasks overlap: the cohort size of the method is the number of clients at work at any time,
and a late update is a difference from the older model from which its client started. The method's
own merge takes the arrivals as if they were a cohort.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count, Unlimited
from fedjax_het.common.options import checked
from fedjax_het.common.types import PyTree
from fedjax_het.contract import clock
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.contract.clock import Pace
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.contract.staleness import capped, discount
from fedjax_het.transforms.compose import Transformation

__all__ = ["PACES", "arrivals", "barrier", "buffer", "deadline", "first", "window"]


def barrier() -> Transformation:
    """The server waits for all clients of a round, see `clock.barrier`."""
    return lambda algorithm: _paced(algorithm, "barrier", clock.barrier())


@checked
def deadline(deadline_s: Unlimited, late: Literal["drop", "partial"] = "drop") -> Transformation:
    """The server closes every round at a deadline, or earlier if all have arrived.

    A round in which nobody meets the deadline does not change the model.

    Args:
      deadline_s: virtual seconds after dispatch at which a round ends; inf waits for all.
      late: treatment of late tasks, see `clock.deadline`: "drop", or "partial" to keep the local
        steps that were finished.
    """
    require(deadline_s > 0, f"deadline_s = {deadline_s}", "must be positive", "use 60")
    pace = clock.deadline(late)
    needs = ("drop", "stop") if late == "partial" else ("drop",)

    def transformation(algorithm: Algorithm) -> Algorithm:
        options = {"deadline_s": deadline_s, "late": late}
        paced = _paced(algorithm, "deadline", pace, *needs, **options)
        return paced._replace(plan=_closing(algorithm, deadline_s))

    return transformation


@checked
def first(
    count: Count | None = None, *, of: Count | None = None, over_select: float | None = None
) -> Transformation:
    """Over-selection: of n selected clients the first `count` to arrive are merged.

    The others are dropped at that moment, see `clock.first`. The clients that count are therefore
    not a uniform sample, even if the n clients are: fast ones count more often.

    Args:
      count: number K of arrivals that are merged; None for the cohort size of the method.
      of: number n of clients to select, at least K.
      over_select: the same as a factor of at least 1, n = ceil(factor K); usual is 1.3.

    References:
      Bonawitz et al., *Towards Federated Learning at Scale: System Design*, MLSys 2019, which
      selects 130 % of the clients that it needs.
    """
    require(count is None or count >= 1, f"count = {count}", "must be at least 1 arrival", "use 10")
    require(
        (of is None) != (over_select is None),
        f"of = {of} and over_select = {over_select} of pace first",
        "must be given one of the two",
        "use of = 13 or over_select = 1.3",
    )
    require(
        over_select is None or (over_select >= 1 and math.isfinite(over_select)),
        f"over_select = {over_select}",
        "must be a factor of at least 1",
        "use 1.3",
    )

    def transformation(algorithm: Algorithm) -> Algorithm:
        kept = algorithm.cohort_size if count is None else count
        # A product such as 1.1 * 10 exceeds a whole number only by rounding.
        selected = math.ceil((over_select or 1.0) * kept - 1e-9) if of is None else of
        require(
            selected >= kept,
            f"of = {selected} of pace first",
            f"must be at least the {kept} arrivals that are merged",
            f"use {math.ceil(1.3 * kept)}",
        )
        options = {"count": kept, "of": selected}
        paced = _paced(algorithm, "first", clock.first(kept), "drop", **options)
        return paced._replace(cohort_size=selected)

    return transformation


@checked
def window(
    interval_s: float,
    *,
    staleness: str = "constant",
    a: float = 0.5,
    b: float = 4.0,
    max_staleness: Count | None = None,
) -> Transformation:
    """The server merges what has arrived at every multiple of an interval, see `clock.window`.

    Args:
      interval_s: virtual seconds between merges.
      staleness: discount of late updates, "constant", "polynomial" or "hinge"; each update is
        multiplied by it, see `staleness.scaled`.
      a: exponent or slope of the discount.
      b: largest staleness without a discount by the hinge.
      max_staleness: largest staleness of an update in server steps; a client whose update would be
        later is stopped and dropped. None for no limit.
    """
    options = {"interval_s": interval_s}
    pace = clock.window(interval_s)
    return _overlapping("window", pace, options, staleness, a, b, max_staleness)


@checked
def arrivals(
    count: Count = 1,
    *,
    staleness: str = "constant",
    a: float = 0.5,
    b: float = 4.0,
    max_staleness: Count | None = None,
) -> Transformation:
    """The server merges at every `count`-th arrival, and then sends idle clients out again.

    Args:
      count: number K of arrivals per merge, at most the cohort size of the method.
      staleness: discount of late updates, as in `window`.
      a: exponent or slope of the discount.
      b: largest staleness without a discount by the hinge.
      max_staleness: largest staleness of an update, as in `window`.
    """
    pace, options = clock.arrivals(count), {"count": count}
    return _overlapping("arrivals", pace, options, staleness, a, b, max_staleness)


@checked
def buffer(
    count: Count,
    *,
    staleness: str = "constant",
    a: float = 0.5,
    b: float = 4.0,
    max_staleness: Count | None = None,
) -> Transformation:
    """The pace of FedBuff: `arrivals` in which a client that has arrived is replaced at once.

    With equal weights of the clients and a polynomial discount, FedAvg is FedBuff with a server
    step of 1.

    Args:
      count: number K of arrivals per merge, at most the cohort size of the method.
      staleness: discount of late updates, as in `window`.
      a: exponent or slope of the discount.
      b: largest staleness without a discount by the hinge.
      max_staleness: largest staleness of an update, as in `window`.
    """
    pace, options = clock.arrivals(count, refill=True), {"count": count}
    return _overlapping("buffer", pace, options, staleness, a, b, max_staleness)


# Factories of transformations by name.
PACES: dict[str, Callable[..., Transformation]] = {
    "arrivals": arrivals,
    "barrier": barrier,
    "buffer": buffer,
    "deadline": deadline,
    "first": first,
    "window": window,
}


def _paced(algorithm: Algorithm, name: str, pace: Pace, *needs: str, **options: Any) -> Algorithm:
    """The method with this pace, if it allows a pace with these needs, see `Paces.require`."""
    algorithm.paces.require(algorithm.name, name, *needs)
    said = {**(algorithm.options or {}), "pace": {"name": name, **options}}
    taken = Paces(replace=f"the method has the pace {pace.name} from an earlier transformation")
    return algorithm._replace(pace=pace, paces=taken, options=said)


def _overlapping(
    name: str,
    pace: Pace,
    options: dict[str, Any],
    staleness: str,
    a: float,
    b: float,
    max_staleness: int | None,
) -> Transformation:
    """The transformation to a pace under which tasks overlap; `options` are those of the pace."""
    late, pace = discount(staleness, a, b), capped(pace, max_staleness)
    if staleness != "constant":
        pace = pace._replace(discount=late)
    said = {**options, "staleness": staleness, "a": a, "b": b, "max_staleness": max_staleness}

    def transformation(algorithm: Algorithm) -> Algorithm:
        size, count = algorithm.cohort_size, options.get("count", 1)
        require(
            count <= size,
            f"count = {count} of pace {name}",
            f"must be at most the {size} clients at work at a time",
            "try a tenth of them",
        )
        return _paced(algorithm, name, pace, "overlap", **said)

    return transformation


def _closing(algorithm: Algorithm, deadline_s: float) -> Any:
    """The plan of a method with this deadline; a `Schedule` stays one."""
    inner = algorithm.plan
    if isinstance(inner, Schedule):
        return inner.amended(lambda situation, plan: plan._replace(deadline_s=deadline_s))

    def plan(state: PyTree, variables: Variables, situation: Situation) -> tuple[Plan, PyTree]:
        tasks, state = inner(state, variables, situation)
        return tasks._replace(deadline_s=deadline_s), state

    return plan
