"""A table with named columns: what CSV, JSON lines, Parquet and hub data sets are read into."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedjax_het.common.errors import InputError, require, require_known

# Longest text of a column that is used, in characters: names of categories, classes and clients.
MAX_TEXT = 250
# Words that mean a missing value where a file has only text.
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "None", "?")
# A whole number as a program writes it; "007" is a name.
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True, eq=False)
class Lists:
    """Lists of unequal length, one per row.

    Attributes:
      values: values of all lists one after the other, int64, float64 or text [M].
      sizes: number of values of each list, int64[N]; their sum is M.
    """

    values: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True, eq=False)
class Column:
    """The values of one column.

    Attributes:
      values: numbers, bools or text, [N, ...], or lists.
      missing: whether the value of a row is missing, bool[N].
      loose: whether numbers are written as text, as in CSV.
    """

    values: np.ndarray | Lists
    missing: np.ndarray
    loose: bool = False


@dataclass(frozen=True, eq=False)
class Table:
    """Named columns of N rows, which are converted when they are asked for.

    Attributes:
      name: name of the data set.
      where: file, for error messages.
      columns: functions that make the columns, by name.
      rows: number N of rows.
      row: function from the number of a row to its file and place in it, for error messages.
      held: whether a row is from a file of test rows, bool[N]; None without such a file.
      classes: names of the classes of columns that hold their numbers.
    """

    name: str
    where: str
    columns: Mapping[str, Callable[[], Column]]
    rows: int
    row: Callable[[int], str]
    held: np.ndarray | None = None
    classes: Mapping[str, Sequence[str]] | None = None

    def column(self, name: str, what: str) -> Column:
        """A column by name; `what` says for which option in an error message."""
        require_known(name, self.columns, f"{self.where}: {what}")
        return self.columns[name]()

    def complete(self, name: str, what: str) -> Column:
        """A column of which no value may be missing."""
        column = self.column(name, what)
        absent = np.flatnonzero(column.missing)
        if absent.size:
            raise self.wrong(
                int(absent[0]),
                f"the {what} in column {name!r} is missing ({absent.size} of {self.rows} rows)",
                "must be given for every row",
                "fill it in, or leave these rows out",
            )
        return column

    def wrong(self, row: int, what: str, limit: str, remedy: str) -> InputError:
        """The error for a row."""
        return InputError(f"{self.row(row)}: {what}: {limit}; {remedy}")

    def scalars(self, name: str, column: Column, text: bool = False) -> np.ndarray:
        """Values of a column that holds one per row: int64, float64, bool or text [N].

        What is missing is 0, or "".

        Args:
          name: name of the column.
          column: the column.
          text: whether numbers that are written as text stay text.
        """
        values = column.values
        require(
            isinstance(values, np.ndarray) and values.ndim == 1,
            f"{self.where}: column {name!r} holds "
            + ("lists" if isinstance(values, Lists) else f"arrays of shape {values.shape[1:]}"),
            "must hold one value per row here",
            "name another column, or leave it out with ignore",
        )
        assert isinstance(values, np.ndarray)
        if values.dtype.kind == "U":
            self._check_text(name, values)
            if column.loose and not text:
                return self._parsed(name, values, column.missing)
        return values

    def ids(self, name: str, what: str) -> np.ndarray:
        """A column of the names of something: text or int64 [N]."""
        values = self.scalars(name, column := self.complete(name, what), text=True)
        if column.loose and all(map(_WHOLE.fullmatch, np.unique(values).tolist())):
            return values.astype(np.int64)
        require(
            values.dtype.kind in "iuU",
            f"{self.where}: the {what} in column {name!r} is {values.dtype}",
            "must be text or whole numbers",
            "convert the column",
        )
        return values

    def _check_text(self, name: str, values: np.ndarray) -> None:
        if values.dtype.itemsize > 4 * MAX_TEXT:
            longest = int(np.argmax(np.char.str_len(values)))
            raise self.wrong(
                longest,
                f"column {name!r} has a text of {len(values[longest])} characters",
                f"must be at most {MAX_TEXT} as a category, a class or a client",
                "leave the column out with ignore",
            )

    def _parsed(self, name: str, texts: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """The numbers that texts stand for, or the texts if none is a number."""
        given = texts[~missing]
        try:
            numbers = given.astype(np.float64)
        except ValueError:
            self._check_unmixed(name, texts, missing)
            return texts
        if not given.size:
            return np.zeros(len(texts))
        kind: type = np.float64
        if all(_WHOLE.fullmatch(text) for text in given):
            kind, numbers = np.int64, given.astype(np.int64)
        values: np.ndarray = np.zeros(len(texts), kind)
        values[~missing] = numbers
        return values

    def _check_unmixed(self, name: str, texts: np.ndarray, missing: np.ndarray) -> None:
        known, place = np.unique(texts[~missing], return_inverse=True)
        is_number = np.array([_is_number(text) for text in known.tolist()])[place]
        if not is_number.any():
            return
        most = is_number.mean() >= 0.5
        odd = int(np.flatnonzero(~missing)[np.flatnonzero(is_number != most)[0]])
        among = ("text", "numbers") if most else ("a number", "texts")
        raise self.wrong(
            odd,
            f"{str(texts[odd])!r} in column {name!r}",
            f"is {among[0]} among {among[1]}, and a column must hold one kind",
            "correct it, name the column in categories, or the word in missing",
        )


def as_text(texts: Sequence[str], absent: np.ndarray) -> np.ndarray:
    """Text [N], with "" for what is missing; too long a text is cut, but stays too long."""
    # An array has the room of the longest text for every row.
    most = MAX_TEXT + 1
    return np.array(["" if no else text[:most] for text, no in zip(texts, absent)], str)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
