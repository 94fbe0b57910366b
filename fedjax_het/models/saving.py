"""Variables by name, and their files in the safetensors format.

A name is the path of a leaf: `blocks.0.Dense_0.kernel` and `exits.1.Dense_0.bias` for parameters,
`stats.blocks.1.BatchNorm_0.mean` for running statistics. Any program that reads safetensors finds
the arrays under these names.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedjax_het.common.arrays import given_array
from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import reason
from fedjax_het.common.types import PyTree
from fedjax_het.common.writing import write_atomic
from fedjax_het.contract.algorithm import Variables

# Files in the work directory of a finished run: the final model and, with patience, that of the
# best evaluation.
MODEL_FILE, BEST_FILE = "model.safetensors", "best.safetensors"

# Key of the digest of the arrays, in the metadata of a file.
_SHA256 = "sha256"

# Differences of each kind that an error message lists.
_LISTED = 4


def leaf_paths(tree: PyTree) -> dict[tuple[str, ...], Any]:
    """The leaves of a pytree by their path, in the order of `jax.tree.leaves`."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf
        for path, leaf in found
    }


def named(variables: Variables) -> dict[str, Any]:
    """Parameters and running statistics by name, in the order of `jax.tree.leaves`."""
    params = {".".join(path): leaf for path, leaf in leaf_paths(variables.params).items()}
    stats = {".".join(("stats", *path)): leaf for path, leaf in leaf_paths(variables.stats).items()}
    return {**params, **stats}


def fitted(arrays: Mapping[str, Any], shapes: Variables, what: str, remedy: str) -> Variables:
    """Variables of a model from arrays by name, float32 as in the model.

    Args:
      arrays: floating-point arrays by name, as from `named` or `read`.
      shapes: shapes of the model, `BlockModel.shapes`.
      what: description of the arrays in an error message.
      remedy: advice in an error message.

    Returns:
      The variables; their leaves are NumPy or JAX arrays, as given.

    Raises:
      InputError: if names or shapes differ; the message lists those that are missing, unexpected or
        of another shape, with both shapes.
    """
    wanted = named(shapes)
    arrays = {
        name: leaf if isinstance(leaf, jax.Array) else given_array(leaf, f"{what}, {name}", remedy)
        for name, leaf in arrays.items()
    }
    kinds = {
        "missing": [name for name in wanted if name not in arrays],
        "unexpected": [name for name in arrays if name not in wanted],
        "differently shaped": [
            f"{name} {list(arrays[name].shape)} for {list(leaf.shape)}"
            for name, leaf in wanted.items()
            if name in arrays and tuple(arrays[name].shape) != tuple(leaf.shape)
        ],
        "not of floating point": [
            f"{name} {arrays[name].dtype}"
            for name in wanted
            if name in arrays and not jax.numpy.issubdtype(arrays[name].dtype, np.floating)
        ],
    }
    wrong = ", ".join(f"{kind} ({_some(names)})" for kind, names in kinds.items() if names)
    require(not wrong, what, f"does not fit the model: {wrong}", remedy)
    with np.errstate(over="ignore"):  # an overflow becomes inf, which `require_finite` reports
        leaves = [arrays[name].astype(leaf.dtype) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def digest(variables: Variables) -> str:
    """SHA-256 of the names, shapes, dtypes and bits of variables."""
    return _digest(named(variables))


def _digest(arrays: Mapping[str, Any]) -> str:
    total = hashlib.sha256()
    for name, leaf in sorted(arrays.items()):
        array = np.asarray(leaf, order="C")
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def require_finite(variables: Variables, what: str) -> None:
    """Raises `InputError` if a variable is not finite, so that no training could start there."""
    bad = [name for name, leaf in named(variables).items() if not np.isfinite(leaf).all()]
    require(
        not bad,
        what,
        f"has values that are not finite ({_some(bad)})",
        "start from a model whose training did not diverge",
    )


def write(path: str | Path, variables: Variables, metadata: Mapping[str, str]) -> None:
    """Writes variables and text about them as one safetensors file, atomically.

    Args:
      path: path of the file; its directory must exist.
      variables: variables to write.
      metadata: text by name.

    Raises:
      InputError: if the file cannot be written.
    """
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in named(variables).items()}
    content = _ordered(save(arrays, {**metadata, _SHA256: _digest(arrays)}))
    write_atomic(Path(path), content, f"path = {str(path)!r}")


def _ordered(content: bytes) -> bytes:
    """The content of a file with its metadata by name, which safetensors writes in any order."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[start:]


def locate(place: str | Path) -> Path:
    """The file that a path means: itself, or the `model.safetensors` of a work directory."""
    path = Path(place)
    return path / MODEL_FILE if os.path.isdir(path) else path


def read(place: str | Path, what: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays by name and the metadata of a saved model.

    Args:
      place: path of a safetensors file, or work directory of a finished run.
      what: name of the option in an error message.

    Raises:
      InputError: if there is no such file, or it is damaged.
    """
    path = locate(place)
    require(
        os.path.isfile(path),
        f"{what} = {str(place)!r}",
        f"holds no saved model ({path.name} does not exist)",
        "name a .safetensors file, or the work directory of a run that has reached its end",
    )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError(
            f"{what} = {str(place)!r}: is not a readable safetensors file ({reason(error)}); "
            "restore the file, or save the model again"
        ) from None
    stated = metadata.pop(_SHA256, None)  # files of other programs have none
    require(
        stated in (None, _digest(arrays)),
        f"{what} = {str(place)!r}",
        "holds other values than were saved in it",
        "restore the file, or save the model again",
    )
    return arrays, metadata
