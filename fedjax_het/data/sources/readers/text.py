"""Text that is read from files, for all readers of text."""

import os
from collections.abc import Sequence
from pathlib import Path

from fedjax_het.common.errors import InputError
from fedjax_het.common.files import AnyPath, read_packed

CORRECT = "correct the file, or name another"


def full_path(path: AnyPath) -> Path:
    """A path in which `~` stands for the home directory."""
    return Path(os.path.expanduser(path))


def paths_of(path: AnyPath, test_path: AnyPath | None) -> list[Path]:
    """The file of the training rows, and that of the test rows if there is one."""
    return [full_path(each) for each in (path, test_path) if each is not None]


def read_utf8(path: Path) -> str:
    """The text of a file, decompressed if it is of gzip, without a byte order mark."""
    content = read_packed(path, CORRECT)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, line {line}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def name_of(path: Path) -> str:
    """The name of a data set in records: that of its file, up to the first dot."""
    return path.name.split(".")[0] or "custom"


def numbered(lines: Sequence[tuple[Path, int]], row: int) -> str:
    """The place of a row, from the file and line of each."""
    path, line = lines[row]
    return f"{path}, line {line}"
