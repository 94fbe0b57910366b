"""What a sweep tries: its options, the space of each method, and the values of every trial."""

import itertools
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedjax_het import algorithms
from fedjax_het.common import numbers
from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.common.numbers import Count, Seed
from fedjax_het.common.options import check_options
from fedjax_het.config import CompareOptions, methods, require_places, section

_EXAMPLE = "e.g. learning_rate = (0.03, 0.1), or {'low': 0.01, 'high': 1.0, 'log': True}"
# Cells of a grid that are listed to choose from.
_MOST_CELLS = 10**5


@dataclass(frozen=True)
class SweepOptions:
    """The options of a sweep, the section `sweep` of a configuration.

    Attributes:
      space: options to tune, in the form of a configuration: `algorithm` for every method that has
        the option, `methods` for one method by its label, as `{"algorithm": {"learning_rate":
        (0.03, 0.1)}, "methods": {"FedProx": {"mu": {"low": 0.001, "high": 1.0, "log": True}}}}`. A
        list has the values themselves; a range has `low` and `high`, both included, and is
        logarithmic with `log`; it is of whole numbers if both bounds are.
      sampler: "grid" for all combinations of lists, "random", or "tpe", optuna's
        tree-structured Parzen estimator.
      trials: number of trials of every method; None for all combinations of a grid.
      seeds: seeds of the runs of a trial, none of which the comparison may use.
      target: value of the target metric; trials are judged by the mean virtual time until it. None
        judges them by the metric at the end of their runs.
      seed: seed of the sampler.
    """

    space: dict[str, Any]
    sampler: Literal["grid", "random", "tpe"] = "grid"
    trials: Count | None = None
    seeds: Sequence[Seed] = (1000,)
    target: float | None = None
    seed: Seed = 0

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> "SweepOptions":
        """The options of a plain configuration; raises `InputError` for those that cannot be."""
        require_places(methods(settings))
        given = section(settings, "sweep")
        check_options(given, "option of sweep", cls)
        options = cls(**given)
        require(
            options.trials is not None or options.sampler == "grid",
            f"sweep.trials = None with sampler {options.sampler!r}",
            "is the number of trials of every method",
            "set sweep.trials, e.g. to 20",
        )
        require(
            options.trials is None or options.trials >= 1,
            f"sweep.trials = {options.trials}",
            "must be at least 1",
            "set sweep.trials, e.g. to 20",
        )
        seeds = list(options.seeds)
        require(
            bool(seeds) and len(set(seeds)) == len(seeds) and min(seeds) >= 0,
            f"sweep.seeds = {seeds}",
            "must be different whole numbers of at least 0, at least one",
            "use e.g. 1000, 1001",
        )
        reported = set(settings.get("compare", {}).get("seeds", CompareOptions.seeds))
        require(
            not reported & set(seeds),
            f"sweep.seeds = {seeds} with compare.seeds = {sorted(reported)}",
            "must have none in common: methods would be compared on the seeds they were tuned on",
            "use others for the sweep, e.g. 1000, 1001",
        )
        return options


