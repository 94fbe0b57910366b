"""Checks of arrays given by users or read from files; each message says how to correct them."""

from typing import Any

import jax
import numpy as np

from fedjax_het.common import numbers
from fedjax_het.common.arrays import as_int32, given_array, require_unmasked
from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import reason
from fedjax_het.common.types import PyTree

_EQUAL_SAMPLES = "make all samples equally long, e.g. by padding"
STORAGE = {
    "uint8": "pixels in 0..255",
    "int16": "16-bit audio",
    "float32": "features",
    "int32": "tokens",
    "bool": "masks",
}


# Values that are checked at a time.
_PART = 2**24

# Labels are numbered from 0, and tables hold a count for each.
MAX_CLASSES = 2**24


def _kind(value: Any) -> str:
    """Type and shape of a value, for error messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__


def named_arrays(x: PyTree, name: str) -> list[tuple[str, Any]]:
    """The arrays of inputs with their names: `x` itself, or `x['tokens']`, `x[0]` of a pytree."""
    if isinstance(x, list):  # a list of samples, not of arrays of samples
        return [(name, x)]
    try:
        leaves, _ = jax.tree_util.tree_flatten_with_path(x)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{name} of type {type(x).__name__}: must be arrays under names that can be sorted "
            f"({reason(error)}); name them all by text"
        ) from None
    return [(f"{name}{jax.tree_util.keystr(path)}", leaf) for path, leaf in leaves]


def check_inputs(x: PyTree, name: str) -> None:
    """Raises `InputError` unless every array of `x` is finite, not empty, in a storage dtype."""
    arrays = named_arrays(x, name)
    require(bool(arrays), f"{name} is {x!r}", "must hold an array", "give the inputs")
    for label, array in arrays:
        _check_input(array, label)
    lengths = {label: len(array) for label, array in arrays}
    require(
        len(set(lengths.values())) == 1,
        f"{name} has " + ", ".join(f"{n} samples in {label}" for label, n in lengths.items()),
        "must be equally many",
        "check that all come from the same split",
    )


def _check_input(x: Any, name: str) -> None:
    require_unmasked(x, name)
    kinds = ", ".join(f"{dtype} ({use})" for dtype, use in STORAGE.items())
    require(
        _is_plain(x) and x.dtype.name in STORAGE,
        f"{name} is {_kind(x)}",
        f"must be a NumPy array of {kinds}",
        "convert it with .astype(...)",
    )
    require(
        x.ndim >= 2 and x.size > 0,
        f"{name} is {_kind(x)}",
        "must be [samples, ...] and not empty",
        "put the samples on the first axis",
    )
    if x.dtype == np.float32:
        _check_finite(x, name)
    if x.dtype == np.int32:
        low = int(x.min())
        require(low >= 0, f"{name}: token {low}", "must be >= 0", "number the vocabulary from 0")


def _is_plain(array: Any) -> bool:
    """Whether a value is an array in the machine's byte order."""
    return isinstance(array, np.ndarray) and array.dtype.isnative


