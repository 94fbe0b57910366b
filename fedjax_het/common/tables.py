"""Tables that people write, CSV or JSON records; a fault names file, line and column."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import AnyPath, listed, read_file, reason
from fedjax_het.common.jsonio import MAX_DOCUMENT, parse_json
from fedjax_het.common.numbers import is_real, shown

# Python's own parser also takes underscores, other digits than 0 to 9, and NaN.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf", re.IGNORECASE | re.ASCII)
_PICKLE = b"\x80"


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of a file, as they stand there, and the place of every row.

    Attributes:
      path: path of the file.
      columns: values by the name of the column, equally many in each; text in a CSV file.
      places: place of each row in the file, e.g. `"line 2"`.
      head: place of the names.
      content: bytes of the file.
    """

    path: str
    columns: Mapping[str, Sequence[Any]]
    places: Sequence[str]
    head: str
    content: bytes

    def __len__(self) -> int:
        return len(self.places)

    def renamed(self, columns: Mapping[str, str]) -> "Table":
        """The columns of which `columns` tells the name in this table, by the new names."""
        return replace(self, columns={new: self.columns[old] for new, old in columns.items()})

    def where(self, row: int, name: str) -> str:
        """The place of a value, for messages."""
        return f"{self.path}, {self.places[row]}, column {name!r}"

    def require(self, good: np.ndarray, name: str, limit: str, remedy: str) -> None:
        """Raises `InputError` for the first value of a column that is not good.

        Args:
          good: bool[rows].
          name: name of the column.
          limit: what holds for good values, e.g. `"must be positive"`.
          remedy: advice to the user.
        """
        bad = np.flatnonzero(~good)
        if bad.size:
            row = int(bad[0])
            value = shown(self.columns[name][row])
            raise InputError(f"{self.where(row, name)}: {value}: {limit}; {remedy}")

    def numbers(self, name: str, remedy: str = "correct the value") -> np.ndarray:
        """A column of numbers, float64[rows]; `inf` is one, and an empty cell is none."""
        found = [_number(value) for value in self.columns[name]]
        good = np.array([value is not None for value in found], bool)
        self.require(good, name, "must be a number, with a point for decimals", remedy)
        return np.array(found, np.float64)

    def texts(self, name: str, remedy: str = "fill it in") -> list[str]:
        """A column of texts that are not empty, without spaces around them; whole numbers count."""
        found = [_text(value) for value in self.columns[name]]
        self.require(np.array([bool(text) for text in found], bool), name, "must be text", remedy)
        return found


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text):
            return None
        number = float(text)
        return number if math.isfinite(number) or "inf" in text.lower() else None
    return float(value) if is_real(value) else None


def _text(value: Any) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value).strip() if whole or isinstance(value, str) else ""


def read_csv(path: AnyPath, remedy: str) -> Table:
    """A CSV file: names in its first line, values separated by commas; empty lines do not count.

    Args:
      path: path of the file, in UTF-8.
      remedy: advice in an error message.

    Raises:
      InputError: for a file that is missing or no such table, or a row of another length.
    """
    return parse_csv(path, read_file(path, remedy, MAX_DOCUMENT), remedy)


def parse_csv(path: AnyPath, content: bytes, remedy: str) -> Table:
    """The table in the content of a CSV file, or in its first lines; see `read_csv`."""
    _refuse_pickle(path, content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as CSV in UTF-8"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    rows, places = [], []
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            place = f"line {reader.line_num}"
            if not names:
                names, head = [name.strip() for name in row], place
                _check_names(path, head, names)
                continue
            require(
                len(row) == len(names),
                f"{path}, {place}: {len(row)} values",
                f"must be {len(names)}, one for each of the columns {listed(names)}",
                "separate values by commas, and put one that contains a comma in double quotes",
            )
            rows.append(row)
            places.append(place)
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: is not CSV ({reason(error)}); {remedy}"
        ) from None
    require(bool(names), str(path), "is empty, and must be a table with a line of names", remedy)
    require(bool(rows), str(path), "has names and no line of values", remedy)
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return Table(str(path), columns, places, head, content)


def _check_names(path: AnyPath, place: str, names: list[str]) -> None:
    where = f"{path}, {place}"
    for other, word in ((";", "semicolons"), ("\t", "tabs")):
        require(
            len(names) > 1 or other not in names[0],
            f"{where}: names separated by {word}",
            "must be separated by commas",
            "save it with commas between the values, and a point for decimals",
        )
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        require(bool(name), f"{where}: column {number}", "has no name", "give it one")
        require(name not in seen, f"{where}: column {name!r}", "is there twice", "rename one")
        seen.add(name)


def read_records(path: AnyPath, remedy: str, key: str) -> Table:
    """A JSON file: a list of objects with the same fields, or an object of them by `key`.

    Args:
      path: path of the file.
      remedy: advice in an error message.
      key: name of the column that gets the names of an object of objects.

    Raises:
      InputError: for a file that is missing or no such table.
    """
    value, content = read_json(path, remedy)
    keyed = isinstance(value, dict)
    rows = list(value.values()) if keyed else value
    require(
        isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) for row in rows),
        f"{path}: {shown(value)}",
        "must be a list of objects, or an object of objects by name, at least one",
        remedy,
    )
    names = [*rows[0]]
    places = [f"record {name!r}" for name in (value if keyed else range(len(rows)))]
    for place, row in zip(places, rows, strict=True):
        if row.keys() != rows[0].keys():
            missing, extra = set(names) - set(row), set(row) - set(names)
            raise InputError(
                f"{path}, {place}: lacks {sorted(missing)}, adds {sorted(extra)}: must have the "
                f"fields of {places[0]}; give all records the same fields"
            )
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in names}
    if keyed:
        where = f"{path}, {places[0]}, column {key!r}"
        require(key not in columns, where, "is the name of the record", "take the field away")
        columns = {key: [*value], **columns}
    return Table(str(path), columns, places, places[0], content)


def read_json(path: AnyPath, remedy: str) -> tuple[Any, bytes]:
    """The value of a JSON file, and its bytes; a pickle is refused with the way to convert it."""
    content = read_file(path, remedy, MAX_DOCUMENT)
    _refuse_pickle(path, content)
    return parse_json(content, str(path), remedy, distinct=True), content


def _refuse_pickle(path: AnyPath, content: bytes) -> None:
    value = f"pickle.loads(pathlib.Path({str(path)!r}).read_bytes())"
    convert = f"pathlib.Path({f'{path}.json'!r}).write_text(json.dumps({value}))"
    require(
        not content.startswith(_PICKLE),
        str(path),
        "is a pickle, which may run any program while it is read",
        f'convert it where you trust it: python -c "import json, pathlib, pickle; {convert}"',
    )