@dataclass(frozen=True)
class Span:
    """A range of numbers.

    Attributes:
      low: smallest number.
      high: largest number, included.
      log: whether equal ratios are equally likely, in place of equal differences.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        require(self.low < self.high, f"low = {self.low}, high = {self.high}", "must rise", "swap")
        require(
            not self.log or self.low > 0,
            f"low = {self.low} with log = True",
            "must be positive",
            "raise low, or leave log out",
        )

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, share: float) -> float:
        """The number at a share of the range in [0, 1)."""
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return min(max(math.floor(value) if self.whole else value, self.low), self.high)


# Values of an option to choose from, or a range of them.
Choice = tuple[Any, ...] | Span
# What is tuned of one method: choices by the path of the option, `option` or `group.option`.
Space = dict[str, Choice]


def spaces(settings: Mapping[str, Any], options: SweepOptions) -> dict[str, Space]:
    """The spaces of the methods by label.

    Raises:
      InputError: for an option that no method has, a value or a range that cannot be, or a method
        without anything to tune.
    """
    found: dict[str, Space] = {}
    labels = methods(settings)
    for name in options.space:
        require_known(name, ("algorithm", "methods"), "sweep.space")
    own = options.space.get("methods", {})
    require(
        isinstance(own, dict) and all(isinstance(each, dict) for each in own.values()),
        f"sweep.space.methods = {numbers.shown(own)}",
        "must map labels to options",
        _EXAMPLE,
    )
    for label in own:
        require_known(label, labels, "sweep.space.methods")
    shared = options.space.get("algorithm", {})
    require(
        isinstance(shared, dict),
        f"sweep.space.algorithm = {numbers.shown(shared)}",
        "must be a mapping of options",
        _EXAMPLE,
    )
    known = {label: algorithms.option_names(method["name"]) for label, method in labels.items()}
    for name in shared:
        require_known(name, set().union(*known.values()), "option of sweep.space.algorithm")
    for label in labels:
        common = {name: value for name, value in shared.items() if name in known[label]}
        where = f"sweep.space.methods.{label}"
        for name in own.get(label, {}):
            require_known(name, known[label], f"option of {where}")
        found[label] = {
            **dict(_choices(common, "sweep.space.algorithm")),
            **dict(_choices(own.get(label, {}), where)),
        }
        require(
            bool(found[label]),
            f"sweep.space has no option of {label}",
            "must tune every method, so that all have the same number of trials",
            f"add one under {where}, or leave the method out of compare.methods",
        )
    return found


def _choices(part: Mapping[str, Any], where: str, path: str = "") -> Iterator[tuple[str, Choice]]:
    """The choices of a part of the space by the path of the option."""
    for name, value in part.items():
        place, inner = f"{where}.{name}", f"{path}.{name}" if path else name
        if isinstance(value, Mapping) and not {"low", "high", "log"} & set(value):
            yield from _choices(value, place, inner)
            continue
        if isinstance(value, Mapping):
            check_options(value, f"option of {place}", Span)
            try:
                yield inner, Span(**value)
            except InputError as error:
                raise InputError(f"{place}: {error}") from None
            continue
        plain = isinstance(value, list | tuple) and all(
            each is None or isinstance(each, bool | int | float | str) for each in value
        )
        require(
            plain and len(value) > 0 and len({repr(each) for each in value}) == len(value),
            f"{place} = {numbers.shown(value)}",
            "must be a list of different numbers or texts, or a range",
            _EXAMPLE,
        )
        yield inner, tuple(value)


def applied(method: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method with values by path."""
    changed = dict(method)
    for path, value in values.items():
        first, _, rest = path.partition(".")
        changed[first] = applied(changed.get(first) or {}, {rest: value}) if rest else value
    return changed


def corners(space: Space) -> list[dict[str, Any]]:
    """Values for a check before the first run: every listed one, and both ends of every range."""
    ends = {path: _ends(choice) for path, choice in space.items()}
    base = {path: values[0] for path, values in ends.items()}
    return [{**base, path: value} for path, values in ends.items() for value in values]


def _ends(choice: Choice) -> Sequence[Any]:
    return (choice.low, choice.high) if isinstance(choice, Span) else choice


def given(spaces: Mapping[str, Space], options: SweepOptions) -> dict[str, list[dict[str, Any]]]:
    """The values that are known before the sweep, by label and trial; empty ones for "tpe".

    They are a function of the seed and the number of the trial, so that the order in which
    processes work does not matter. Random draws of an option are equal for the methods that share
    it.
    """
    if options.sampler == "grid":
        return _grids(spaces, options)
    trials = range(options.trials or 0)
    if options.sampler == "tpe":
        return {label: [{} for _ in trials] for label in spaces}
    return {
        label: [
            {path: _drawn(choice, options.seed, path, trial) for path, choice in space.items()}
            for trial in trials
        ]
        for label, space in spaces.items()
    }


def _drawn(choice: Choice, seed: int, path: str, trial: int) -> Any:
    share = np.random.default_rng([seed, zlib.crc32(path.encode()), trial]).random()
    return choice.at(share) if isinstance(choice, Span) else choice[int(share * len(choice))]


def _grids(spaces: Mapping[str, Space], options: SweepOptions) -> dict[str, list[dict[str, Any]]]:
    """The cells of the grids, in an order of the seed, of which `trials` are taken."""
    sizes = {}
    for label, space in spaces.items():
        for path, choice in space.items():
            require(
                not isinstance(choice, Span),
                f"range of {path} with sampler 'grid'",
                "has no values to combine",
                "list values, or set sweep.sampler = 'random' and sweep.trials",
            )
        sizes[label] = math.prod(len(_ends(choice)) for choice in space.values())
    most, least = max(sizes.values()), min(sizes.values())
    require(
        most <= _MOST_CELLS,
        f"grid of {most} cells",
        f"must have at most {_MOST_CELLS}",
        "set sweep.sampler = 'random' and sweep.trials",
    )
    trials = options.trials or most
    require(
        trials <= least,
        f"grids of {', '.join(f'{size} ({label})' for label, size in sizes.items())} cells",
        f"must have at least {trials}, because all methods have the same number of trials",
        f"list more values, or set sweep.trials = {least}, which takes that many at random",
    )
    found = {}
    for label, space in spaces.items():
        cells = list(itertools.product(*map(_ends, space.values())))
        order = np.random.default_rng([options.seed, len(cells)]).permutation(len(cells))
        found[label] = [dict(zip(space, cells[i])) for i in order[:trials]]
    return found
