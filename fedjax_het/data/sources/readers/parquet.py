"""Parquet: a table with typed columns, among them lists and encoded images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.files import AnyPath, listed, require_file
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.arrow import arrow_table, joined, read_parquet_file
from fedjax_het.data.sources.readers.encode import Roles, encode, placed
from fedjax_het.data.sources.readers.features import Tokens
from fedjax_het.data.sources.readers.targets import Target
from fedjax_het.data.sources.readers.text import CORRECT, name_of, paths_of


def read_parquet(
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
    size: Sequence[int] | None = None,
    test_path: AnyPath | None = None,
    test_fraction: float | None = None,
    test_clients: Sequence[Any] = (),
) -> RawData:
    """A Parquet file, by pyarrow (extra `files`).

    Columns of one value per row are used as those of `read_csv`. A column of lists (numbers, or
    tokens, see `read_jsonl`) or of encoded images must be the only feature. Images may be bytes, or
    structs with a field `bytes`, as hub data sets store them; they become uint8 pixels.

    Args:
      path: path of the file.
      label: see `read_csv`, as all options that are not below.
      client: column of the clients, or None.
      split: column of the words train and test, or None.
      features: columns of the inputs; None for all that have no other use.
      ignore: columns that are not used.
      categories: columns of numbers that are names of categories.
      target: kind of the labels; None for the rule.
      tokens: use of whole numbers in features, see `read_jsonl`.
      size: pair (height, width) to which images are resized; None for images of one size.
      test_path: file of the test rows with the same columns, or None.
      test_fraction: share of the rows of each client that are test rows.
      test_clients: clients whose rows are all test rows.

    Raises:
      InputError: for a file or a column that cannot be used.
    """
    parts = []
    for each in paths_of(path, test_path):
        require_file(each, CORRECT)
        parts.append((each, read_parquet_file(each)))
        require(
            set(parts[0][1].column_names) == set(parts[-1][1].column_names),
            f"{each}: columns {listed(parts[-1][1].column_names)}",
            f"must be those of {path}, {listed(parts[0][1].column_names)}",
            "make both files alike",
        )
    data = joined([part for _, part in parts], str(path))
    table = arrow_table(
        name_of(Path(path)),
        str(path),
        data,
        placed([(each, part.num_rows) for each, part in parts]),
        size,
        None if test_path is None else np.arange(data.num_rows) >= parts[0][1].num_rows,
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
