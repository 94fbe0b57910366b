"""LEAF: directories of JSON files with the samples of every user."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import AnyPath, listed
from fedjax_het.common.jsonio import read_json
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.encode import samples
from fedjax_het.data.sources.readers.jsonlines import column_of
from fedjax_het.data.sources.readers.splits import held_out
from fedjax_het.data.sources.readers.table import Lists
from fedjax_het.data.sources.readers.targets import Target, labels_of
from fedjax_het.data.sources.readers.text import CORRECT, full_path


def read_leaf(
    path: AnyPath,
    shape: Sequence[int] | None = None,
    *,
    target: Target = None,
    tokens: bool = False,
    test_fraction: float | None = None,
    test_clients: Sequence[Any] = (),
) -> RawData:
    """A directory with LEAF's folders `train` and `test`; the users are the clients.

    The samples of a user may be in one of the folders only.

    Args:
      path: directory with `train/*.json` and perhaps `test/*.json`.
      shape: shape of one input, e.g. (28, 28, 1) for FEMNIST's 784 numbers; None as in the file.
      target: kind of the labels, `"classes"` or `"numbers"`; None for the rule of `read_csv`.
      tokens: whether whole numbers are tokens of a vocabulary.
      test_fraction: share of each user's samples that are test samples, without the folder `test`.
      test_clients: users whose samples are all test samples, without the folder `test`.

    Raises:
      InputError: for files that are missing or not of this format.
    """
    root = full_path(path)
    require(root.is_dir(), str(root), "must be a directory with the folder train", CORRECT)
    x: list[Any] = []
    y: list[Any] = []
    owner: list[str] = []
    places: list[str] = []
    ends: list[int] = []
    for split in ("train", "test"):
        files = sorted((root / split).glob("*.json"))
        require(
            bool(files) or split == "test",
            str(root / split),
            "has no .json file",
            "name the directory above LEAF's folder train",
        )
        for file in files:
            for user, own_x, own_y in _users(file):
                x += own_x
                y += own_y
                owner += [user] * len(own_y)
                places += [f"{file}, user {user!r}, sample {i}" for i in range(len(own_y))]
        ends.append(len(y))
    require(bool(y), str(root), "has no sample", CORRECT)
    given = np.arange(len(y)) >= ends[0] if ends[1] > ends[0] else None
    held = held_out(len(y), ids := np.array(owner), given, test_fraction, test_clients, str(root))
    inputs = _inputs(x, places, shape, tokens)
    labels = column_of("y", y, places.__getitem__)
    absent = np.flatnonzero(labels.missing)
    if absent.size:
        raise InputError(f"{places[absent[0]]}: y is null: must be given; {CORRECT}")
    values = labels.values
    if isinstance(values, Lists) or values.ndim > 1:
        raise InputError(f"{places[0]}: y is a list: must be one label; {CORRECT}")
    named = labels_of(values, held, places.__getitem__, target)
    return samples(root.resolve().name, inputs, named, held, ids)


def _users(file: Path) -> list[tuple[str, list[Any], list[Any]]]:
    """Name, inputs and labels of every user of a file."""
    content = read_json(file, CORRECT, None)
    data = content.get("user_data") if isinstance(content, dict) else None
    users = content.get("users") if isinstance(content, dict) else None
    if not isinstance(data, dict) or not isinstance(users, list):
        raise InputError(f"{file}: must hold the objects users and user_data of LEAF; {CORRECT}")
    odd = [user for user in users if not isinstance(user, str) or user not in data]
    require(
        not odd and len(set(users)) == len(users),
        f"{file}: users {listed(odd or users)}",
        "must be text, each once, and have samples in user_data",
        CORRECT,
    )
    stated = content.get("num_samples", [])
    found = []
    for i, user in enumerate(users):
        own = data[user]
        x, y = (own.get(name) if isinstance(own, dict) else None for name in ("x", "y"))
        if not (isinstance(x, list) and isinstance(y, list) and len(x) == len(y)):
            raise InputError(
                f"{file}, user {user!r}: must have lists x and y of equal length; {CORRECT}"
            )
        require(
            not stated or (isinstance(stated, list) and stated[i : i + 1] == [len(y)]),
            f"{file}, user {user!r}: {len(y)} samples",
            f"must be as many as num_samples says, {str(stated[i : i + 1])[:40]}",
            "the file is cut or altered: " + CORRECT,
        )
        found.append((user, x, y))
    return found


def _inputs(
    x: list[Any], places: Sequence[str], shape: Sequence[int] | None, tokens: bool
) -> np.ndarray:
    column = column_of(
        "x", [row if isinstance(row, list) else [row] for row in x], places.__getitem__
    )
    values = column.values
    if isinstance(values, Lists):
        odd = int(np.flatnonzero(values.sizes != values.sizes[0])[0])
        raise InputError(
            f"{places[odd]}: x has {values.sizes[odd]} values: must be {values.sizes[0]}, as "
            f"others have; {CORRECT}"
        )
    require(
        values.dtype.kind != "U",
        f"{places[0]}: x is text",
        "must be numbers",
        "number the words or letters first (the set 'shakespeare' is built in)",
    )
    if values.dtype.kind != "i" or not tokens:
        values = values.astype(np.float32)
    if shape is None:
        return values
    require(
        min(shape, default=0) >= 1 and np.prod(shape, dtype=float) == values.shape[1],
        f"shape = {tuple(shape)}",
        f"must be of the {values.shape[1]} numbers of a sample of {places[0]}",
        "e.g. (28, 28, 1) for 784 numbers",
    )
    return values.reshape(len(values), *shape)
