"""Compiled programs are kept between processes, under the user's cache directory.

JAX writes an entry in place. A process that is killed meanwhile leaves an incomplete entry, which
no later process replaces. Every process therefore has its own directory, filled with links to the
entries of a common store. It links its new entries into the store when they are complete. Files in
the store are never changed.

The environment variable `FEDJAX_HET_COMPILATION_CACHE` names another store, or disables the cache
if it is "off". If JAX has a cache directory already (`jax_compilation_cache_dir`), it is not
changed.
"""

import atexit
import contextlib
import hashlib
import math
import os
import platform
import shutil
import tempfile
from pathlib import Path

import jax

from fedjax_het.common.errors import InputError

ENVIRONMENT = "FEDJAX_HET_COMPILATION_CACHE"
# If the store is larger than this, its oldest entries are removed.
MAX_BYTES = 2 * 1024**3
_MIN_COMPILE_S = 0.2
_JAX_MIN_COMPILE_S = 1.0
_OWN = "process-"
# A process directory that was last changed this long ago belongs to a process that was killed.
_STALE_S = 7 * 24 * 3600.0


def store() -> Path | None:
    """Directory in which entries are kept between processes; None if the cache is disabled.

    Programs for a CPU use its instructions, so every kind of CPU has its own store.
    """
    chosen = os.environ.get(ENVIRONMENT)
    if chosen is not None and chosen.strip().lower() in ("", "off", "0", "false", "no"):
        return None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(chosen) if chosen else Path(home) / "fedjax_het" / "compiled"
    return root.expanduser() / hashlib.sha256(_cpu().encode()).hexdigest()[:16]


def _cpu() -> str:
    """The kind of CPU: its machine type, and its instruction set extensions if they are known."""
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{platform.machine()} {flags}"


class Cache:
    """The view of a store in one process.

    Args:
      root: directory of the store; made if it does not exist.

    Attributes:
      own: directory of this process, which JAX reads and writes.
    """

    def __init__(self, root: Path):
        root.mkdir(parents=True, exist_ok=True)
        self._root, self._process = root, os.getpid()
        _prune(root)
        self.own = Path(tempfile.mkdtemp(prefix=_OWN, dir=root))
        for entry in root.iterdir():
            if entry.is_file():
                with contextlib.suppress(OSError):
                    os.link(entry, self.own / entry.name)

    def publish(self) -> None:
        """Adds the new entries of this process to the store."""
        with contextlib.suppress(OSError):
            for entry in self.own.iterdir():
                if not (kept := self._root / entry.name).exists():
                    os.link(entry, kept)

    def close(self) -> None:
        """Publishes new entries and removes the process's directory; does nothing in a fork."""
        if os.getpid() != self._process:
            return
        self.publish()
        shutil.rmtree(self.own, ignore_errors=True)


def _prune(root: Path) -> None:
    """Removes the oldest entries beyond `MAX_BYTES`, and the directories of killed processes."""
    files, newest = [], 0.0
    for entry in root.iterdir():
        with contextlib.suppress(OSError):
            status = entry.stat()
            newest = max(newest, status.st_mtime)
            files.append((status.st_mtime, status.st_size, entry))
    total = 0
    for changed, size, entry in sorted(files, key=lambda file: -file[0]):
        if entry.is_dir():
            if entry.name.startswith(_OWN) and changed < newest - _STALE_S:
                shutil.rmtree(entry, ignore_errors=True)
            continue
        total += size
        if total > MAX_BYTES:
            with contextlib.suppress(OSError):
                entry.unlink()


_cache: Cache | None = None


def enable() -> Cache | None:
    """Enables the cache for this process, once; None if it is disabled or cannot be made.

    Raises:
      InputError: if the environment variable names a directory that cannot be written to.
    """
    global _cache
    if _cache is not None or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined, unused-ignore]
        return _cache
    root = store()
    _cache = None if root is None else open_store(root)
    if _cache is not None:
        atexit.register(_cache.close)
        jax.config.update("jax_compilation_cache_dir", str(_cache.own))
        # XLA's own caches would lie in the process's directory, and its name would be a part of
        # every key.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
        least_s = jax.config.jax_persistent_cache_min_compile_time_secs  # type: ignore[attr-defined, unused-ignore]
        if least_s == _JAX_MIN_COMPILE_S:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_S)
    return _cache


def stop_keeping() -> None:
    """Keeps no program that this process compiles from now on; those of the store are still read.

    For programs with calls of oneDNN: the runtime of JAX 0.10 takes them for calls of another kind
    when it writes them down, and reads memory that is not theirs.
    """
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)


def open_store(root: Path) -> Cache | None:
    """A view of the store; None if the default directory cannot be used.

    Raises:
      InputError: if the directory that the environment variable names cannot be used.
    """
    try:
        return Cache(root)
    except OSError as error:
        named = os.environ.get(ENVIRONMENT)
        if not named:
            return None
        raise InputError(
            f"{ENVIRONMENT}={named}: {error.strerror}; name a directory that you may write to, or "
            '"off"'
        ) from error