def _check_finite(a: np.ndarray, name: str) -> None:
    flat = a.reshape(len(a), -1)
    # A part at a time: an array in a file may be larger than the memory.
    rows = max(1, _PART // flat.shape[1])
    parts = [np.isfinite(flat[i : i + rows]).all(axis=1) for i in range(0, len(flat), rows)]
    bad = np.flatnonzero(~np.concatenate(parts))
    require(
        bad.size == 0,
        f"{name}: {bad.size} samples are not finite, first ids {bad[:5].tolist()}",
        "must hold finite numbers",
        "drop or repair them",
    )


def num_samples(x: PyTree) -> int:
    """Number of samples of inputs that `check_inputs` accepts."""
    return len(jax.tree.leaves(x)[0])


def check_labels(y: np.ndarray, x: PyTree, num_classes: int, name: str) -> None:
    """Raises `InputError` unless `y` has labels of a known kind, a row per sample.

    Args:
      y: labels, int32[N, ...] in `[0, num_classes)`, or float32[N, ...]. Positions of a sequence or
        an image may be negative, which marks them as ignored; a single label may not.
      x: inputs.
      num_classes: number of labels; 0 for float labels.
      name: name in messages.
    """
    require_unmasked(y, name)
    require(
        _is_plain(y) and y.dtype.name in ("int32", "float32") and y.ndim >= 1,
        f"{name} is {_kind(y)}",
        "must be int32[N, ...] (classes) or float32[N, ...] (numbers)",
        "convert it with .astype(...)",
    )
    require(
        len(y) == num_samples(x),
        f"{name} has {len(y)} rows for {num_samples(x)} inputs",
        "must have one per input",
        "check that both come from the same split",
    )
    require(y.size > 0, f"{name} is {_kind(y)}", "must not be empty", "give every sample a label")
    if y.dtype == np.float32:
        require(
            num_classes == 0,
            f"num_classes = {num_classes} for {name} of {y.dtype}",
            "counts integer labels only",
            "leave it out, or convert the labels with .astype(numpy.int32)",
        )
        return _check_finite(y, name)
    check_whole(num_classes, "num_classes", "count the labels, or the symbols of text", MAX_CLASSES)
    low, high = int(y.min()), int(y.max())
    require(
        (low >= 0 or y.ndim > 1) and high < num_classes,
        f"{name} has labels {low}..{high}",
        f"must lie in 0..{num_classes - 1} for num_classes = {num_classes}",
        "number the labels from 0, mark ignored positions by -1, or raise num_classes",
    )
    return None


def check_same_kind(x: PyTree, y: np.ndarray, like_x: PyTree, like_y: np.ndarray) -> None:
    """Raises `InputError` unless a split has the dtypes and sample shapes of the training split."""

    def kind(x: PyTree, y: np.ndarray) -> str:
        inputs = jax.tree.map(lambda a: f"{a.dtype}{['N', *a.shape[1:]]}".replace("'", ""), x)
        return f"{inputs} with labels {np.dtype(y.dtype)}{['N', *y.shape[1:]]}".replace("'", "")

    given, wanted = kind(x, y), kind(like_x, like_y)
    require(
        given == wanted,
        f"held-out samples are {given}",
        f"must match the training samples, {wanted}",
        "prepare all splits alike",
    )


def check_partition(order: np.ndarray, count: np.ndarray, num_samples: int) -> None:
    """Raises `InputError` unless the partition is disjoint, in range, and without empty clients."""
    for name, value in (("order", order), ("count", count)):
        require(
            isinstance(value, np.ndarray) and value.dtype == np.int32 and value.ndim == 1,
            f"{name} is {_kind(value)}",
            "must be int32 with one axis",
            "use from_arrays, which builds it",
        )
    require(len(count) > 0, "0 clients", "there must be at least 1", "give a partition")
    empty = np.flatnonzero(count < 1)
    require(
        empty.size == 0,
        f"{empty.size} clients without samples, first ids {empty[:5].tolist()}",
        "every client must hold at least 1",
        "use fewer clients, a larger min_size or a milder skew",
    )
    held = int(count.sum(dtype=np.int64))
    require(
        held == len(order),
        f"clients hold {held} samples but {len(order)} are listed",
        "must agree",
        "use from_arrays, which builds both",
    )
    low, high = int(order.min()), int(order.max())
    require(
        low >= 0 and high < num_samples,
        f"sample ids {low}..{high} in the partition",
        f"must lie in 0..{num_samples - 1}",
        "index the training arrays only",
    )
    times = np.bincount(order, minlength=num_samples)
    if np.max(times) > 1:
        sample = int(np.argmax(times > 1))
        holders = np.repeat(np.arange(len(count)), count)[order == sample]
        raise InputError(
            f"sample {sample} is held by clients {holders.tolist()}: clients must not overlap; "
            "give each sample to one client"
        )


def check_owner(owner: np.ndarray, num_samples: int, num_clients: int) -> None:
    """Raises `InputError` unless `owner` names one client per test sample.

    Ids from `num_clients` on are clients that only test; they must be numbered without gaps.
    """
    require(
        isinstance(owner, np.ndarray) and owner.dtype == np.int32 and owner.shape == (num_samples,),
        f"test_client is {_kind(owner)}",
        f"must be int32[{num_samples}]",
        "give one client id per test sample",
    )
    ids = np.unique(owner)
    extra = ids[ids >= num_clients]
    require(
        int(ids[0]) >= 0 and extra.tolist() == list(range(num_clients, num_clients + len(extra))),
        f"test_client has ids {int(ids[0])}..{int(ids[-1])}",
        f"must lie in 0..{num_clients - 1}, or continue from {num_clients} for clients that only "
        "test",
        "use from_arrays, which numbers them",
    )


def check_ids(ids: np.ndarray, clients: int) -> None:
    """Raises `InputError` unless there is an id, text or a whole number, for every client."""
    require(
        _is_plain(ids) and ids.dtype.kind in "iU" and ids.shape == (clients,),
        f"ids is {_kind(ids)}",
        f"must be an array of {clients} integers or texts, one per client",
        "use from_arrays, which makes it",
    )


def as_storage(x: PyTree, name: str) -> PyTree:
    """Converts inputs to storage dtypes: floats to float32, 32- and 64-bit integers to int32."""
    if isinstance(x, dict | tuple):
        named = dict(named_arrays(x, name))
        converted = iter([_stored(array, label) for label, array in named.items()])
        x = jax.tree.map(lambda _: next(converted), x)
    else:
        x = _stored(x, name)
    check_inputs(x, name)
    return x


def _stored(x: Any, name: str) -> np.ndarray:
    x = given_array(x, name, _EQUAL_SAMPLES)
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):  # an overflow becomes inf, which check_inputs reports
            return x.astype(np.float32, copy=False)
    if x.dtype.name in ("int64", "uint32", "uint64"):
        return as_int32(x, f"{name}: token", "renumber the vocabulary from 0")
    return x


def as_labels(y: Any, name: str) -> np.ndarray:
    """Converts labels: integers and bools to int32, floats to float32."""
    y = given_array(y, name, _EQUAL_SAMPLES)
    require(
        y.dtype.kind in "iufb",
        f"{name} is {_kind(y)}",
        "must be integers (classes) or floats (numbers)",
        "number the classes from 0",
    )
    if y.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return y.astype(np.float32)
    return as_int32(y, f"{name}: label", "number the classes from 0")


def is_finite(value: Any) -> bool:
    """Whether `value` is a finite Python or NumPy number."""
    return numbers.is_real(value) and numbers.fits(value, float)


def check_whole(value: Any, name: str, remedy: str, most: int = numbers.INT32) -> None:
    """Raises `InputError` unless `value` is a whole number from 1 to `most`."""
    whole = numbers.is_real(value) and isinstance(value, int | np.integer)
    given = f"{name} = {numbers.shown(value)}"
    require(whole and value >= 1, given, "must be a whole number >= 1", remedy)
    require(value <= most, given, f"must be at most {most}", "give a number that can be held")


def check_fraction(value: Any, name: str) -> None:
    """Raises `InputError` unless `0 <= value < 1`."""
    require(
        is_finite(value) and 0.0 <= value < 1.0,
        f"{name} = {value!r}",
        "must be at least 0 and below 1",
        "0.1 sets one tenth aside",
    )
