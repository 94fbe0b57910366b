"""Checks of arrays given by users or read from files; each message says how to correct them."""

from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require

STORAGE = {
    "uint8": "pixels in 0..255",
    "int16": "16-bit audio",
    "float32": "features",
    "int32": "tokens",
}


def _kind(value: Any) -> str:
    """Type and shape of a value, for error messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__


def check_inputs(x: np.ndarray, name: str) -> None:
    """Raises `InputError` unless `x` is a non-empty finite array in a storage dtype."""
    kinds = ", ".join(f"{dtype} ({use})" for dtype, use in STORAGE.items())
    require(
        isinstance(x, np.ndarray) and x.dtype.name in STORAGE,
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
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
        require(
            bad.size == 0,
            f"{name}: {bad.size} samples are not finite, first ids {bad[:5].tolist()}",
            "must hold finite numbers",
            "drop or repair them",
        )
    if x.dtype == np.int32:
        low = int(x.min())
        require(low >= 0, f"{name}: token {low}", "must be >= 0", "number the vocabulary from 0")


def check_labels(y: np.ndarray, x: np.ndarray, num_classes: int, name: str) -> None:
    """Raises `InputError` unless `y` is int32[N] or [N, T] in `[0, num_classes)`, a row per `x`."""
    require(
        isinstance(y, np.ndarray) and y.dtype == np.int32 and y.ndim in (1, 2),
        f"{name} is {_kind(y)}",
        "must be int32[N], or int32[N, T] for sequences",
        "convert it with .astype(numpy.int32)",
    )
    require(
        len(y) == len(x),
        f"{name} has {len(y)} rows for {len(x)} inputs",
        "must have one per input",
        "check that both come from the same split",
    )
    require(
        y.ndim == 1 or x.shape[1] == y.shape[1],
        f"{name} is {_kind(y)} for inputs {_kind(x)}",
        "sequence labels must be as long as the sequences",
        "flatten one label per sample with y[:, 0]",
    )
    low, high = int(y.min()), int(y.max())
    require(
        low >= 0 and high < num_classes,
        f"{name} has labels {low}..{high}",
        f"must lie in 0..{num_classes - 1} for num_classes = {num_classes}",
        "number the labels from 0, or raise num_classes",
    )


def check_same_kind(x: np.ndarray, y: np.ndarray, like_x: np.ndarray, like_y: np.ndarray) -> None:
    """Raises `InputError` unless a split has the dtype and sample shapes of the training split."""
    require(
        (x.dtype, x.shape[1:], y.shape[1:]) == (like_x.dtype, like_x.shape[1:], like_y.shape[1:]),
        f"held-out samples are {_kind(x)} with labels {_kind(y)}",
        f"must match the training samples, {_kind(like_x)} with labels {_kind(like_y)}",
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
    """Raises `InputError` unless `owner` names one existing client per test sample."""
    require(
        isinstance(owner, np.ndarray) and owner.dtype == np.int32 and owner.shape == (num_samples,),
        f"test_client is {_kind(owner)}",
        f"must be int32[{num_samples}]",
        "give one client id per test sample",
    )
    low, high = int(owner.min()), int(owner.max())
    require(
        low >= 0 and high < num_clients,
        f"test_client has ids {low}..{high}",
        f"must lie in 0..{num_clients - 1}",
        "drop the test samples of clients that do not train",
    )


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(
            f"{name} of type {_kind(value)}: must be one array ({error}); "
            "make all samples equally long, e.g. by padding"
        ) from error


def as_storage(x: Any, name: str) -> np.ndarray:
    """Converts inputs to a storage dtype: floats to float32, 32- and 64-bit integers to int32."""
    x = _array(x, name)
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):  # an overflow becomes inf, which check_inputs reports
            x = x.astype(np.float32, copy=False)
    elif x.dtype in (np.int64, np.uint32, np.uint64) and x.size:
        high = int(x.max())
        require(
            high < 2**31, f"{name}: token {high}", "must be below 2^31", "renumber the vocabulary"
        )
        x = x.astype(np.int32)
    check_inputs(x, name)
    return x


def as_labels(y: Any, name: str) -> np.ndarray:
    """Converts integer labels of any width to int32."""
    y = _array(y, name)
    require(
        y.dtype.kind in "iu",
        f"{name} is {_kind(y)}",
        "must be integers",
        "number the classes from 0",
    )
    high = int(y.max(initial=0))
    require(
        high < 2**31, f"{name}: label {high}", "must be below 2^31", "number the classes from 0"
    )
    return y.astype(np.int32)


def is_finite(value: Any) -> bool:
    """Whether `value` is a finite Python or NumPy number."""
    return isinstance(value, int | float | np.number) and bool(np.isfinite(value))


def check_whole(value: Any, name: str, remedy: str) -> None:
    """Raises `InputError` unless `value` is a whole number of at least 1."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    require(whole and value >= 1, f"{name} = {value!r}", "must be a whole number >= 1", remedy)


def check_fraction(value: Any, name: str) -> None:
    """Raises `InputError` unless `0 <= value < 1`."""
    require(
        is_finite(value) and 0.0 <= value < 1.0,
        f"{name} = {value!r}",
        "must be at least 0 and below 1",
        "0.1 sets one tenth aside",
    )
