"""NumPy archives: arrays of inputs and labels, and who holds them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from fedjax_het.common.arrays import npz_arrays
from fedjax_het.common.errors import require
from fedjax_het.common.files import AnyPath
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.encode import samples
from fedjax_het.data.sources.readers.splits import held_out
from fedjax_het.data.sources.readers.targets import Target, arrays_of
from fedjax_het.data.sources.readers.text import CORRECT, full_path, name_of


def read_npz(
    path: AnyPath,
    inputs: str = "x",
    label: str = "y",
    client: str | None = None,
    *,
    test_inputs: str | None = None,
    test_label: str | None = None,
    test_client: str | None = None,
    target: Target = None,
    tokens: bool = False,
    test_fraction: float | None = None,
    test_clients: Sequence[Any] = (),
) -> RawData:
    """An archive of `numpy.savez`; nothing is unpickled.

    Inputs are used as they are: uint8 pixels (scaled to [0, 1] on use), int16 audio (to [-1, 1)),
    bools, and all other numbers as float32 features. Pixels [N, H, W] get a channel axis.

    Args:
      path: path of the file.
      inputs: array of the inputs, [N, ...].
      label: array of the labels: [N] as those of `read_csv` (text or whole numbers are classes,
        floats numbers), or [N, ...] as those of `from_arrays`.
      client: array of the clients, [N], whole numbers or text; or None.
      test_inputs: array of the test inputs; None if other options say which rows are test rows.
      test_label: array of the test labels.
      test_client: array of the owners of the test samples, or None.
      target: kind of the labels, `"classes"` or `"numbers"`; None for the rule.
      tokens: whether whole numbers are tokens of a vocabulary.
      test_fraction: share of the samples of each client that are test samples; 0.2 if nothing else
        says which are.
      test_clients: clients whose samples are all test samples.

    Raises:
      InputError: for a file or an array that cannot be used.
    """
    path = full_path(path)
    test = {"test_inputs": test_inputs, "test_label": test_label, "test_client": test_client}
    own = test_inputs is not None
    require(
        own == (test_label is not None) and (test_client is not None) == (own and bool(client)),
        f"{path}: client = {client!r}, {', '.join(f'{k} = {v!r}' for k, v in test.items())}",
        "must name the same arrays of both sets",
        "name all of them, or no array of a test set",
    )
    wanted = {"inputs": inputs, "label": label, "client": client, **test}
    kinds = {name: "numbers, bools or text" for name in wanted.values() if name is not None}
    arrays = npz_arrays(path, kinds, "name the arrays that it holds")
    x, y, owner = (
        _both(arrays, path, *pair)
        for pair in ((inputs, test_inputs), (label, test_label), (client, test_client))
    )
    for name, array in ((label, y), (client, owner)):
        require(
            array is None or (array.ndim >= 1 and len(array) == len(x)),
            f"{path}: array {name!r} of shape {None if array is None else list(array.shape)}",
            f"must have {len(x)} rows, one per input",
            CORRECT,
        )
    require(
        owner is None or (owner.ndim == 1 and owner.dtype.kind in "iuU"),
        f"{path}: array {client!r} of {None if owner is None else owner.dtype}",
        "must be whole numbers or text, one per sample",
        "convert the ids",
    )
    given = np.arange(len(x)) >= len(arrays[inputs]) if own else None
    held = held_out(len(x), owner, given, test_fraction, test_clients, str(path))
    labels = arrays_of(y, held, partial(_place, path), target)
    return samples(name_of(path), _stored(x, tokens), labels, held, owner)


def _place(path: AnyPath, sample: int) -> str:
    return f"{path}, sample {sample}"


def _both(arrays: dict[str, np.ndarray], path: AnyPath, train: str | None, test: str | None) -> Any:
    """An array of the training samples, and that of the test samples behind it."""
    if train is None:
        return None
    parts = [arrays[name] for name in (train, test) if name is not None]
    kinds = {(part.dtype.kind, part.shape[1:]) for part in parts}
    require(
        len(kinds) == 1 and all(part.ndim >= 1 and part.size for part in parts),
        f"{path}: arrays "
        + ", ".join(
            f"{name!r} of {arrays[name].dtype}{list(arrays[name].shape)}"
            for name in (train, test)
            if name is not None
        ),
        "must not be empty, and alike in kind and shape but for their lengths",
        CORRECT,
    )
    return np.concatenate(parts)


def _stored(x: np.ndarray, tokens: bool) -> np.ndarray:
    """Inputs with numbers that are no pixels, audio or tokens as float32."""
    if x.ndim == 3 and x.dtype == np.uint8:
        return x[..., None]
    if x.ndim == 1:
        x = x[:, None]
    plain = x.dtype.kind in "iuf" and x.dtype.name not in ("uint8", "int16")
    return x.astype(np.float32) if plain and not (tokens and x.dtype.kind in "iu") else x
