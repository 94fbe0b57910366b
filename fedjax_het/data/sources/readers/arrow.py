"""Columns of Apache Arrow, which Parquet files and hub data sets hold."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import MAX_BYTES, reason, too_large
from fedjax_het.data.sources.readers.extras import library
from fedjax_het.data.sources.readers.pictures import decoded
from fedjax_het.data.sources.readers.table import Column, Lists, Table, as_text

_OTHER = "name the columns to use in features, or leave it out with ignore"


def arrow_table(
    name: str,
    where: str,
    data: Any,
    row: Callable[[int], str],
    size: Sequence[int] | None,
    held: np.ndarray | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Table:
    """A table of Arrow's columns, which are converted when they are asked for.

    Args:
      name: name of the data set.
      where: file, for error messages.
      data: `pyarrow.Table`.
      row: place of a row, for error messages.
      size: size of images, see `pictures.decoded`.
      held: rows of a test set, bool[N], or None.
      classes: names of the classes of columns that hold their numbers.
    """
    names = data.column_names
    require(
        len(set(names)) == len(names),
        f"{where}: columns {names}",
        "must have different names",
        "rename them",
    )
    columns = {
        each: partial(_column, f"{where}: column {each!r}", data.column(each), row, size)
        for each in names
    }
    return Table(name, where, columns, data.num_rows, row, held, classes)


def joined(parts: Sequence[Any], where: str) -> Any:
    """The rows of several tables of the same columns, one after the other."""
    arrow = library("pyarrow", "files", where)
    try:
        return arrow.concat_tables(
            [part.select(parts[0].column_names) for part in parts], promote_options="permissive"
        )
    except (arrow.ArrowException, KeyError) as error:
        raise InputError(
            f"{where}: the parts have columns of several types ({reason(error)}): must be alike; "
            "convert them"
        ) from None


def _column(
    what: str, chunked: Any, row: Callable[[int], str], size: Sequence[int] | None
) -> Column:
    """A column of numbers, bools, text, lists, arrays or encoded images."""
    arrow = library("pyarrow", "files", what)
    array = chunked.combine_chunks()
    if isinstance(array, arrow.ChunkedArray):  # of no or of several chunks
        array = arrow.concat_arrays(array.chunks) if array.num_chunks else arrow.array([])
    if arrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    absent = np.asarray(array.is_null())
    kind = array.type
    if arrow.types.is_struct(kind) and "bytes" in {
        kind.field(i).name for i in range(kind.num_fields)
    }:
        return Column(_images(what, array.field("bytes"), row, size), absent)
    if arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind):
        return Column(_images(what, array, row, size), absent)
    if _is_list(arrow, kind):
        return Column(_lists(arrow, what, array), absent)
    return Column(_plain(arrow, what, array), absent)


def _is_list(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _plain(arrow: Any, what: str, array: Any) -> np.ndarray:
    """Values of one per row, 0 or "" where they are null."""
    types, kind = arrow.types, array.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return as_text(array.to_pylist(), np.asarray(array.is_null()))
    if types.is_null(kind):
        return np.zeros(len(array))
    if types.is_boolean(kind):
        return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False), bool)
    if types.is_integer(kind) or types.is_floating(kind):
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
        if values.dtype == np.uint8:
            return values
        if values.dtype.kind == "f":
            return values.astype(np.float64)
        require(
            values.dtype != np.uint64 or int(values.max(initial=0)) < 2**63,
            f"{what} holds {values.max(initial=0)}",
            "must be below 2^63",
            "convert it to text",
        )
        return values.astype(np.int64)
    raise InputError(
        f"{what} of type {kind}: must be numbers, true or false, text, lists of them or encoded "
        f"images; {_OTHER}"
    )


def _lists(arrow: Any, what: str, array: Any) -> np.ndarray | Lists:
    """Lists, or arrays if they are equally long at every level."""
    sizes = np.asarray(arrow.compute.list_value_length(array).fill_null(0), np.int64)
    inner = array.flatten()
    require(inner.null_count == 0, f"{what} lists null", "must not be missing", _OTHER)
    if _is_list(arrow, inner.type):
        parts = _lists(arrow, what, inner)
        if isinstance(parts, Lists) or len(set(sizes.tolist())) != 1 or not sizes[0]:
            raise InputError(f"{what} has nested lists of unequal length: must be equal; {_OTHER}")
        return parts.reshape(len(sizes), int(sizes[0]), *parts.shape[1:])
    values = _plain(arrow, what, inner)
    if len(set(sizes.tolist())) == 1 and sizes[0]:
        return values.reshape(len(sizes), -1)
    return Lists(values, sizes)


def _images(
    what: str, array: Any, row: Callable[[int], str], size: Sequence[int] | None
) -> np.ndarray:
    contents = array.to_pylist()
    empty = next((i for i, content in enumerate(contents) if not content), None)
    if empty is not None:
        raise InputError(
            f"{row(empty)}: {what.rpartition(': ')[2]} holds no encoded image: must be given; "
            "embed the images in the file, or leave the row out"
        )
    return decoded([partial(bytes, content) for content in contents], row, size)


def read_parquet_file(path: Any) -> Any:
    """A Parquet file as a `pyarrow.Table`, of a bounded size in memory."""
    parquet = library("pyarrow.parquet", "files", path)
    try:
        with parquet.ParquetFile(path) as file:
            meta = file.metadata
            stated = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
            if stated > MAX_BYTES:
                raise too_large(f"{path}, unpacked", stated, MAX_BYTES, "split the file")
            return file.read()
    except InputError:
        raise
    # Arrow's own errors derive from several built-in ones.
    except Exception as error:
        raise InputError(
            f"{path}: not a readable Parquet file ({reason(error)}); write it again"
        ) from None
