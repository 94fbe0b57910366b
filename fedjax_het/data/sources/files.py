"""Finding, reading and verifying the files of a data set; each error says how to correct it."""

import gzip
import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedjax_het.common.errors import InputError, require

ENVIRONMENT = "FEDJAX_HET_DATA"

DataDir = str | os.PathLike[str] | None


@dataclass(frozen=True)
class Folder:
    """The directories that may hold the files of one data set.

    Attributes:
      root: the data directory.
      name: subdirectory of the set, searched before the directory itself.
      obtain: instructions to get the files, for error messages.
    """

    root: Path
    name: str
    obtain: str

    def find(self, *names: str) -> Path:
        """The first of `names` that exists as a file, under `root/name` or `root`.

        Raises:
          InputError: if there is none.
        """
        places = (self.root / self.name, self.root)
        for path in (place / name for place in places for name in names):
            if path.is_file():
                return path
        raise InputError(
            f"{self.name}: no file {' or '.join(names)} in {places[0]} or {places[1]}; "
            f"{self.obtain}"
        )

    def broken(self, path: Path, why: object) -> InputError:
        """The error for a file that exists but cannot be used."""
        return InputError(f"{path}: {why}; fetch the file again: {self.obtain}")


def folder(data_dir: DataDir, name: str, obtain: str) -> Folder:
    """The `Folder` of a set, from an argument or the environment variable `FEDJAX_HET_DATA`."""
    root = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT)
    if not root:
        raise InputError(
            f"{name}: no data directory; give data_dir, or set {ENVIRONMENT} to the directory that "
            f"holds the files. {obtain}"
        )
    path = Path(root).expanduser()
    require(path.is_dir(), f"data directory {path}", "must be an existing directory", obtain)
    return Folder(path, name, obtain)


def read_bytes(place: Folder, path: Path) -> bytes:
    """Contents of a file, decompressed if it starts with the gzip magic number."""
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise place.broken(path, f"truncated or corrupt gzip data ({error})") from error


def read_npz(
    place: Folder, path: Path, per_sample: Sequence[str], other: Sequence[str]
) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by key; objects are not unpickled.

    Args:
      place: folder of the data set, for error messages.
      path: path of the file.
      per_sample: keys of the arrays with one row per sample, which must be equally long.
      other: further keys that must be present.
    """
    keys = [*per_sample, *other]
    try:
        # NumPy would not close a file that it opened itself if the archive is broken.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = sorted(set(keys) - set(archive.files))
            if missing:
                raise place.broken(path, f"lacks the arrays {missing}, has {archive.files}")
            arrays = {key: archive[key] for key in keys}
    except InputError:
        raise
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise place.broken(path, f"not a readable .npz file ({error})") from error
    rows = {key: len(arrays[key]) if arrays[key].ndim else 0 for key in per_sample}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise place.broken(path, f"arrays of unequal or no length: {rows}")
    return arrays


def check_digest(place: Folder, path: Path, expected: str, *content: bytes | np.ndarray) -> None:
    """Raises `InputError` unless the SHA-256 of the decompressed content is the published one."""
    digest = hashlib.sha256()
    for part in content:
        digest.update(np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part)
    if digest.hexdigest() != expected:
        raise place.broken(
            path,
            f"content has SHA-256 {digest.hexdigest()}, the published set has {expected} "
            "(verify=False accepts other content in the same layout)",
        )
