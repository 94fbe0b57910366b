"""A folder of NumPy files that stay where they are: sets that are larger than the memory."""

from pathlib import Path

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import AnyPath, reason
from fedjax_het.data.checks import STORAGE, as_labels
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.text import CORRECT, full_path, name_of

_HOW = "save it with numpy.save"


def read_npy(path: AnyPath) -> RawData:
    """A folder with `x.npy`, `y.npy`, `test_x.npy` and `test_y.npy`; nothing is unpickled.

    `client.npy` and `test_client.npy` say whose a sample is, whole numbers or text; without the
    first, a partition deals the samples, and without the second, test samples have no owner. Inputs
    are memory-mapped: with `run.stream = True`, those of a round's clients are read for the round.

    Args:
      path: path of the folder. Inputs must be stored as they are used: uint8 pixels, int16 audio,
        float32 features, int32 tokens or bools, [N, ...]; labels as those of `from_arrays`.

    Raises:
      InputError: for a file that is missing or cannot be used.
    """
    folder = full_path(path)
    require(folder.is_dir(), f"path = {str(path)!r}", "is not a folder", "name one of .npy files")
    x, test_x = (_inputs(folder / f"{name}.npy") for name in ("x", "test_x"))
    y, test_y = (
        as_labels(np.atleast_1d(_read(folder / f"{name}.npy")), f"{folder / name}.npy")
        for name in ("y", "test_y")
    )
    for inputs, labels, name in ((x, y, "y"), (test_x, test_y, "test_y")):
        require(
            len(labels) == len(inputs),
            f"{folder / name}.npy: {list(labels.shape)}",
            f"must have {len(inputs)} rows, one per input",
            CORRECT,
        )
    owner, test_owner = (
        _owners(folder / f"{name}.npy", len(inputs))
        for name, inputs in (("client", x), ("test_client", test_x))
    )
    require(
        owner is not None or test_owner is None,
        f"{folder}: test_client.npy without client.npy",
        "says whose test samples are, of nobody who trains",
        "add client.npy",
    )
    numbers = y.dtype == np.float32
    return RawData(
        name=name_of(folder),
        x=x,
        y=y,
        test_x=test_x,
        test_y=test_y,
        num_classes=0 if numbers else 1 + max(int(a.max(initial=0)) for a in (y, test_y)),
        clients=owner,
        test_clients=test_owner,
    )


def _read(file: Path, mapped: bool = False) -> np.ndarray:
    require(file.is_file(), str(file), "is missing", _HOW)
    try:
        array = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError, TypeError, SyntaxError, MemoryError) as error:
        raise InputError(
            f"{file}: is not a readable array without objects ({reason(error)}); {_HOW}"
        ) from None
    require(isinstance(array, np.ndarray), str(file), "must hold one array", _HOW)
    return array


def _inputs(file: Path) -> np.ndarray:
    x = _read(file, mapped=True)
    require(
        x.dtype.name in STORAGE and x.dtype.isnative and x.ndim >= 2,
        f"{file}: {x.dtype}{list(x.shape)}",
        f"must be [samples, ...] of {', '.join(STORAGE)}, in the byte order of this machine",
        "convert it once, and save it",
    )
    return x


def _owners(file: Path, rows: int) -> np.ndarray | None:
    if not file.exists():
        return None
    owner = _read(file)
    require(
        owner.dtype.kind in "iuU" and owner.shape == (rows,),
        f"{file}: {owner.dtype}{list(owner.shape)}",
        f"must be [{rows}] whole numbers or text, one per sample",
        CORRECT,
    )
    return owner
