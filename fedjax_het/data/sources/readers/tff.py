"""HDF5 as TensorFlow Federated stores its data sets: `examples/<client>/<feature>`."""

from pathlib import Path
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.common.files import MAX_BYTES, AnyPath, listed, reason, require_file, too_large
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.encode import placed, samples
from fedjax_het.data.sources.readers.extras import library
from fedjax_het.data.sources.readers.splits import held_out
from fedjax_het.data.sources.readers.targets import Target, arrays_of
from fedjax_het.data.sources.readers.text import CORRECT, full_path, name_of

_Client = tuple[str, np.ndarray, np.ndarray]


def read_tff_h5(
    train: AnyPath,
    test: AnyPath | None = None,
    *,
    inputs: str = "pixels",
    label: str = "label",
    target: Target = None,
    tokens: bool = False,
    test_fraction: float | None = None,
) -> RawData:
    """HDF5 files of TensorFlow Federated, by h5py (extra `files`); their groups are the clients.

    Images [H, W] get a channel axis. Values are used as they are (EMNIST's are 1 for white paper).

    Args:
      train: file of the training samples.
      test: file of the test samples, or None; a client may be in one of the files only.
      inputs: feature used as input.
      label: feature used as label.
      target: kind of the labels, `"classes"` or `"numbers"`; None for the rule of `read_csv`.
      tokens: whether whole numbers are tokens of a vocabulary.
      test_fraction: share of each client's samples that are test samples, without `test`; 0.2.

    Raises:
      InputError: for files that are missing, damaged or not of this format.
    """
    paths = [full_path(path) for path in (train, test) if path is not None]
    found = [(path, _clients(path, inputs, label)) for path in paths]
    every = [(path, client) for path, clients in found for client in clients]
    parts = [(f"{path}, client {name!r}", len(y)) for path, (name, _, y) in every]
    place = placed(parts, "sample")
    x = _together([x for _, (_, x, _) in every], inputs, [where for where, _ in parts])
    y = _together([y for _, (_, _, y) in every], label, [where for where, _ in parts])
    owner = np.repeat([name for _, (name, _, _) in every], [n for _, n in parts])
    first = sum(len(y) for _, _, y in found[0][1])
    given = None if test is None else np.arange(len(y)) >= first
    held = held_out(len(y), owner, given, test_fraction, (), str(paths[0]))
    if x.dtype != np.uint8 and not (tokens and x.dtype.kind in "iu"):
        x = x.astype(np.float32)
    if x.ndim == 3 and not tokens:
        x = x[..., None]
    elif x.ndim == 1:
        x = x[:, None]
    return samples(name_of(paths[0]), x, arrays_of(y, held, place, target), held, owner)


def _clients(path: Path, inputs: str, label: str) -> list[_Client]:
    """Name, inputs and labels of every client of a file."""
    require_file(path, CORRECT)
    h5py = library("h5py", "files", path)
    try:
        with h5py.File(path, "r") as file:
            examples = file.get("examples")
            if not isinstance(examples, h5py.Group):
                raise InputError(
                    f"{path}: groups {listed(list(file))}: must have the group examples of the "
                    f"clients; {CORRECT}"
                )
            budget = [MAX_BYTES]
            found = [
                (name, *(_read(h5py, path, name, group, key, budget) for key in (inputs, label)))
                for name, group in sorted(examples.items())
            ]
    except InputError:
        raise
    # h5py passes on what the library of HDF5 finds in damaged files.
    except Exception as error:
        raise InputError(f"{path}: not a readable HDF5 file ({reason(error)}); {CORRECT}") from None
    require(bool(found), f"{path}: examples", "has no client", CORRECT)
    for name, x, y in found:
        require(
            len(x) == len(y) > 0,
            f"{path}, client {name!r}: {len(x)} {inputs}, {len(y)} {label}",
            "must be equally many, at least 1",
            CORRECT,
        )
    return found


def _read(h5py: Any, path: Path, name: str, group: Any, key: str, budget: list[int]) -> np.ndarray:
    """An array of a client, numbers or text, within the bytes that are left."""
    where = f"{path}, client {name!r}"
    require(isinstance(group, h5py.Group), where, "must be a group", CORRECT)
    require_known(key, list(group), f"{where}: feature")
    held = group[key]
    require(
        isinstance(held, h5py.Dataset)
        and held.ndim >= 1
        and not held.is_virtual
        and not held.external,
        f"{where}: {key}",
        "must be an array inside the file",
        CORRECT,
    )
    budget[0] -= held.size * held.dtype.itemsize
    if budget[0] < 0:
        raise too_large(where, f"over {MAX_BYTES}", MAX_BYTES, "split the file")
    if h5py.check_string_dtype(held.dtype) is not None:
        return np.asarray(held.asstr()[()], str)
    require(
        held.dtype.kind in "biuf",
        f"{where}: {key} of {held.dtype}",
        "must be numbers, or text for labels",
        "say inputs and label, e.g. inputs = 'pixels'",
    )
    return np.asarray(held[()])


def _together(parts: list[np.ndarray], name: str, where: list[str]) -> np.ndarray:
    for part, place in zip(parts, where, strict=True):
        require(
            (part.dtype.kind, part.shape[1:]) == (parts[0].dtype.kind, parts[0].shape[1:]),
            f"{place}: {name} of {part.dtype}{list(part.shape[1:])}",
            f"must be {parts[0].dtype}{list(parts[0].shape[1:])}, as those of other clients",
            CORRECT,
        )
    return np.concatenate(parts)
