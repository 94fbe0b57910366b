"""CSV: a table of comma-separated values with a header."""

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import AnyPath, listed, reason
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.encode import Roles, encode
from fedjax_het.data.sources.readers.table import MISSING, Column, Table, as_text
from fedjax_het.data.sources.readers.targets import Target
from fedjax_het.data.sources.readers.text import (
    CORRECT,
    name_of,
    numbered,
    paths_of,
    read_utf8,
)


def read_csv(
    path: AnyPath,
    label: str | Sequence[str],
    client: str | None = None,
    split: str | None = None,
    features: Sequence[str] | None = None,
    *,
    ignore: Sequence[str] = (),
    categories: Sequence[str] = (),
    target: Target = None,
    test_path: AnyPath | None = None,
    test_fraction: float | None = None,
    test_clients: Sequence[Any] = (),
    delimiter: str = ",",
    missing: Sequence[str] = MISSING,
) -> RawData:
    """A table of comma-separated values, whose first line names its columns.

    A feature column of numbers becomes one input, with mean 0 and deviation 1 over the training
    rows. One of text becomes an input of 0 and 1 per category of the training rows; other
    categories have 0 in all of them. If a training row lacks a value, an input of 0 and 1 that says
    so is added; a missing number is the mean, a missing category 0 everywhere.

    Labels that are text or whole numbers are classes, in the sorted order of their values; other
    numbers are numbers (regression). Clients are numbered in the sorted order of their ids.

    Example::

        raw = fh.data.read_csv("hospitals.csv", label="outcome", client="hospital", split="split")
        data = fh.data.load_federated(raw)

    Args:
      path: path of the file, which may be compressed by gzip.
      label: column of the labels; or several, all of 0 and 1 (labels of which several hold) or of
        numbers.
      client: column of the clients, or None.
      split: column of the words train and test, or None.
      features: columns of the inputs; None for all that have no other use.
      ignore: columns that are not used.
      categories: columns of numbers that are names of categories (or of classes, for the label).
      target: kind of the labels, `"classes"` or `"numbers"`; None for the rule above.
      test_path: file of the test rows with the same columns, or None.
      test_fraction: share of the rows of each client (of all, without clients) that are test rows,
        drawn at random and always alike; 0.2 if nothing else says which are.
      test_clients: clients whose rows are all test rows.
      delimiter: character between values.
      missing: words for a missing value.

    Raises:
      InputError: for a file or a column that cannot be used; the message names the line.
    """
    table = csv_table(path, test_path, delimiter, missing)
    roles = Roles(
        label=label,
        client=client,
        split=split,
        features=features,
        ignore=ignore,
        categories=categories,
        target=target,
        test_fraction=test_fraction,
        test_clients=test_clients,
    )
    return encode(table, roles)


def csv_table(
    path: AnyPath,
    test_path: AnyPath | None = None,
    delimiter: str = ",",
    missing: Sequence[str] = MISSING,
) -> Table:
    """The table of a CSV file, and of one of test rows; see `read_csv`."""
    require(
        len(delimiter) == 1 and delimiter not in '\r\n"',
        f"delimiter = {delimiter!r}",
        "must be one character, and no quote",
        "',' is customary",
    )
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[tuple[Path, int]] = []
    first = 0
    for each in paths_of(path, test_path):
        own, found = _records(each, delimiter)
        require(
            not header or set(own) == set(header),
            f"{each}: columns {listed(own)}",
            f"must be those of {path}, {listed(header)}",
            "make both files alike",
        )
        header = header or own
        order = [own.index(name) for name in header]
        rows += [[values[j] for j in order] for _, values in found]
        lines += [(each, line) for line, _ in found]
        first = first or len(found)
    return Table(
        name=name_of(Path(path)),
        where=str(path),
        columns=_columns(header, rows, frozenset(missing)),
        rows=len(rows),
        row=partial(numbered, lines),
        held=None if test_path is None else np.arange(len(rows)) >= first,
    )


def _records(path: Path, delimiter: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a file, and its rows with their line numbers."""
    reader = csv.reader(io.StringIO(read_utf8(path), newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    found: list[tuple[int, list[str]]] = []
    try:
        for values in reader:
            if not header:
                header = [name.strip() for name in values]
            elif values:
                if len(values) != len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(values)} values: must be "
                        f"{len(header)}, one per column; correct the line, or say delimiter"
                    )
                found.append((reader.line_num, values))
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: not comma-separated values ({reason(error)}); "
            f"{CORRECT}"
        ) from None
    twice = sorted({name for name in header if header.count(name) > 1 or not name})
    require(
        bool(header) and not twice,
        f"{path}, line 1: column names {listed(twice or header)}",
        "must be given, each once",
        "name every column in the first line",
    )
    require(bool(found), f"{path}", "has no rows below its header", CORRECT)
    return header, found


def _columns(
    header: list[str], rows: list[list[str]], missing: frozenset[str]
) -> dict[str, Callable[[], Column]]:
    def column(place: int) -> Column:
        texts = [values[place].strip() for values in rows]
        absent = np.fromiter((text in missing for text in texts), bool, len(texts))
        return Column(as_text(texts, absent), absent, loose=True)

    return {name: partial(column, place) for place, name in enumerate(header)}
