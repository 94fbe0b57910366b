"""Options by name, checked against the signature of their factory before it is called.

A signature defines which options exist, which are required, and, by its annotations, which types
they have, and how large numbers may be (`common.numbers`). A group of options is a dataclass; it
may be given as an instance or as a mapping. The factory itself checks what its values mean.
"""

import functools
import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from fedjax_het.common import numbers
from fedjax_het.common.arrays import require_unmasked
from fedjax_het.common.errors import InputError, require_known

_Made = TypeVar("_Made", bound=Callable[..., Any])

_WORDS = {
    bool: "True or False",
    float: "a number",
    int: "a whole number",
    str: "text",
    type(None): "None",
    np.ndarray: "a list",
}


def check_options(
    options: Mapping[str, Any],
    what: str,
    *factories: Callable[..., Any],
    derived: Collection[str] = (),
) -> None:
    """Raises `InputError` unless the options can be passed to the factories that share them.

    Args:
      options: names and values of the options.
      what: name of an option in error messages, e.g. `"option of fleet 'uniform'"`.
      *factories: functions or classes; an option belongs to the first whose signature has it.
      derived: parameters that the caller fills in; they may not be given as options.
    """
    known = parameters(*factories)
    for name in options:
        if name in derived:
            raise InputError(
                f"{what} {name!r}: follows from the rest of the configuration; leave it out"
            )
        require_known(name, set(known) - set(derived), what)
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options and name not in derived:
            raise InputError(
                f"{what} {name!r} is missing: must be given, {_words(parameter.annotation)}; "
                f"add {name} = ..."
            )
    check_types(options, what, *factories)


def check_types(options: Mapping[str, Any], what: str, *factories: Callable[..., Any]) -> None:
    """Raises `InputError` unless every option has the type in the signatures' annotations."""
    known = parameters(*factories)
    for name, value in options.items():
        require_unmasked(value, f"{what} {name!r}")
        hint, default = known[name].annotation, known[name].default
        group = _group(hint)
        if group is not None and isinstance(value, Mapping):
            check_options(value, f"{what} {name!r}, its option", group)
            continue
        if _fits(value, hint):
            continue
        if get_origin(hint) is Literal:
            require_known(value, map(str, get_args(hint)), name)
        usable = default is not inspect.Parameter.empty and default is not None
        remedy = f"e.g. {name} = {default!r}" if usable else f"correct {name}"
        limit = _words(hint, ranges=_fits(value, hint, ranges=False))
        raise InputError(f"{what} {name!r} = {numbers.shown(value)}: must be {limit}; {remedy}")


