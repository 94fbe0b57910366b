"""One run at a time in a work directory.

The kernel holds the lock (`flock`) for the process and lets go of it when the process ends, however
it ends: what a killed process leaves is a file that stops nobody. The file says who holds the lock
and since when. On a file system without `flock`, a file is the lock, and it is stale if its process
is gone from this host.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from absl import logging

from fedjax_het.common.errors import InputError
from fedjax_het.common.writing import make_directory, refusal
from fedjax_het.runtime import processes

NAME, OWNER = ".lock", ".lock.owner"
# What a file system answers that has no `flock`, or no second names for a file.
_NONE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EPERM)
_MOST_BYTES = 4096
# Who waits for a lock tries to take it so often.
_TURN_S = 0.1


class InUseError(InputError):
    """Another run holds the lock of a directory."""


class Lock:
    """The lock of a work directory, held from the construction to `release`.

    Args:
      directory: work directory; made if it does not exist.

    Raises:
      InUseError: if another run holds the lock; the message says which process, since when, and
        what to do.
      WriteError: if the directory cannot be made or written to.
    """

    def __init__(self, directory: Path):
        self._what, self._path = f"workdir = {str(directory)!r}", directory / NAME
        self._own = _this_process()
        make_directory(directory, self._what)
        try:
            self._file = self._by_kernel()
            if self._file is None:
                self._path.unlink(missing_ok=True)
                self._path = directory / OWNER
                self._by_name()
        except OSError as error:
            raise refusal(self._what, error) from None

    def release(self) -> None:
        """Lets go of the lock; does nothing if it is not held any more."""
        # Somebody may have broken the lock, and then the file is another's.
        if _holder(self._path) == self._own:
            with contextlib.suppress(OSError):
                self._path.unlink()
        if self._file is not None:
            self._file.close()

    def _by_kernel(self) -> BinaryIO | None:
        """The file that the kernel holds for this process; None if the file system has no locks."""
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            with contextlib.ExitStack() as stack:
                file = os.fdopen(os.open(self._path, flags, 0o666), "r+b", buffering=0)
                stack.callback(file.close)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise self._in_use(_holder(self._path)) from None
                except OSError as error:
                    if error.errno in _NONE:
                        return None
                    raise
                # Whoever released the lock meanwhile has removed this file.
                if not _is_at(file, self._path):
                    continue
                self._warn_of_another_host()
                file.truncate(0)
                file.write(_text(self._own))
                stack.pop_all()
                return file

    def _warn_of_another_host(self) -> None:
        """Says that a process of another host left the lock, because some locks end at a host."""
        left = _holder(self._path)
        if left is not None and left.get("host") != self._own["host"]:
            logging.warning(
                "%s was not released by %s; stop it if it still runs", self._what, _described(left)
            )

    def _by_name(self) -> None:
        """Gives a file of this process the name of the lock, which only one process can do."""
        own = self._path.with_name(f"{OWNER}.{self._own['host']}.{self._own['process']}")
        own.write_bytes(_text(self._own))
        try:
            with contextlib.suppress(FileExistsError):
                os.link(own, self._path)
                return
            self._remove_stale(own.with_name(f"{own.name}.stale"))
            os.link(own, self._path)
        except FileExistsError:
            raise self._in_use(_holder(self._path)) from None
        except OSError as error:
            if error.errno not in _NONE:
                raise
            logging.warning("%s: the file system has no locks; start no second run", self._what)
        finally:
            own.unlink(missing_ok=True)

    def _remove_stale(self, aside: Path) -> None:
        """Removes the file of a process of this host that is gone; raises if it may be there."""
        holder = _holder(self._path)
        if holder is not None and not (holder.get("host") == self._own["host"] and _gone(holder)):
            raise self._in_use(holder)
        # Only one process can move it, and it may be the file of one that was faster.
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._path, aside)
            moved = _holder(aside)
            if moved != holder:
                os.link(aside, self._path)
            aside.unlink()
            if moved != holder:
                raise self._in_use(moved)

    def _in_use(self, holder: Mapping[str, Any] | None) -> InUseError:
        remedy = (
            f"wait for it, stop it, name another work directory, or delete {self._path} if that "
            "process is gone"
        )
        if holder is not None and all(holder.get(k) == self._own[k] for k in ("host", "process")):
            remedy = "close the earlier simulation there first"
        return InUseError(f"{self._what}: is in use by {_described(holder)}; {remedy}")


def first_takes(directory: Path) -> Lock | None:
    """The lock of a directory in the first of several processes, None in the others.

    Raises:
      InputError: in all processes, if the first does not get it; see `Lock`.
    """
    lock, refused = None, None
    if processes.is_leader():
        try:
            lock = Lock(directory)
        except InputError as error:
            refused = error
    if not processes.leaders(float(refused is None)):
        in_use = processes.leaders(float(isinstance(refused, InUseError)))
        raise refused or (InUseError if in_use else InputError)(
            f"workdir = {str(directory)!r}: was refused to the first process of the run; "
            "see what that one says"
        )
    return lock


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a directory for all processes of a run; see `first_takes`."""
    lock = first_takes(directory)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


@contextlib.contextmanager
def waited_for(directory: Path) -> Iterator[None]:
    """Holds the lock of a directory; waits as long as another process does. For short work."""
    while True:
        try:
            lock = Lock(directory)
            break
        except InUseError:
            time.sleep(_TURN_S)
    try:
        yield
    finally:
        lock.release()


class Holder(NamedTuple):
    """Who holds a lock, or held it until the process was killed.

    Attributes:
      text: process, host and time.
      gone: whether it is known that the process has ended.
    """

    text: str
    gone: bool


def holder(directory: Path) -> Holder | None:
    """Who holds the lock of a directory, or left it there; None if it was released or never taken.

    The lock is not touched, so that a run that begins meanwhile is not refused. Whether a process
    of another host has ended is not known here.
    """
    found = _holder(directory / NAME) or _holder(directory / OWNER)
    if found is None:
        return None
    return Holder(_described(found), found.get("host") == platform.node() and _gone(found))


def _this_process() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        # Two locks of one process and second are two.
        "key": uuid.uuid4().hex,
    }


def _started(process: int) -> str | None:
    """When a process was started, in the kernel's ticks; None if there is none, or no /proc."""
    try:
        # The name of the program is in parentheses, and may hold anything.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _gone(holder: Mapping[str, Any]) -> bool:
    """Whether a process of this host has ended; its number may be that of another by now."""
    try:
        os.kill(int(holder["process"]), 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError, OverflowError):
        return True
    except OSError:
        return False
    return holder.get("started") != _started(holder["process"])


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _text(holder: Mapping[str, Any]) -> bytes:
    return json.dumps(holder).encode() + b"\n"


def _holder(path: Path) -> dict[str, Any] | None:
    """What the file of a lock says; None if it says nothing."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _described(holder: Mapping[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    process, host, since = (holder.get(name) for name in ("process", "host", "since"))
    return f"process {process} of {host} since {since}"
