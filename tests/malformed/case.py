"""What the tables of malformed inputs share."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedjax_het import Problem, algorithms, experiment

# Is given an empty directory, and must fail.
Call = Callable[[Path], Any]
# A call, and what its message must say: "value | limit | remedy", a substring of each.
Case = tuple[Call, str]

BASE: dict[str, Any] = {
    "data": {
        "source": "digits",
        "num_clients": 4,
        "partition": {"name": "dirichlet", "alpha": 0.5},
    },
    "model": {"name": "mlp", "hidden": (8,)},
    "fleet": {"name": "speed_groups"},
    "algorithm": {"name": "fedavg", "learning_rate": 0.1},
    "run": {"rounds": 1},
}


@functools.cache
def problem() -> Problem:
    """Four clients with digits, two blocks."""
    return experiment.build_problem(experiment.plain(BASE))


def changed(**changes: Any) -> dict[str, Any]:
    """The base configuration with `section__option=value`; `...` takes the option away."""
    config = copy.deepcopy(BASE)
    for path, value in changes.items():
        *parents, option = path.split("__")
        place = config
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[option]
        else:
            place[option] = value
    return config


def trained(**changes: Any) -> Call:
    """Trains a changed configuration from the start."""
    return lambda here: experiment.train(changed(**changes), here / "run")


def ran(**options: Any) -> Call:
    """Runs the base configuration with other options of `run`, on the problem at hand."""
    options = {"rounds": 1, **options}
    return lambda here: experiment.train({**BASE, "run": options}, here / "run", problem())


def method(name: str, **options: Any) -> Call:
    """Makes an algorithm."""
    options = {"learning_rate": 0.1, **options}
    return lambda here: algorithms.build(name, problem(), **options)
