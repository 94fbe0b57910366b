"""Faults of the disk, in this process: the n-th operation that changes a file fails.

What Python does is patched: files opened for writing, `os.replace`, `mkdir`, `fsync` and the like.
The checkpoint library writes its arrays natively; a limit on the size of files reaches them.
"""

import builtins
import errno
import io
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Functions of `os` that change what is on the disk.
_CHANGES = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir", "link", "truncate")
OPERATIONS = ("open", "write", "fsync", "mkdir", "replace", "rename", "unlink", "rmdir")
ERRORS = {
    "disk full": errno.ENOSPC,
    "read-only": errno.EROFS,
    "input/output error": errno.EIO,
    "not permitted": errno.EACCES,
}


Fault = Callable[[str, int], int | None]
_REMOVALS = ("unlink", "rmdir", "truncate")
_TORN_BYTES = 7


class Disk:
    """Counts the operations below a directory and calls `fault(what, number)` before each.

    Args:
      root: directory; operations elsewhere are not counted.
      fault: function of the name of an operation and its number among those of this name, from 0,
        which may raise `OSError` or kill; of a write it may return the number of bytes to write
        before it fails.
    """

    def __init__(self, root: Path, fault: Fault):
        self._root, self._fault = os.path.realpath(root), fault
        self._numbers: Counter[str] = Counter()

    def install(self) -> None:
        """Patches this process, which is a fork that ends with the run."""
        for name in _CHANGES:
            setattr(os, name, self._patched(name, getattr(os, name)))
        real_open = io.open
        files = self

        def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            writes = any(letter in mode for letter in "wax+")
            if not writes or not files.below(file):
                return real_open(file, mode, *rest, **more)
            files.happens("open")
            return _Writes(real_open(file, mode, *rest, **more), files)

        builtins.open = opened
        io.open = opened

    def below(self, place: Any) -> bool:
        """Whether an operation on this path or file number is counted."""
        if isinstance(place, int):
            try:
                place = os.readlink(f"/proc/self/fd/{place}")
            except OSError:
                return False
        path = os.path.realpath(os.fsdecode(place))
        return path == self._root or path.startswith(self._root + os.sep)

    def happens(self, what: str) -> int | None:
        """One more operation."""
        self._numbers[what] += 1
        return self._fault(what, self._numbers[what] - 1)

    def _patched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **more: Any) -> Any:
            # Names relative to the number of a directory are rmtree's; they count as well.
            if more.get("dir_fd") is not None or self.below(arguments[0]):
                self.happens(name)
            return real(*arguments, **more)

        return changed


class _Writes:
    """A file whose writes are counted; a write may be torn."""

    def __init__(self, file: Any, disk: Disk):
        self._file, self._disk = file, disk

    def write(self, content: Any) -> int:
        torn = self._disk.happens("write")
        if torn is not None:
            self._file.write(content[:torn])
            self._file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Writes":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._file)


def failing(kind: str, what: str, at: int, forever: bool = False) -> Fault:
    """The fault of this kind at one operation.

    Args:
      kind: key of `ERRORS`, "torn" (some bytes of a write, then a full disk) or "killed".
      what: name of the operation.
      at: its number among those of this name.
      forever: whether all later operations fail as well.
    """
    begun = False

    def fault(name: str, number: int) -> int | None:
        nonlocal begun
        now = name == what and number == at
        begun = begun or now
        # Removing a file works on a full disk.
        full = kind in ("disk full", "torn")
        if not (now or (begun and forever)) or (full and name in _REMOVALS):
            return None
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "torn" and name == "write":
            return _TORN_BYTES
        code = errno.ENOSPC if full else ERRORS[kind]
        raise OSError(code, os.strerror(code))

    return fault


def counting(path: Path) -> Fault:
    """No fault; the operations are written to a file, one name a line."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def fault(name: str, number: int) -> int | None:
        del number
        os.write(file, f"{name}\n".encode())
        return None

    return fault


def limit_files(size: int) -> None:
    """No file may become longer than `size` bytes, also in native code."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
