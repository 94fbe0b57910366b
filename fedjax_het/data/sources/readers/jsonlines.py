"""JSON lines: a table of one object per line, whose values may be lists."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import AnyPath
from fedjax_het.common.jsonio import parse_json
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.encode import Roles, encode
from fedjax_het.data.sources.readers.features import Tokens
from fedjax_het.data.sources.readers.table import Column, Lists, Table, as_text
from fedjax_het.data.sources.readers.targets import Target
from fedjax_het.data.sources.readers.text import (
    CORRECT,
    name_of,
    numbered,
    paths_of,
    read_utf8,
)

_KINDS: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "text"}


def read_jsonl(
    path: AnyPath,
    label: str | Sequence[str],
    client: str | None = None,
    split: str | None = None,
    features: Sequence[str] | None = None,
    *,
    ignore: Sequence[str] = (),
    categories: Sequence[str] = (),
    target: Target = None,
    tokens: Tokens = None,
    test_path: AnyPath | None = None,
    test_fraction: float | None = None,
    test_clients: Sequence[Any] = (),
) -> RawData:
    """A table of JSON lines: an object per line, whose keys are the columns.

    Columns of one value per line are used as those of `read_csv`; a key that a line lacks, or null,
    is a missing value. A column of lists must be the only feature. A label that is a list names the
    labels that hold, unless all lists are equally long and of 0 and 1, or of fractions.

    Args:
      path: path of the file, which may be compressed by gzip.
      label: see `read_csv`, as all options that are not below.
      client: column of the clients, or None.
      split: column of the words train and test, or None.
      features: columns of the inputs; None for all that have no other use.
      ignore: columns that are not used.
      categories: columns of numbers that are names of categories.
      target: kind of the labels; None for the rule.
      tokens: use of whole numbers in features: None, numbers; `"sequence"`, tokens, int32[N, T],
        where lists of unequal length become a dictionary of `tokens`, padded with 0 at the end, and
        `mask`, bool[N, T], true for tokens; `"bag"`, how often each token of the training rows is
        in a row, float32[N, V].
      test_path: file of the test rows with the same columns, or None.
      test_fraction: share of the rows of each client that are test rows.
      test_clients: clients whose rows are all test rows.

    Raises:
      InputError: for a file or a column that cannot be used; the message names the line.
    """
    rows: list[dict[str, Any]] = []
    lines: list[tuple[Path, int]] = []
    first = 0
    for each in paths_of(path, test_path):
        for number, line in enumerate(read_utf8(each).split("\n"), 1):
            if line.strip():
                value = parse_json(line.encode(), f"{each}, line {number}", CORRECT)
                if not isinstance(value, dict):
                    raise InputError(
                        f"{each}, line {number}: {type(value).__name__}: must be an object in "
                        f"braces; {CORRECT}"
                    )
                rows.append(value)
                lines.append((each, number))
        require(len(rows) > first, str(each), "has no line", CORRECT)
        first = first or len(rows)
    place = partial(numbered, lines)
    table = Table(
        name=name_of(Path(path)),
        where=str(path),
        columns=_columns(rows, place),
        rows=len(rows),
        row=place,
        held=None if test_path is None else np.arange(len(rows)) >= first,
    )
    roles = Roles(
        label=label,
        client=client,
        split=split,
        features=features,
        ignore=ignore,
        categories=categories,
        target=target,
        tokens=tokens,
        test_fraction=test_fraction,
        test_clients=test_clients,
    )
    return encode(table, roles)


def _columns(
    rows: list[dict[str, Any]], place: Callable[[int], str]
) -> dict[str, Callable[[], Column]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {
        name: partial(column_of, name, [row.get(name) for row in rows], place) for name in names
    }


def column_of(name: str, values: Sequence[Any], place: Callable[[int], str]) -> Column:
    """A column of JSON values: numbers, bools, text, or lists of one of them; null is missing.

    Args:
      name: name of the column.
      values: value of each row.
      place: place of a row, for error messages.

    Raises:
      InputError: for values of several kinds, and for objects and nested lists.
    """
    absent = np.array([value is None for value in values])
    lists = [isinstance(value, list) for value in values]
    if not any(lists):
        return Column(_array(name, values, range(len(values)), absent, place), absent)
    odd = next((i for i, value in enumerate(values) if not lists[i] and not absent[i]), None)
    if odd is not None:
        raise InputError(f"{place(odd)}: {name} is no list, as others are; {CORRECT}")
    sizes = np.array([len(value or ()) for value in values], np.int64)
    flat = [part for value in values for part in value or ()]
    owner = np.repeat(np.arange(len(values)), sizes)
    inner = _array(name, flat, owner, np.array([part is None for part in flat], bool), place)
    if None in flat:
        row = int(owner[flat.index(None)])
        raise InputError(f"{place(row)}: {name} lists null: must not be missing; {CORRECT}")
    if len(set(sizes.tolist())) == 1 and sizes[0]:
        return Column(inner.reshape(len(values), -1), absent)
    return Column(Lists(inner, sizes), absent)


def _array(
    name: str,
    values: Sequence[Any],
    owner: Sequence[int] | np.ndarray,
    absent: np.ndarray,
    place: Callable[[int], str],
) -> np.ndarray:
    """Values of one kind as an array, 0 or "" where they are missing; `owner` is their row."""
    some: Any = 0
    kind = None
    for i, value in enumerate(values):
        if value is None:
            continue
        own = _KINDS.get(type(value), "a list or an object")
        kind = kind or own
        if own != kind or own not in _KINDS.values():
            raise InputError(
                f"{place(int(owner[i]))}: {name} holds {own}: must be "
                + ("a number, text, true or false" if own == kind else f"{kind}, as others are")
                + f"; {CORRECT}"
            )
        some = value
    if kind is None:
        return np.zeros(len(values))
    if kind == "text":
        return as_text(values, absent)
    given = [type(some)() if value is None else value for value in values]
    if kind == "true or false":
        return np.array(given, bool)
    if any(isinstance(value, float) for value in given):
        return np.array(given, np.float64)
    for i, value in enumerate(given):
        if not -(2**63) <= value < 2**63:
            raise InputError(
                f"{place(int(owner[i]))}: {name} = {value}: must be below 2^63; {CORRECT}"
            )
    return np.array(given, np.int64)
