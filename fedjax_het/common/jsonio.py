"""Strict JSON: no NaN, and errors that name file, line and remedy; `writing` writes it."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError

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
    if isinstance(value, Mapping):
        return {str(key): jsonable(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item, where) for item in value]
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


def _not_json(kind: Any, where: str) -> InputError:
    return InputError(
        f"{where} is of type {kind}: records hold JSON types only; "
        "pass numbers, text, arrays, lists or dicts of them"
    )


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      InputError: if it is missing or not JSON.
    """
    return _parse(_read(path), str(path))


def read_lines(path: Path) -> list[Any]:
    """The rows of a JSON-lines file.

    Raises:
      InputError: if it is missing or empty, or a line is not JSON. A last line without newline is
        refused too, because a number at its end may have lost digits.
    """
    text = _read(path)
    if not text:
        raise InputError(f"{path}: is empty; run the experiment again or restore the file")
    lines = text.split("\n")
    if lines[-1]:
        raise InputError(
            f"{path}, line {len(lines)}: is torn (no newline at its end), the run was interrupted "
            "while writing; resume the run, which cuts it, or delete that line"
        )
    return [_parse(line, f"{path}, line {i}") for i, line in enumerate(lines[:-1], 1)]


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise InputError(
            f"{path}: does not exist; name the work directory of a finished run, or resume the run"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not UTF-8 text (byte {error.start}); restore the file or run again"
        ) from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except ValueError as error:
        raise InputError(
            f"{where}: is not valid JSON ({error}); restore the file or run the experiment again"
        ) from None


def _reject_constant(name: str) -> Iterable[Any]:
    raise ValueError(f"{name} is not a JSON number")