def checked(factory: _Made) -> _Made:
    """Decorates a factory that is also called directly: every call checks its numbers.

    The factory itself says what is wrong with options that are no numbers.
    """
    signature = inspect.signature(factory)
    hints = {name: each.annotation for name, each in parameters(factory).items()}
    hints = {name: hint for name, hint in hints.items() if _numeric(hint)}

    @functools.wraps(factory)
    def call(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        own = {name: value for name, value in bound.arguments.items() if name in hints}
        check_types(own, f"option of {factory.__name__}", factory)
        bound.arguments |= {name: real(value, hints[name]) for name, value in own.items()}
        return factory(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


def real(value: Any, hint: Any) -> Any:
    """The value of an option; a whole number of more than 32 bits given for a real one as a float.

    A program takes a whole number of Python as one of 32 bits.
    """
    kinds = {kind for each in (hint, *get_args(hint)) if (kind := _number(each)[0]) is not None}
    large = isinstance(value, int) and abs(value) > numbers.INT32
    return float(value) if large and kinds == {float} else value


def grouped(options: Mapping[str, Any], *factories: Callable[..., Any]) -> dict[str, Any]:
    """The options as `real` has them, with every group given as a mapping made its dataclass.

    Args:
      options: names and values of options, checked by `check_options`.
      *factories: factories that take the options.
    """
    known = parameters(*factories)

    def made(name: str, value: Any) -> Any:
        group = _group(known[name].annotation)
        if group is None or not isinstance(value, Mapping):
            return real(value, known[name].annotation)
        given, default = grouped(value, group), known[name].default
        # Options that the mapping leaves out have the values of the factory's default, if any.
        same: Any = default if isinstance(default, group) else None
        return group(**given) if same is None else replace(same, **given)

    return {name: made(name, value) for name, value in options.items()}


def defaults(*factories: Callable[..., Any]) -> dict[str, Any]:
    """The options that may be left out, with their default values; groups are dictionaries."""
    return {
        name: asdict(default) if is_dataclass(default) else default  # type: ignore[arg-type]
        for name, parameter in parameters(*factories).items()
        if (default := parameter.default) is not parameter.empty
    }


def filled(options: Mapping[str, Any], *factories: Callable[..., Any]) -> dict[str, Any]:
    """The options with the defaults of their factories filled in, also inside groups.

    Args:
      options: names and values of options, checked by `check_options`; a group may be a mapping.
      *factories: factories that take the options.
    """
    known = parameters(*factories)
    made = grouped({name: value for name, value in options.items() if name in known}, *factories)
    plain = {n: asdict(v) if is_dataclass(v) else v for n, v in made.items()}  # type: ignore[arg-type]
    return {**defaults(*factories), **options, **plain}


def parameters(*factories: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of factories that share their options, by name, without variadic ones."""
    found: dict[str, inspect.Parameter] = {}
    for factory in factories:
        fixed = factory.keywords if isinstance(factory, functools.partial) else ()
        for name, parameter in inspect.signature(factory).parameters.items():
            variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if not variadic and name not in fixed:
                found.setdefault(name, parameter)
    return found


def _group(hint: Any) -> type | None:
    """The dataclass in an annotation, or None."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)


def _fits(value: Any, hint: Any, ranges: bool = True) -> bool:
    """Whether a value has an annotated type; a list is accepted for any sequence, as in JSON.

    Args:
      value: value of an option.
      hint: its annotation.
      ranges: whether numbers must also lie in their ranges.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (Any, inspect.Parameter.empty) or isinstance(hint, str):
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, each, ranges) for each in inner)
    if origin is Literal:
        return isinstance(value, str | int | None) and value in inner
    kind, limit = _number(hint)
    if kind is not None:
        real = numbers.is_real(value) and (kind is float or isinstance(value, int | np.integer))
        return real and (not ranges or numbers.fits(value, kind, limit))
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint is np.ndarray or origin in (Sequence, list, tuple):
        if not isinstance(value, list | tuple | np.ndarray):
            return False
        if isinstance(value, np.ndarray) and value.ndim == 0:
            return False
        if origin is tuple and Ellipsis not in inner:
            pairs = zip(value, inner, strict=False)
            return len(value) == len(inner) and all(_fits(*pair, ranges) for pair in pairs)
        one = not inner or hint is np.ndarray
        return one or all(_fits(each, inner[0], ranges) for each in value)
    return isinstance(value, origin or hint)


def _number(hint: Any) -> tuple[type | None, numbers.Range | None]:
    """Whether an annotation is of numbers: int or float, and their range; None for others."""
    if hint in (int, float):
        return hint, None
    if get_origin(hint) is Annotated:
        kind, limit = get_args(hint)[:2]
        return kind, limit
    return None, None


def _numeric(hint: Any) -> bool:
    """Whether numbers belong to an annotated type, alone or in a list."""
    return _number(hint)[0] is not None or any(map(_numeric, get_args(hint)))


def _words(hint: Any, ranges: bool = False) -> str:
    """An annotation in words, with the ranges of its numbers if they matter."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is inspect.Parameter.empty:
        return "see its factory"
    if origin in (Union, types.UnionType):
        return " or ".join(_words(each, ranges) for each in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin in (Sequence, list, tuple):
        return f"a list, each {_words(inner[0], ranges)}" if inner else "a list"
    kind, limit = _number(hint)
    if kind is not None:
        return numbers.words(kind, limit) if ranges else _WORDS[kind]
    if origin is not None and issubclass(origin, Callable):  # type: ignore[arg-type]
        return "a function"
    return _WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"
