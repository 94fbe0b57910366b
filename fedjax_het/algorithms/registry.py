"""Registry of the methods: factories register themselves, and configurations name them."""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar, overload

from fedjax_het.algorithms.describing import describe
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import (
    check_options,
    check_types,
    defaults,
    filled,
    grouped,
    parameters,
    real,
)
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.problem import Problem
from fedjax_het.transforms.catalogue import TRANSFORMATIONS
from fedjax_het.transforms.compose import compose as composition
from fedjax_het.transforms.named import Choice, named
from fedjax_het.transforms.select import SELECTIONS

Factory = Callable[..., Algorithm]
_Made = TypeVar("_Made", bound=Factory)

TRAINING_OPTIONS = tuple(field.name for field in fields(TrainingOptions))


@dataclass(frozen=True)
class CompositionOptions:
    """Options of every registered method that its factory need not know.

    Attributes:
      select: selection of the cohort: a name of `transforms.select.SELECTIONS`; a mapping of the
        name and its options, e.g. `{"name": "oort", "cut": 0.7}`; or a transformation. None keeps
        that of the method.
      compose: transformations of the method, from left to right, before `select`: names of
        `transforms.catalogue.TRANSFORMATIONS`, mappings of a name and its options, e.g. `{"name":
        "compress.top_k", "share": 0.1}`, or transformations.
    """

    select: Choice | None = None
    compose: Sequence[Choice] | None = None


# Options that a method of a comparison takes over from another one.
_COMPOSITION = tuple(field.name for field in fields(CompositionOptions))
SHARED_OPTIONS = (*TRAINING_OPTIONS, *_COMPOSITION)

# Factories `(problem, **options) -> Algorithm` by name.
ALGORITHMS: dict[str, Factory] = {}
# Dataclass of the variadic options of each factory.
_VARIADIC: dict[str, type] = {}


@overload
def register(factory: _Made) -> _Made: ...
@overload
def register(*, options: type) -> Callable[[_Made], _Made]: ...
def register(factory: Any = None, *, options: type = TrainingOptions) -> Any:
    """Registers a factory `(problem, **options) -> Algorithm` under its name; a decorator.

    The algorithms of the factory then know its options, with defaults, as `Algorithm.options`. Like
    every registered method it takes `CompositionOptions` as well.

    Args:
      factory: factory to register.
      options: dataclass of its variadic options, if it has any.

    Raises:
      InputError: if the name is already registered.
    """
    if factory is None:
        return lambda factory: _register(factory, options)
    return _register(factory, options)


def _register(factory: _Made, options: type) -> _Made:
    name = factory.__name__
    require(
        name not in ALGORITHMS,
        f"algorithm {name!r}",
        "is registered already",
        "give your factory another name",
    )

    @functools.wraps(factory)
    def recorded(
        *arguments: Any, select: Any = None, compose: Any = None, **given: Any
    ) -> Algorithm:
        steps = [named(each, TRANSFORMATIONS, "transformation") for each in compose or ()]
        selecting = [] if select is None else [named(select, SELECTIONS, "select")]
        made_by = signatures(name)
        known = parameters(*made_by)
        hints = {option: each.annotation for option, each in known.items()}
        all_given = {**dict(zip(known, arguments, strict=False)), **given}
        own = {n: v for n, v in all_given.items() if n in known and n != "problem"}
        check_types(own, f"option of {name}", *made_by)
        algorithm = factory(
            *map(real, arguments, itertools.chain(hints.values(), itertools.repeat(Any))),
            **{option: real(value, hints.get(option)) for option, value in given.items()},
        )
        chosen = resolved_options(name, all_given)
        told = {
            option: describe(value, known[option].annotation if option in known else None)
            for option, value in chosen.items()
            if option not in ("problem", *_COMPOSITION)
        }
        return composition(algorithm._replace(options=told), *steps, *selecting)

    ALGORITHMS[name], _VARIADIC[name] = recorded, options
    return recorded  # type: ignore[return-value]


def build(name: str, problem: Problem, **options: Any) -> Algorithm:
    """Makes an algorithm by name; raises `InputError` for unknown names and options.

    Args:
      name: name of the method, a key of `ALGORITHMS`.
      problem: model, data and fleet.
      **options: keyword arguments of the factory; a group of options may be a mapping.
    """
    require_known(name, ALGORITHMS, "algorithm")
    known = signatures(name)
    check_options(options, f"option of {name}", *known, derived=("problem",))
    return ALGORITHMS[name](problem, **grouped(options, *known))


def default_options(name: str) -> dict[str, Any]:
    """Default options of an algorithm; groups are dictionaries."""
    require_known(name, ALGORITHMS, "algorithm")
    return defaults(*signatures(name))


def resolved_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The given options with defaults for missing options, also within groups."""
    require_known(name, ALGORITHMS, "algorithm")
    return filled(options, *signatures(name))


def option_names(name: str) -> set[str]:
    """Names of an algorithm's options."""
    require_known(name, ALGORITHMS, "algorithm")
    return set(parameters(*signatures(name))) - {"problem"}


def signatures(name: str) -> tuple[Callable[..., Any], ...]:
    """The factory and the dataclasses that have the options of a method."""
    factory = ALGORITHMS[name]
    own = inspect.signature(factory).parameters.values()
    variadic = any(p.kind is p.VAR_KEYWORD for p in own)
    return (factory, *([_VARIADIC[name]] if variadic else []), CompositionOptions)
