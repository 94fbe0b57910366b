"""Algorithms by name, for configuration files; a method of one's own is added with `register`."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from fedjax_het.algorithm import Algorithm
from fedjax_het.algorithms.common import Training
from fedjax_het.algorithms.fedavg import drop_stragglers, fedavg, fedprox
from fedjax_het.algorithms.feddrop import feddrop
from fedjax_het.algorithms.fedopt import fedadam, fedyogi
from fedjax_het.algorithms.fedpmt import fedpmt
from fedjax_het.errors import InputError, require, require_known
from fedjax_het.problem import Problem

Factory = Callable[..., Algorithm]

TRAINING_OPTIONS = tuple(field.name for field in fields(Training))

ALGORITHMS: dict[str, Factory] = {
    "drop_stragglers": drop_stragglers,
    "fedadam": fedadam,
    "fedavg": fedavg,
    "feddrop": feddrop,
    "fedpmt": fedpmt,
    "fedprox": fedprox,
    "fedyogi": fedyogi,
}


def register(factory: Factory) -> Factory:
    """Makes a factory `(problem, **options) -> Algorithm` known under its name; a decorator.

    Raises:
      InputError: the name is taken.
    """
    name = factory.__name__
    require(
        name not in ALGORITHMS,
        f"algorithm {name!r}",
        "is registered already",
        "give your factory another name",
    )
    ALGORITHMS[name] = factory
    return factory


def build(name: str, problem: Problem, **options: Any) -> Algorithm:
    """Makes an algorithm by name; unknown names and options are `InputError`s."""
    require_known(name, ALGORITHMS, "algorithm")
    factory = ALGORITHMS[name]
    parameters = inspect.signature(factory).parameters
    own = {n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD} - {"problem"}
    takes_training = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = own | set(TRAINING_OPTIONS) if takes_training else own
    for option in options:
        require_known(option, known, f"option of {name}")
    missing = [
        n for n in own if parameters[n].default is inspect.Parameter.empty and n not in options
    ]
    if missing:
        raise InputError(f"{name}: options {missing} are missing; must be given; add them")
    return factory(problem, **options)
