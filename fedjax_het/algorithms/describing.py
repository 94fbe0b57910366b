"""Options of a method in JSON types, for the identity of a run.

Equal options have equal descriptions. Different ones have different descriptions, except that of an
object of a class of its own only the name of the class is known.
"""

import hashlib
import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin

import jax
import numpy as np
import optax

from fedjax_het.local import optimizers

# Arrays with at most this many values are written out.
_SHORT = 64
# Rounds by whose values a function of the round is described.
_ROUNDS = 64


def describe(value: Any, hint: Any = None) -> Any:
    """A value in JSON types.

    Args:
      value: option of a method. Longer arrays are described by a digest; optax transformations by
        one of their first step; functions of a round, as `hint` knows them, by their first values;
        other functions by their name and a digest of their code and of what it refers to.
      hint: annotation of the option.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, optax.GradientTransformation):
        return optimizers.described(value)
    if callable(value) and _of_a_round(hint):
        return _of_values(value)
    if isinstance(value, types.FunctionType):
        return f"{value.__module__}.{value.__qualname__} {_digest(_code(value))}"
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: describe(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.size <= _SHORT:
            return describe(array.tolist())
        return f"{array.dtype}{list(array.shape)} {_digest(array.tobytes())}"
    return type(value).__qualname__


def _digest(content: Any) -> str:
    data = content if isinstance(content, bytes) else repr(content).encode()
    return hashlib.sha256(data).hexdigest()[:12]


def _of_a_round(hint: Any) -> bool:
    """Whether an annotation knows functions, and all of them take one whole number."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return any(get_origin(kind) is Callable and get_args(kind)[0] == [int] for kind in kinds)


def _of_values(function: Callable[[int], Any]) -> str:
    values: list[Any] = []
    for t in range(_ROUNDS):
        try:
            values.append(np.asarray(function(t), np.float64).tolist())
        except Exception:  # it may know fewer rounds, and says so when one is planned
            break
    first = ", ".join(f"{value:.4g}" for value in values[:4] if isinstance(value, float))
    return f"a function of the round ({first} ...) {_digest(values)}"


def _code(function: Any) -> Any:
    """What a function computes: its code, the code inside, defaults and closed-over values."""

    def of(code: types.CodeType) -> Any:
        constants = [of(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
        return code.co_code, constants, code.co_names

    held = {
        **inspect.getclosurevars(function).nonlocals,
        "defaults": function.__defaults__,
        "keyword defaults": function.__kwdefaults__,
    }
    return of(function.__code__), {name: _word(value) for name, value in held.items()}


def _word(value: Any) -> str:
    """What a value that a function refers to says of itself, without its address in memory."""
    if isinstance(value, np.ndarray | jax.Array):
        return _digest(np.asarray(value).tobytes())
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
