"""Finding, reading and verifying the files of a data set; each error says how to correct it."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import read_packed

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
            if os.path.isfile(path):
                return path
        raise InputError(
            f"{self.name}: no file {' or '.join(names)} in {places[0]} or {places[1]}; "
            f"{self.obtain}"
        )

    def broken(self, path: Path, why: object) -> InputError:
        """The error for a file that exists but cannot be used."""
        return InputError(f"{path}: {why}; {self.again}")

    @property
    def again(self) -> str:
        """Advice for a file that cannot be used."""
        return f"fetch the file again: {self.obtain}"


def folder(data_dir: DataDir, name: str, obtain: str) -> Folder:
    """The `Folder` of a set, from an argument or the environment variable `FEDJAX_HET_DATA`."""
    root = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT)
    if not root:
        raise InputError(
            f"{name}: no data directory; give data_dir, or set {ENVIRONMENT} to the directory that "
            f"holds the files. {obtain}"
        )
    path = Path(os.path.expanduser(root))
    require(os.path.isdir(path), f"data directory {path}", "must be an existing directory", obtain)
    return Folder(path, name, obtain)


def read_bytes(place: Folder, path: Path) -> bytes:
    """Contents of a file, decompressed if it starts with the gzip magic number."""
    return read_packed(path, place.again)


def read_text(place: Folder, path: Path, data: bytes) -> str:
    """Contents of a file as text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise place.broken(path, f"not UTF-8 text ({error})") from None


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
