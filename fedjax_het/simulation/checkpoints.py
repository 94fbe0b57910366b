"""Checkpoints: written completely or not at all, and verified before they are read.

orbax writes every checkpoint into a temporary directory and renames it. In addition, a digest of
all its files is written last. A checkpoint that a crash or a full disk left incomplete is thereby
recognised, and the one before it is used.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import read_json, write_json
from fedjax_het.simulation.identity import require_same

_KEEP = 2
_DIGEST = "digest.json"


class Checkpoints:
    """The checkpoints of one run; the newest two are kept.

    Args:
      directory: directory of the checkpoints; made if it does not exist.
    """

    def __init__(self, directory: Path):
        self._directory = directory.resolve()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"checkpoints = {str(directory)!r}: cannot be made ({error.strerror}); "
                "name a work directory that you may write to"
            ) from None

    def save(self, step: int, arrays: Any, meta: dict[str, Any]) -> None:
        """Saves a pytree of arrays and a JSON dictionary under `step`."""
        target = self._directory / f"{step:08d}"
        if target.exists():
            shutil.rmtree(target)
        with _checkpointer() as writer:
            writer.save(target / "arrays", _storable(arrays))
        write_json(target / "meta.json", meta)
        write_json(target / _DIGEST, _digest(target))
        for old in self.steps()[:-_KEEP]:
            shutil.rmtree(self._directory / f"{old:08d}", ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps that have a directory, ascending; some of them may be incomplete."""
        return sorted(
            int(path.name)
            for path in self._directory.iterdir()
            if path.name.isdecimal() and path.is_dir()
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
            if _whole(target):
                require_same(f"checkpoint {target}", read_json(target / "meta.json"), identity)
                return target
            logging.warning("checkpoint %s is damaged; using the one before it", target)
            shutil.rmtree(target)
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
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _storable(like))
        with _checkpointer() as reader:
            arrays = reader.restore(target / "arrays", abstract)
        return _like(like, arrays), meta


def _checkpointer() -> ocp.StandardCheckpointer:
    """A checkpointer for this process only: every process reads, and the first one writes."""
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


def _whole(target: Path) -> bool:
    try:
        return read_json(target / _DIGEST) == _digest(target)
    except (OSError, InputError):
        return False
