"""Columns of a table as the inputs of a model."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedjax_het.common.arrays import as_int32
from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import MAX_BYTES, too_large
from fedjax_het.common.types import PyTree
from fedjax_het.data.sources.readers.table import Column, Lists, Table

Tokens = Literal["sequence", "bag"] | None
# Categories of a column, each of which becomes an input.
MAX_CATEGORIES = 1000


def inputs_of(
    table: Table, names: Sequence[str], held: np.ndarray, categories: Sequence[str], tokens: Tokens
) -> PyTree:
    """The inputs of all rows, [N, ...], in storage dtypes.

    Columns of one value per row become columns of numbers, see `read_csv`. A column of arrays or
    lists must be the only one.

    Args:
      table: table.
      names: columns to use, in their order.
      held: test rows, bool[N], of which no statistics are taken.
      categories: columns of numbers that are names of categories.
      tokens: use of whole numbers as tokens, see `read_jsonl`; None for numbers.
    """
    require(
        len(names) > 0,
        f"{table.where}: 0 feature columns",
        "must be at least 1",
        "name them in features",
    )
    columns = {name: table.column(name, "feature column") for name in names}
    whole = [
        name for name, c in columns.items() if isinstance(c.values, Lists) or c.values.ndim > 1
    ]
    if whole:
        require(
            len(names) == 1,
            f"{table.where}: feature columns {list(names)}, of which {whole} hold arrays",
            "a column of arrays must be the only one",
            "name one in features",
        )
        values = table.complete(whole[0], "input").values
    elif tokens is not None:
        values = np.stack([_token_column(table, name, columns[name]) for name in names], axis=1)
    else:
        parts = [_encoded(table, name, columns[name], held, name in categories) for name in names]
        return np.concatenate(parts, axis=1)
    if tokens == "bag":
        return _bag(table, names[0], values, held)
    return _sequences(table, names[0], values, tokens is not None)


def _encoded(table: Table, name: str, column: Column, held: np.ndarray, named: bool) -> np.ndarray:
    """The inputs [N, k] that a column of one value per row becomes, float32."""
    values, missing = table.scalars(name, column, text=named), column.missing
    if named and values.dtype.kind != "U":
        values = values.astype(str)
    train = ~held & ~missing
    require(
        bool(train.any()),
        f"{table.where}: column {name!r}",
        "has no value in any training row",
        "leave it out with ignore",
    )
    if values.dtype.kind == "U":
        known = np.unique(values[train])
        require(
            len(known) <= MAX_CATEGORIES,
            f"{table.where}: column {name!r} has {len(known)} different texts",
            f"must be at most {MAX_CATEGORIES} categories",
            "leave it out with ignore",
        )
        part = (values[:, None] == known) & ~missing[:, None]
    else:
        part = _standardised(table, name, values.astype(np.float64), missing, train)[:, None]
    if missing[~held].any():
        part = np.concatenate([part, missing[:, None]], axis=1)
    return part.astype(np.float32)


def _standardised(
    table: Table, name: str, values: np.ndarray, missing: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """Numbers with mean 0 and deviation 1 over the training rows, and 0 where they are missing."""
    # What is infinite as float32 is so here.
    odd = np.flatnonzero(~missing & ~(np.abs(values) <= np.finfo(np.float32).max))
    if odd.size:
        raise table.wrong(
            int(odd[0]),
            f"{values[odd[0]]} in column {name!r}",
            "must be a finite number",
            "correct it, or leave it empty if it is missing",
        )
    mean, std = values[train].mean(), values[train].std()
    return np.where(missing, 0.0, (values - mean) / (std if std > 0 else 1.0))


def _token_column(table: Table, name: str, column: Column) -> np.ndarray:
    values = table.scalars(name, table.complete(name, "token"))
    require(
        values.dtype.kind in "iu",
        f"{table.where}: column {name!r} of {'text' if values.dtype.kind == 'U' else values.dtype}",
        "must hold whole numbers to be tokens",
        "name the columns of tokens in features",
    )
    return values


def _sequences(table: Table, name: str, values: np.ndarray | Lists, tokens: bool) -> PyTree:
    """Arrays as they are; lists of tokens padded at their ends, with a mask of the tokens."""
    what = f"{table.where}: column {name!r}"
    if isinstance(values, np.ndarray):
        require(values.dtype.kind != "U", f"{what} holds lists of text", "must be numbers", _NUMBER)
        if tokens:
            return _as_tokens(table, name, values)
        return values if values.dtype == np.uint8 else values.astype(np.float32)
    require(
        tokens,
        f"{what} has lists of {values.sizes.min()} to {values.sizes.max()} values",
        "must be equally long, or tokens",
        "say tokens = 'sequence' or 'bag'",
    )
    flat = _as_tokens(table, name, values.values)
    rows, longest = len(values), int(values.sizes.max())
    _check_size(what, rows, longest, 5)
    mask = np.arange(longest) < values.sizes[:, None]
    padded = np.zeros((rows, longest), np.int32)
    padded[mask] = flat
    return {"mask": mask, "tokens": padded}


_NUMBER = "number the words of a vocabulary from 0"


def _as_tokens(table: Table, name: str, values: np.ndarray) -> np.ndarray:
    what = f"{table.where}: column {name!r}"
    require(
        values.dtype.kind in "iu",
        f"{what} of {'text' if values.dtype.kind == 'U' else values.dtype}",
        "must hold whole numbers to be tokens",
        _NUMBER,
    )
    require(values.min(initial=0) >= 0, f"{what}: token {values.min()}", "must be >= 0", _NUMBER)
    return as_int32(values, f"{what}: token", _NUMBER)


def _bag(table: Table, name: str, values: np.ndarray | Lists, held: np.ndarray) -> np.ndarray:
    """How often each token of the training rows is in a row, float32[N, V]."""
    if isinstance(values, Lists):
        flat, row = values.values, np.repeat(np.arange(len(values)), values.sizes)
    else:
        flat, row = values.reshape(-1), np.repeat(np.arange(len(values)), values[0].size)
    flat = _as_tokens(table, name, flat)
    size = 1 + int(flat[~held[row]].max(initial=0))
    _check_size(f"{table.where}: column {name!r}", len(held), size, 4)
    known = flat < size
    counts = np.zeros((len(held), size), np.float32)
    np.add.at(counts, (row[known], flat[known]), 1.0)
    return counts


def _check_size(what: str, rows: int, width: int, item: int) -> None:
    size = rows * width * item
    if size > MAX_BYTES:
        raise too_large(
            f"{what} as [{rows}, {width}]", size, MAX_BYTES, "use shorter lists or smaller tokens"
        )


def multi_hot(table: Table, name: str, lists: Lists, held: np.ndarray) -> np.ndarray:
    """Labels of which each row lists those that hold, int32[N, C], in the order of their values."""
    row = np.repeat(np.arange(len(lists)), lists.sizes)
    known = np.unique(lists.values[~held[row]])
    if not known.size:
        raise InputError(
            f"{table.where}: column {name!r} lists no label: must list those that hold; name "
            "another label"
        )
    place = np.minimum(np.searchsorted(known, lists.values), len(known) - 1)
    unseen = np.flatnonzero(known[place] != lists.values)
    if unseen.size:
        raise table.wrong(
            int(row[unseen[0]]),
            f"label {str(lists.values[unseen[0]])!r}",
            "must be a label of a training row",
            "move rows of it to the training set, or leave it out",
        )
    _check_size(f"{table.where}: column {name!r}", len(lists), len(known), 4)
    y = np.zeros((len(lists), len(known)), np.int32)
    y[row, place] = 1
    return y
