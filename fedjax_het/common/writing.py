"""Writing of files: encodable text, atomic replacement, and refusals of the disk in one line.

All records, models and pages are written with these functions. If the disk is full or may not be
written to, they raise `WriteError`, and what was written before is as it was.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.jsonio import jsonable

_LINES = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_PLAIN = {str, int, float, bool, type(None)}
_SPACE = "free space, and run again"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "allow larger files (ulimit -f), and run again",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the loop of links, or name another directory",
    errno.EIO: "check the disk, and run again",
}


class WriteError(InputError):
    """The file system refused to write; the message names the file, the reason and the remedy."""


def refusal(what: str, error: OSError, verb: str = "written") -> WriteError:
    """The error that says in one line what could not be written, and why.

    Args:
      what: path of the file, or the option that names it with its value.
      error: error of the operating system.
      verb: what could not be done, a participle.
    """
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "name a directory that you may write to")
    return WriteError(f"{what}: cannot be {verb} ({reason}); {remedy}")


@contextlib.contextmanager
def refusing(what: str, verb: str = "written") -> Iterator[None]:
    """Errors of the operating system inside become a `WriteError`; see `refusal`."""
    try:
        yield
    except OSError as error:
        raise refusal(what, error, verb) from None


def usable_path(value: str | os.PathLike[str], name: str) -> Path:
    """The path of an option, if a file can have it.

    Args:
      value: value of the option.
      name: name of the option.

    Raises:
      InputError: if it is empty, or holds a character that no path can have.
    """
    text = os.fspath(value)
    require(
        text != "",
        f"{name} = ''",
        "must name a directory",
        f"leave {name} out, or write '.' for the current directory",
    )
    require(
        "\0" not in text and encodable(text),
        f"{name} = {text!r}",
        "must be text without NUL and without halves of surrogate pairs",
        "choose another name",
    )
    return Path(text)


def make_directory(path: Path, what: str) -> None:
    """Makes a directory and its parents, if it does not exist.

    Args:
      path: path of the directory.
      what: option that names it, with its value.

    Raises:
      WriteError: if it cannot be made.
    """
    with refusing(what, "made"):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            # A loop of links, or a link to nowhere, says more than that there is something.
            os.stat(path)
            raise


def encodable(text: str) -> bool:
    """Whether UTF-8 can hold a text, which it cannot if a half of a surrogate pair is alone."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def encoded(text: str) -> bytes:
    r"""The text in UTF-8; half of a surrogate pair is written as in JSON, `\udc80`."""
    return text.encode("utf-8", "backslashreplace")


def json_line(row: Mapping[str, Any], where: str) -> bytes:
    """One row of a JSON-lines file, newline included; floats keep all their digits."""
    # Rows of tasks hold nothing that must be converted, and a round may have thousands of them.
    if set(map(type, row)) == {str} and set(map(type, row.values())) <= _PLAIN:
        with contextlib.suppress(ValueError):  # of numbers that are not finite
            return _LINES.encode(row).encode() + b"\n"
    return _LINES.encode(jsonable(row, where)).encode() + b"\n"


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as readable JSON, atomically; see `write_atomic`."""
    text = json.dumps(jsonable(value, path.name), allow_nan=False, indent=1, ensure_ascii=False)
    write_atomic(path, encoded(text + "\n"))


def write_atomic(path: Path, content: bytes, what: str | None = None) -> None:
    """Replaces `path` in one step: a reader sees the old or the new content, never a part of it.

    Args:
      path: path of the file.
      content: its new content.
      what: option that names it, with its value; None for the path.

    Raises:
      WriteError: if it cannot be written; the old content is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with refusing(what or str(path)):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def append(pieces: Mapping[BinaryIO, bytes]) -> None:
    """Appends to files that are open without a buffer: to all of them, or to none.

    Args:
      pieces: bytes for the end of each file.

    Raises:
      WriteError: if one cannot be written; all files then end where they ended before.
    """
    ends = {file: file.seek(0, os.SEEK_END) for file in pieces}
    for file, piece in pieces.items():
        try:
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException as error:
            for each, end in ends.items():
                with contextlib.suppress(OSError):
                    each.truncate(end)
            if isinstance(error, OSError):
                raise refusal(str(file.name), error) from None
            raise
