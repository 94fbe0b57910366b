"""Hugging Face `datasets`: from a directory, by name, or as objects (Flower's partitions)."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import listed, reason
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.arrow import arrow_table, joined
from fedjax_het.data.sources.readers.encode import Roles, encode, placed
from fedjax_het.data.sources.readers.extras import library
from fedjax_het.data.sources.readers.features import Tokens
from fedjax_het.data.sources.readers.targets import Target

# Column of the clients if each has a data set of its own.
_CLIENT = "(client)"


class _Part(NamedTuple):
    """Rows of one split, and of one client if each has a data set of its own."""

    where: str
    data: Any
    held: bool | None
    client: Any = None


def read_hub(
    path: Any,
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
    subset: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    test_fraction: float | None = None,
    test_clients: Sequence[Any] = (),
) -> RawData:
    """A data set of the library `datasets` (extra `hub`).

    Columns are used as those of `read_parquet`; a label of the type ClassLabel has its names.

    Example::

        partitions = {k: flower_data.load_partition(k) for k in range(10)}
        data = fh.data.load_federated(fh.data.read_hub(partitions, label="label"))

    Args:
      path: directory that `save_to_disk` wrote; name on the hub, which needs a network; `Dataset`;
        mapping of splits to such; or a mapping of the clients' ids (a list for 0, 1, ...) to what
        each holds, a `Dataset` or a mapping of splits, as Flower's partitioners make them.
      label: see `read_csv`, as all options that are not below.
      client: column of the clients, or None.
      split: column of the words train and test, or None.
      features: columns of the inputs; None for all that have no other use.
      ignore: columns that are not used.
      categories: columns of numbers that are names of categories.
      target: kind of the labels; None for the rule.
      tokens: use of whole numbers in features, see `read_jsonl`.
      size: pair (height, width) to which images are resized; None for images of one size.
      subset: configuration of a set on the hub, or None.
      train_split: split of the training rows.
      test_split: split of the test rows; if there is none, other options say which they are.
      test_fraction: share of the rows of each client that are test rows.
      test_clients: clients whose rows are all test rows.

    Raises:
      InputError: for a data set or a column that cannot be used.
    """
    where = str(path) if isinstance(path, str | os.PathLike) else type(path).__name__
    datasets = library("datasets", "hub", where)
    found = _loaded(datasets, path, subset) if isinstance(path, str | os.PathLike) else path
    parts = _parts(datasets, found, where, (train_split, test_split))
    own = parts[0].client is not None
    require(
        not (own and client is not None),
        f"{where}: client = {client!r}",
        "is not known to data sets that are given client by client",
        "leave it out",
    )
    tables = [_arrow(part) for part in parts]
    first = parts[0].data
    known = isinstance(
        first.features.get(label) if isinstance(label, str) else None, datasets.ClassLabel
    )
    told = [part.held for part in parts]
    table = arrow_table(
        _name(path, first),
        where,
        joined(tables, where),
        placed([(part.where, each.num_rows) for part, each in zip(parts, tables)]),
        size,
        None
        if True not in told
        else np.repeat([bool(held) for held in told], [each.num_rows for each in tables]),
        {label: first.features[label].names} if known and isinstance(label, str) else None,
    )
    roles = Roles(
        label=label,
        client=_CLIENT if own else client,
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


def _loaded(datasets: Any, path: Any, subset: str | None) -> Any:
    """A data set from a directory, or by its name."""
    place = os.path.expanduser(path)
    saved = ("dataset_dict.json", "state.json")
    try:
        if any(os.path.isfile(os.path.join(place, name)) for name in saved):
            return datasets.load_from_disk(place)
        return datasets.load_dataset(os.fspath(path), subset)
    # The library has no common base class of errors, and those of the network are others'.
    except Exception as error:
        raise InputError(
            f"{path}: cannot be read by datasets ({reason(error)}); name a directory that "
            "save_to_disk wrote, or a data set that can be reached"
        ) from None


def _parts(datasets: Any, found: Any, where: str, splits: tuple[str, str]) -> list[_Part]:
    train, test = splits
    if isinstance(found, Mapping) and all(isinstance(key, str) for key in found):
        if train in found:
            held = {train: False, test: True} if test in found else {train: None}
            return [
                _Part(f"{where}[{name!r}]", _one(datasets, found[name], f"{where}[{name!r}]"), told)
                for name, told in held.items()
            ]
        require(
            not isinstance(found, datasets.DatasetDict),
            f"{where}: splits {listed(list(found))}",
            f"must have {train!r}",
            "say train_split and test_split",
        )
    if isinstance(found, Mapping | list | tuple):
        pairs = list(found.items() if isinstance(found, Mapping) else enumerate(found))
        require(bool(pairs), where, "holds no client", "give a data set per client")
        return [
            part._replace(client=client)
            for client, own in pairs
            for part in (
                _parts(datasets, own, f"{where}[{client!r}]", splits)
                if isinstance(own, Mapping)
                else [_Part(f"{where}[{client!r}]", _one(datasets, own, where), None)]
            )
        ]
    return [_Part(where, _one(datasets, found, where), None)]


def _one(datasets: Any, found: Any, where: str) -> Any:
    require(
        isinstance(found, datasets.Dataset),
        f"{where} of type {type(found).__name__}",
        "must be a Dataset of datasets",
        "load it with load_dataset(..., streaming=False), or name its directory",
    )
    return found


def _arrow(part: _Part) -> Any:
    """The rows of a part as a `pyarrow.Table`, with its client as a column."""
    table = part.data.with_format("arrow")[:]
    if part.client is None:
        return table
    return table.append_column(_CLIENT, [[part.client] * table.num_rows])


def _name(path: Any, first: Any) -> str:
    """The name of a data set in records."""
    if isinstance(path, str | os.PathLike):
        return os.path.basename(os.path.normpath(path)) or "custom"
    return getattr(first.info, "dataset_name", None) or "custom"
