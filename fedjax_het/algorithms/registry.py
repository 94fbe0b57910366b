"""Algorithms by name, for configuration files; a method of one's own is added with `register`."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from fedjax_het.algorithms.adel import adel, adel_drop, adel_wait, salf
from fedjax_het.algorithms.asynchronous import fedasync, fedbuff, fedfix
from fedjax_het.algorithms.common import Training
from fedjax_het.algorithms.dtfl import dtfl, fedgkt, splitfed
from fedjax_het.algorithms.fedavg import drop_stragglers, fedavg, fedprox
from fedjax_het.algorithms.feddrop import feddrop
from fedjax_het.algorithms.fedel import fedel
from fedjax_het.algorithms.fednova import fednova
from fedjax_het.algorithms.fedopt import fedadam, fedyogi
from fedjax_het.algorithms.fedpmt import fedpmt
from fedjax_het.algorithms.prfl import nested_mask_sync, prfl, prfl_fedasyn, prfl_fedfix
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import check_options, defaults, parameters
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.problem import Problem

Factory = Callable[..., Algorithm]

TRAINING_OPTIONS = tuple(field.name for field in fields(Training))

ALGORITHMS: dict[str, Factory] = {
    "adel": adel,
    "adel_drop": adel_drop,
    "adel_wait": adel_wait,
    "drop_stragglers": drop_stragglers,
    "dtfl": dtfl,
    "fedadam": fedadam,
    "fedasync": fedasync,
    "fedavg": fedavg,
    "fedbuff": fedbuff,
    "feddrop": feddrop,
    "fedel": fedel,
    "fedfix": fedfix,
    "fedgkt": fedgkt,
    "fednova": fednova,
    "fedpmt": fedpmt,
    "fedprox": fedprox,
    "fedyogi": fedyogi,
    "nested_mask_sync": nested_mask_sync,
    "prfl": prfl,
    "prfl_fedasyn": prfl_fedasyn,
    "prfl_fedfix": prfl_fedfix,
    "salf": salf,
    "splitfed": splitfed,
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
    check_options(options, f"option of {name}", *_signatures(name), derived=("problem",))
    return ALGORITHMS[name](problem, **options)


def default_options(name: str) -> dict[str, Any]:
    """What the options of an algorithm are where they are left out."""
    require_known(name, ALGORITHMS, "algorithm")
    return defaults(*_signatures(name))


def option_names(name: str) -> set[str]:
    """The options that an algorithm takes."""
    require_known(name, ALGORITHMS, "algorithm")
    return set(parameters(*_signatures(name))) - {"problem"}


def _signatures(name: str) -> tuple[Callable[..., Any], ...]:
    """The factory and, if it is variadic, the options it declares (`takes`; else `Training`)."""
    factory = ALGORITHMS[name]
    own = inspect.signature(factory).parameters.values()
    variadic = any(p.kind is p.VAR_KEYWORD for p in own)
    return (factory, getattr(factory, "options", Training)) if variadic else (factory,)
