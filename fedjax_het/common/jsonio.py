"""Strict JSON: no NaN, and errors that name file, line and remedy; `writing` writes it."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import read_file, reason, too_large

# Largest content of a JSON file, and of a file of JSON lines, in bytes; values inside each other.
MAX_DOCUMENT, MAX_LINES, MAX_DEPTH = 2**29, 2**34, 64
# Lists and objects of a text; digits of a whole number, so that it is one of float64.
_MAX_CONTAINERS, _MAX_DIGITS = 10**7, 300
_RESTORE = "restore the file or run the experiment again"
_NO_RUN = "name the work directory of a finished run, or resume the run"
_PLAIN = (int, str, bool, type(None))
_PLAIN_OR_FLOAT = {*_PLAIN, float}
_EXTENDED_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def jsonable(value: Any, where: str = "value") -> Any:
    """Converts `value` to plain JSON types; numbers that are not finite become None (`null`).

    JSON has no NaN and no infinity, so a diverged loss or an unlimited link is written as `null`.

    Args:
      value: numbers, text, None, paths, NumPy or JAX scalars and arrays, and lists, tuples and
        mappings of them. Keys become text.
      where: name of the value in an error message.

    Raises:
      InputError: for any other type.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if type(value) is dict and _is_plain_row(value):
        return dict(value)
    if isinstance(value, Mapping):
        return {
            str(key): item if _is_plain(item) else jsonable(item, f"{where}.{key}")
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [item if _is_plain(item) else jsonable(item, where) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.name in _EXTENDED_FLOATS:
            array = array.astype(np.float64)
        if array.dtype.kind not in "biufU":
            raise _not_json(array.dtype, where)
        return jsonable(array.tolist(), where)
    raise _not_json(type(value).__name__, where)


def _is_plain(value: Any) -> bool:
    """Whether a value stays as it is: most of the millions in the rows of a run."""
    kind = type(value)
    return kind in _PLAIN or (kind is float and math.isfinite(value))


def _is_plain_row(row: dict[Any, Any]) -> bool:
    """Whether `_is_plain` holds for all values, and keys are text; perhaps False for huge sums."""
    values = row.values()
    if not (set(map(type, row)) <= {str} and set(map(type, values)) <= _PLAIN_OR_FLOAT):
        return False
    return math.isfinite(sum([value for value in values if type(value) is float]))


def _not_json(kind: Any, where: str) -> InputError:
    return InputError(
        f"{where} is of type {kind}: records hold JSON types only; "
        "pass numbers, text, arrays, lists or dicts of them"
    )


def read_json(path: Path, remedy: str = _RESTORE, absent: str | None = _NO_RUN) -> Any:
    """The content of a JSON file.

    Args:
      path: path of the file.
      remedy: advice in an error message.
      absent: advice if there is no such file; None for `remedy`.

    Raises:
      InputError: if it is missing, not a regular file, too large, or not JSON.
    """
    return parse_json(read_file(path, remedy, MAX_DOCUMENT, absent), str(path), remedy)


def read_lines(path: Path, *, may_be_empty: bool = False, growing: bool = False) -> list[Any]:
    """The rows of a JSON-lines file.

    Args:
      path: path of the file.
      may_be_empty: whether a file may hold no row.
      growing: whether a last line without newline is left out, as of a file that is written to.

    Raises:
      InputError: if it is missing or empty, or a line is not JSON. A last line without newline is
        refused too, because a number at its end may have lost digits.
    """
    content = read_file(path, _RESTORE, MAX_LINES, _NO_RUN)
    if not content and not may_be_empty:
        raise InputError(f"{path}: is empty; run the experiment again or restore the file")
    lines = content.split(b"\n")
    if lines[-1] and not growing:
        raise InputError(
            f"{path}, line {len(lines)}: is torn (no newline at its end), the run was interrupted "
            "while writing; resume the run, which cuts it, or delete that line"
        )
    return [parse_json(line, f"{path}, line {i}") for i, line in enumerate(lines[:-1], 1)]


def parse_json(content: bytes, where: str, remedy: str = _RESTORE, distinct: bool = False) -> Any:
    """The value of a JSON text: finite numbers, at most `MAX_DEPTH` values inside each other.

    Args:
      content: text in UTF-8.
      where: name of the text in an error message.
      remedy: advice in an error message.
      distinct: whether a name that an object has twice is an error; else the last one counts.

    Raises:
      InputError: if it is anything else.
    """
    if len(content) > MAX_DOCUMENT:
        raise too_large(where, len(content), MAX_DOCUMENT, remedy)
    try:
        text = content.decode()
        held = text.count("[") + text.count("{")
        if held > _MAX_CONTAINERS:
            raise ValueError(f"{held} lists and objects, must be at most {_MAX_CONTAINERS}")
        value = (_DISTINCT if distinct else _DECODER).decode(text)
        deep = held > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8 text (byte {error.start}); {remedy}") from None
    except RecursionError:
        deep = True
    except ValueError as error:
        raise InputError(f"{where}: is not valid JSON ({reason(error)}); {remedy}") from None
    require(not deep, where, f"is nested deeper than {MAX_DEPTH}", remedy)
    return value


def _depth_exceeds(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [item for each in inner for item in each if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number, which is finite")


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits, must be at most {_MAX_DIGITS}")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _reject_constant(digits)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"the name {twice[:100]!r} is there twice")
    return found


_PARSERS: dict[str, Any] = {
    "parse_constant": _reject_constant,
    "parse_int": _whole,
    "parse_float": _finite,
}
_DECODER = json.JSONDecoder(**_PARSERS)
_DISTINCT = json.JSONDecoder(**_PARSERS, object_pairs_hook=_distinct)
