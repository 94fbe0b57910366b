"""The kinds of values in a record, and the checks of its rows: by columns, and by row for a fault.

Kinds: i = whole number >= 0, w = that or null, n = number >= 0, r = any number, f = number >= 0
or null (not finite), g = any number or null, b = true or false, t = text, o = that or null,
l = list, d = mapping, m = that or null. A schema is a mapping from keys to kinds. A key that ends
in "?" may be absent; keys that are not listed may hold anything.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_het.common.errors import InputError, require

REDO = "restore the file or run the experiment again"
# Above this, sums of rows would not be finite.
_LARGEST = 1e300
_KINDS = {
    "i": "a whole number >= 0",
    "w": "a whole number >= 0 or null",
    "n": "a number >= 0",
    "r": "a number",
    "f": "a number >= 0 or null",
    "g": "a number or null",
    "b": "true or false",
    "t": "text",
    "o": "text or null",
    "l": "a list",
    "d": "a mapping",
    "m": "a mapping or null",
}
# Kinds that may be null, and what they are else.
_OR_NULL = dict(zip("wfgom", "inrtd", strict=True))
# Types and limits of numbers. Values are as JSON has them, so that their types are exactly these.
_NUMBERS: dict[str, tuple[set[type], float, float]] = {
    "i": ({int}, 0, 2**63 - 1),
    "n": ({int, float}, 0, _LARGEST),
    "r": ({int, float}, -_LARGEST, _LARGEST),
}
_TYPES: dict[str, type] = {"b": bool, "t": str, "l": list, "d": dict}


def fits(values: Sequence[Any], kind: str) -> bool:
    """Whether all values are of a kind."""
    types = set(map(type, values))
    if kind in _OR_NULL:
        kind = _OR_NULL[kind]
        if type(None) in types:
            types.remove(type(None))
            values = [value for value in values if value is not None]
    if kind not in _NUMBERS:
        return types <= {_TYPES[kind]}
    allowed, least, most = _NUMBERS[kind]
    return types <= allowed and (not values or (least <= min(values) and max(values) <= most))


def check_row(row: Any, schema: Mapping[str, str], where: str) -> None:
    """Raises `InputError` unless a row fits a schema.

    Args:
      row: row to check.
      schema: kinds of its values.
      where: name of the row.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: must be a mapping, not {type(row).__name__}; {REDO}")
    for key, kind in schema.items():
        name = key.removesuffix("?")
        if name not in row:
            require(name != key, f"{where}: {name!r}", "is missing", REDO)
        elif not fits([row[name]], kind):
            raise InputError(f"{where}: {name} = {row[name]!r} must be {_KINDS[kind]}; {REDO}")


def check_rows(rows: Sequence[Any], schema: Mapping[str, str], where: str) -> None:
    """Raises `InputError` unless all rows fit a schema; the message names the first that does not.

    Args:
      rows: rows to check; a run has millions of values in them.
      schema: kinds of their values.
      where: name of the file with the rows.
    """
    if set(map(type, rows)) <= {dict} and all(
        _column_fits(rows, key, kind) for key, kind in schema.items()
    ):
        return
    for i, row in enumerate(rows, 1):
        check_row(row, schema, f"{where}, line {i}")


def _column_fits(rows: Sequence[dict[str, Any]], key: str, kind: str) -> bool:
    """Whether a column of rows fits."""
    name = key.removesuffix("?")
    values = [row[name] for row in rows if name in row]
    return (len(values) == len(rows) or name != key) and fits(values, kind)


def check_each(values: Sequence[Any], kind: str, what: str) -> None:
    """Raises `InputError` unless all values of a list are of a kind; `what` names the list."""
    wrong = [value for value in values if not fits([value], kind)]
    require(not wrong, f"{what} holds {wrong[:1]}", f"must be a list, each {_KINDS[kind]}", REDO)
