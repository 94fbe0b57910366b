"""Files that are read: regular ones of a bounded size; every fault is one line that names the file.

A pipe or a device in place of a file would block a run or never end, and a compressed file of a few
megabytes can hold or claim any number of bytes. Both are refused before they are read.
"""

import gzip
import io
import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import IO, BinaryIO

from fedjax_het.common.errors import InputError, require

AnyPath = str | os.PathLike[str]

# Largest file, and largest content of a compressed file, in bytes.
MAX_BYTES = 2**32
_PIECE = 2**24

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# What the parser of archives and the decompressors raise for damaged files.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)


def open_file(
    path: AnyPath, remedy: str, limit: int = MAX_BYTES, absent: str | None = None
) -> BinaryIO:
    """Opens a file to read its bytes.

    Args:
      path: path of the file.
      remedy: advice in an error message.
      limit: largest size in bytes.
      absent: advice if there is no such file; None for `remedy`.

    Raises:
      InputError: if it is missing, not a regular file, too large, or cannot be opened.
    """
    size = require_file(path, remedy, absent)
    if size > limit:
        raise too_large(path, size, limit, remedy)
    try:
        return open(path, "rb")
    except OSError as error:
        raise _unreadable(path, error, remedy) from None


def require_file(path: AnyPath, remedy: str, absent: str | None = None) -> int:
    """The size of a regular file in bytes; `InputError` if it is missing or something else."""
    try:
        held = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist; {absent or remedy}") from None
    except OSError as error:
        raise _unreadable(path, error, remedy) from None
    except ValueError as error:
        raise InputError(f"{str(path)!r}: is not a path ({error}); {remedy}") from None
    kind = next((name for test, name in _KINDS if test(held.st_mode)), None)
    require(kind is None, str(path), f"is {kind}, and must be a file", remedy)
    return held.st_size


def _unreadable(path: AnyPath, error: OSError, remedy: str) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror}); {remedy}")


def too_large(what: object, size: int | str, limit: int, remedy: str) -> InputError:
    """The error for content of more bytes than the limit."""
    return InputError(f"{what}: {size} bytes, must be at most {limit}; {remedy}")


def read_file(
    path: AnyPath, remedy: str, limit: int = MAX_BYTES, absent: str | None = None
) -> bytes:
    """The content of a file; see `open_file`."""
    with open_file(path, remedy, limit, absent) as file:
        try:
            content = _read_up_to(file, limit)  # the file may grow meanwhile
        except OSError as error:
            raise _unreadable(path, error, remedy) from None
    if len(content) > limit:
        raise too_large(path, f"over {limit}", limit, remedy)
    return content


def _read_up_to(file: IO[bytes] | gzip.GzipFile, limit: int) -> bytes:
    """The content of a stream, or its first bytes if it has more than `limit`, one at least."""
    # In pieces: `read(n)` takes memory for n bytes, however few there are.
    content = io.BytesIO()
    while content.tell() <= limit and (piece := file.read(_PIECE)):
        content.write(piece)
    return content.getvalue()


def read_packed(path: AnyPath, remedy: str) -> bytes:
    """The content of a file, decompressed if it starts with the magic number of gzip.

    Args:
      path: path of the file.
      remedy: advice in an error message.

    Raises:
      InputError: as for `open_file`, and for data that are damaged or too large.
    """
    content = read_file(path, remedy)
    if content[:2] != b"\x1f\x8b":
        return content
    limit = _most_unpacked(len(content))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            plain = _read_up_to(file, limit)
    except _DAMAGE as error:
        raise InputError(
            f"{path}: truncated or corrupt gzip data ({reason(error)}); {remedy}"
        ) from None
    if len(plain) > limit:
        raise too_large(f"{path}, unpacked", f"over {limit}", limit, remedy)
    return plain


def _most_unpacked(packed: int) -> int:
    """Bytes that a compressed file of a size may unpack to.

    Samples shrink by factors of two to twenty; a thousand is a file that was made to fill memory.
    """
    return min(MAX_BYTES, max(2**28, 100 * packed))


def zip_members(
    path: AnyPath,
    names: Sequence[str],
    remedy: str,
    what: str = "zip archive",
    part: str = "files",
    suffix: str = "",
) -> list[bytes]:
    """Members of a zip archive by name; each has the size and the checksum that the archive states.

    Args:
      path: path of the archive.
      names: names of the members, without the suffix.
      remedy: advice in an error message.
      what: kind of archive in an error message.
      part: kind of member in an error message.
      suffix: end of the members' names.

    Returns:
      The contents in the order of the names.

    Raises:
      InputError: if it is no archive, lacks a member, is damaged, or states too many bytes.
    """
    with open_file(path, remedy) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                held = [name.removesuffix(suffix) for name in archive.namelist()]
                missing = sorted(set(names) - set(held))
                lacking = f"lacks the {part} {missing}, has {listed(held)}"
                require(not missing, str(path), lacking, remedy)
                members = [archive.getinfo(name + suffix) for name in names]
                stated = sum(member.file_size for member in members)
                limit = _most_unpacked(os.fstat(file.fileno()).st_size)
                if stated > limit:
                    raise too_large(f"{path}, unpacked", stated, limit, remedy)
                return [archive.read(member) for member in members]
        except InputError:
            raise
        except _DAMAGE as error:
            raise InputError(f"{path}: not a readable {what} ({reason(error)}); {remedy}") from None


def listed(names: Sequence[str], most: int = 12) -> str:
    """A list of names for an error message, of which at most `most` are written out."""
    return str(list(names[:most])) + (f" and {len(names) - most} more" if names[most:] else "")


def reason(error: BaseException) -> str:
    """What an exception says, on one line of at most 200 characters."""
    return " ".join((str(error) or type(error).__name__).split())[:200]
