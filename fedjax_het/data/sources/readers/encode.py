"""From a table to samples: who holds a row, whether it is a test row, its inputs and its label."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.features import Tokens, inputs_of, multi_hot
from fedjax_het.data.sources.readers.splits import by_word, held_out
from fedjax_het.data.sources.readers.table import Lists, Table
from fedjax_het.data.sources.readers.targets import Labels, Target, columns_of, labels_of


@dataclass(frozen=True)
class Roles:
    """What the columns of a table are used for; `read_csv` explains each.

    A client or a split of "" is none: a command line cannot say None.
    """

    label: str | Sequence[str]
    client: str | None = None
    split: str | None = None
    features: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    categories: Sequence[str] = ()
    target: Target = None
    tokens: Tokens = None
    test_fraction: float | None = None
    test_clients: Sequence[Any] = ()


def encode(table: Table, roles: Roles) -> RawData:
    """The samples of a table.

    Raises:
      InputError: for columns that are missing or cannot be used; the message names the row.
    """
    require(table.rows > 0, f"{table.where}: 0 rows", "must have at least 1", "name another file")
    labels = [roles.label] if isinstance(roles.label, str) else list(roles.label)
    require(bool(labels), f"{table.where}: label = []", "must name a column", "name the label")
    for option in ("features", "ignore", "categories"):
        for name in getattr(roles, option) or ():
            require_known(name, table.columns, f"{table.where}: column in {option}")
    owner = table.ids(roles.client, "client") if roles.client else None
    given = table.held
    if roles.split:
        require(
            given is None,
            f"{table.where}: split = {roles.split!r} and a test set of its own",
            "exclude each other",
            "keep one of them",
        )
        words = table.scalars(roles.split, table.complete(roles.split, "split"), text=True)
        given = by_word(words.astype(str), table.row)
    held = held_out(table.rows, owner, given, roles.test_fraction, roles.test_clients, table.where)
    used = {*labels, roles.client, roles.split}
    names = roles.features
    if names is None:
        names = [name for name in table.columns if name not in {*used, *roles.ignore}]
    for name in names:
        require(
            name not in used,
            f"{table.where}: feature column {name!r}",
            "is the label, the client or the split",
            "leave it out of features",
        )
    y = _labels(table, labels, held, roles)
    x = inputs_of(table, names, held, roles.categories, roles.tokens)
    return samples(table.name, x, y, held, owner)


def samples(
    name: str, x: PyTree, labels: Labels, held: np.ndarray, owner: np.ndarray | None
) -> RawData:
    """All samples as training and test samples.

    Args:
      name: name of the data set.
      x: inputs [N, ...].
      labels: labels of N samples.
      held: test samples, bool[N].
      owner: client of each sample [N], or None.
    """
    return RawData(
        name=name,
        x=jax.tree.map(lambda a: a[~held], x),
        y=labels.y[~held],
        test_x=jax.tree.map(lambda a: a[held], x),
        test_y=labels.y[held],
        num_classes=labels.num_classes,
        classes=labels.classes,
        clients=None if owner is None else owner[~held],
        test_clients=None if owner is None else owner[held],
    )


def _labels(table: Table, names: Sequence[str], held: np.ndarray, roles: Roles) -> Labels:
    target = roles.target
    columns = [table.complete(name, "label") for name in names]
    if len(names) > 1:
        each_of = [table.scalars(name, column) for name, column in zip(names, columns)]
        for name, each in zip(names, each_of):
            require(
                each.dtype.kind in "iufb",
                f"{table.where}: label column {name!r} holds text",
                "must hold numbers, as one of several",
                "name one label, or convert it",
            )
        return columns_of(np.stack(each_of, axis=1), table.row, target, names)
    (name,), (column,) = names, columns
    values = column.values
    if isinstance(values, np.ndarray) and values.ndim > 1:
        numbers = values.dtype.kind == "f" or target == "numbers"
        if numbers or np.isin(values, (0, 1)).all():
            return columns_of(values, table.row, target, names)
        values = Lists(values.reshape(-1), np.full(len(values), values[0].size))
    if isinstance(values, Lists):
        require(
            target != "numbers" and values.values.dtype.kind != "f",
            f"{table.where}: label column {name!r} holds lists of unequal length",
            "must list the labels that hold, as whole numbers or text",
            "name another label",
        )
        return Labels(multi_hot(table, name, values, held), 2)
    values = table.scalars(name, column, text=name in roles.categories)
    return labels_of(values, held, table.row, target, (table.classes or {}).get(name))


def placed(paths: Sequence[tuple[Any, int]], word: str = "row") -> Callable[[int], str]:
    """The place of a row among the rows of several files, for error messages.

    Args:
      paths: files, and how many rows each has.
      word: name of a row.
    """
    ends = np.cumsum([count for _, count in paths])

    def row(number: int) -> str:
        part = int(np.searchsorted(ends, number, side="right"))
        path, count = paths[part]
        return f"{path}, {word} {number - int(ends[part]) + count + 1}"

    return row
