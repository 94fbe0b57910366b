"""Checkpoints: written completely or not at all, and verified before they are read.

orbax writes every checkpoint into a temporary directory and renames it. In addition, a digest of
all its files is written last. A checkpoint that a crash or a full disk left incomplete is thereby
recognised, and the one before it is used.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from logging import LogRecord
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging

from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import read_json
from fedjax_het.common.writing import make_directory, refusing, write_json
from fedjax_het.simulation.identity import require_same

if TYPE_CHECKING:
    from orbax.checkpoint import StandardCheckpointer

_KEEP = 2
_DIGEST = "digest.json"
# The metadata of every run, with the types that JSON has for them.
_NUMBER = (int, float)
_FIELDS: dict[str, Any] = {
    "step": int,
    "now_s": _NUMBER,
    "unseen_score": (*_NUMBER, type(None)),
    "routes": list,
    "rented_s": list,
    "progress": dict,
    "offsets": dict,
    "totals": dict,
    "lowerings": (dict, type(None)),
    "identity": dict,
    "wall_s": _NUMBER,
    "compile_s": _NUMBER,
}


class Checkpoints:
    """The checkpoints of one run; the newest two are kept.

    Args:
      directory: directory of the checkpoints; made if it does not exist.

    Attributes:
      last: step of the newest complete checkpoint; None if there is none, or before `newest`.
    """

    def __init__(self, directory: Path):
        make_directory(directory, f"checkpoints = {str(directory)!r}")
        self._directory = directory.absolute()
        self.last: int | None = None

    def save(self, step: int, arrays: Any, meta: dict[str, Any]) -> None:
        """Saves a pytree of arrays and a JSON dictionary under `step`.

        Raises:
          WriteError: if the disk refuses; the checkpoints before are as they were.
        """
        target = self._directory / f"{step:08d}"
        try:
            with refusing(str(target)):
                _remove(target)
                with _refusals_of_orbax(), _checkpointer() as writer:
                    writer.save(target / "arrays", _storable(arrays))
            write_json(target / "meta.json", meta)
            write_json(target / _DIGEST, _digest(target))
        except BaseException:
            # What is incomplete would take the place that the next attempt needs.
            shutil.rmtree(target, ignore_errors=True)
            raise
        self.last = step
        for old in self.steps()[:-_KEEP]:
            shutil.rmtree(self._directory / f"{old:08d}", ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps that have a directory, ascending; some of them may be incomplete.

        Any other name, also of digits, is not one that `save` gives.
        """
        return sorted(
            int(path.name)
            for path in self._directory.iterdir()
            if re.fullmatch(r"[0-9]{8}|[1-9][0-9]{8,9}", path.name) and path.is_dir()
        )

    def newest(self, identity: Mapping[str, Any]) -> Path | None:
        """The directory of the newest complete checkpoint, or None if there is none.

        Damaged checkpoints are skipped with a warning and removed.

        Args:
          identity: identity of the run that resumes, see `identify`.

        Raises:
          InputError: if it belongs to another configuration; the message names the differences.
        """
        for step in reversed(self.steps()):
            target = self._directory / f"{step:08d}"
            fault = _fault(target, identity)
            if fault is None:
                self.last = step
                return target
            logging.warning("checkpoint %s %s; using the one before it", target, fault)
            with refusing(str(target), "removed"):
                _remove(target)
        return None

    def restore(
        self, template: Callable[[Mapping[str, Any]], Any], identity: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        """The content of the newest complete checkpoint, or None if there is none; see `newest`.

        Args:
          template: function from the metadata to a pytree of arrays with the structure, shapes and
            dtypes of the saved arrays.
          identity: identity of the run that resumes.

        Returns:
          The pair `(arrays, meta)`; leaves are NumPy or JAX arrays as in the template.

        Raises:
          InputError: if it belongs to another configuration.
        """
        target = self.newest(identity)
        if target is None:
            return None
        meta = read_json(target / "meta.json")
        like = template(meta)
        with _checkpointer() as reader:
            arrays = reader.restore(target / "arrays", jax.tree.map(_abstract, _storable(like)))
        return _like(like, arrays), meta

    @contextlib.contextmanager
    def taken_up(self) -> Iterator[None]:
        """Around the restoring of a run: names a checkpoint that is whole and holds something else.

        Its digest is right, so no crash made it. The run may be half restored by now.

        Raises:
          InputError: in place of the errors of values that are missing or of another type.
        """
        try:
            yield
        except InputError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(
                f"checkpoint {self.last} in {self._directory}: holds what no run saves ({said}); "
                "delete its directory, and the run continues from the one before it"
            ) from error


def _checkpointer() -> "StandardCheckpointer":
    """A checkpointer for this process only: every process reads, and the first one writes."""
    import orbax.checkpoint as ocp  # a fifth of the time to import the library

    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(tree: Any) -> Any:
    """The leaves as host arrays, so that a checkpoint does not depend on devices.

    A typed PRNG key is stored as its data.
    """
    return jax.tree.map(
        lambda leaf: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf), tree
    )


def _abstract(array: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _like(template: Any, arrays: Any) -> Any:
    def of(reference: Any, value: Any) -> Any:
        if _is_key(reference):
            data = jax.numpy.asarray(value)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(reference))
        return jax.numpy.asarray(value) if isinstance(reference, jax.Array) else np.asarray(value)

    return jax.tree.map(of, template, arrays)


def _digest(target: Path) -> dict[str, str]:
    files = sorted(p for p in target.rglob("*") if p.is_file() and p.name != _DIGEST)
    return {str(p.relative_to(target)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _fault(target: Path, identity: Mapping[str, Any]) -> str | None:
    """What is wrong with a checkpoint; None if nothing is.

    Raises:
      InputError: if it belongs to another configuration.
    """
    try:
        digest, meta = read_json(target / _DIGEST), read_json(target / "meta.json")
        if digest != _digest(target) or not (target / "arrays").is_dir():
            return "is damaged"
    except (OSError, InputError):
        return "is damaged"
    if not isinstance(meta, dict) or not isinstance(meta.get("identity"), dict):
        return "does not say of which run it is"
    require_same(f"checkpoint {target}", meta, identity)
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(meta.get(name, ...), kind)]
    if wrong:
        return f"lacks {', '.join(wrong)}"
    return None if meta["step"] == int(target.name) else f"is that of step {meta['step']}"


def _remove(target: Path) -> None:
    """Removes a directory, a file or a link, but not what a link leads to."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


@contextlib.contextmanager
def _refusals_of_orbax() -> Iterator[None]:
    """Errors of the operating system that orbax reports become `OSError`, without its own log."""

    def of_others(record: LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname

    logger = logging.get_absl_logger()
    logger.addFilter(of_others)
    try:
        yield
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from None
    finally:
        logger.removeFilter(of_others)
