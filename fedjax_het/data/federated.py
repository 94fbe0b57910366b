"""The federated data set: training samples, their partition, and their preprocessing."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from fedjax_het.common import numbers
from fedjax_het.common.arrays import given_array
from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.common.options import check_types
from fedjax_het.common.types import PyTree
from fedjax_het.data.augment import AUGMENTATIONS
from fedjax_het.data.batches import DeviceData, Pipeline
from fedjax_het.data.checks import (
    as_labels,
    as_storage,
    check_fraction,
    check_ids,
    check_inputs,
    check_labels,
    check_owner,
    check_partition,
    check_same_kind,
    check_whole,
    named_arrays,
    num_samples,
)
from fedjax_het.data.clients import Partition, groups, hold_out, owner_index, readable

Normalise = tuple[float | Sequence[float], float | Sequence[float]]
Partitioner = Callable[[np.ndarray, np.random.Generator], Sequence[np.ndarray]]

_ARRAYS = ("x", "y", "order", "count", "test_x", "test_y", "test_client", "val_x", "val_y")


@dataclass(frozen=True, eq=False)
class FederatedData:
    """Samples and partition on the host; immutable, compared by identity.

    The dtype of `x` tells the kind of data: uint8 pixels (scaled to [0, 1] on use), int16 audio
    (scaled to [-1, 1) on use), float32 features, int32 tokens or bool masks (used unchanged). The
    dtype of `y` tells the kind of labels: int32 classes or float32 numbers.

    Attributes:
      x: training inputs, [N, ...], or a dictionary or tuple of such arrays (tokens and mask).
      y: labels, [N, ...]: one per sample, or one per position of a sequence or an image, where
        negative classes mark positions without a label.
      order: ids of training samples grouped by client, int32[N_used]; samples may be left out.
      count: number of samples of each client, int32[n], all >= 1.
      test_x, test_y: inputs and labels of the test set, like `x` and `y`.
      num_classes: number of classes (symbols of the vocabulary, for text); 0 for numbers.
      name: name of the data set in records and plots.
      normalise: pair (mean, std), each one number or one per channel, in scaled units, or None.
      augment: name of the augmentation, `"crop_flip"` or `"crop_flip_cutout"` (images only), or
        None.
      test_client: id of the client that owns each test sample, int32[N_test], or None; ids from
        `num_clients` on are clients that only test.
      val_x, val_y: inputs and labels of a validation set taken from the training samples, or None.
      classes: names of the labels, or None.
      ids: ids of the clients as the user gave them, those that only test behind the others, text
        or int64 [max(n, num_test_clients)]; None if they have none but their numbers.
    """

    x: PyTree
    y: np.ndarray
    order: np.ndarray
    count: np.ndarray
    test_x: PyTree
    test_y: np.ndarray
    num_classes: int
    name: str = "custom"
    normalise: Normalise | None = None
    augment: str | None = None
    test_client: np.ndarray | None = None
    val_x: PyTree = None
    val_y: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    ids: np.ndarray | None = None

    def __post_init__(self):
        check_inputs(self.x, "x")
        check_labels(self.y, self.x, self.num_classes, "y")
        for split in ("test", "val"):
            x, y = getattr(self, f"{split}_x"), getattr(self, f"{split}_y")
            if split == "val" and x is None and y is None:
                continue
            check_inputs(x, f"{split}_x")
            check_labels(y, x, self.num_classes, f"{split}_y")
            check_same_kind(x, y, self.x, self.y)
        check_partition(self.order, self.count, len(self.y))
        if self.test_client is not None:
            check_owner(self.test_client, len(self.test_y), self.num_clients)
        if self.augment is not None:
            require_known(self.augment, AUGMENTATIONS, "augment")
            require(
                isinstance(self.x, np.ndarray)
                and self.x.ndim == 4
                and self.x.dtype not in (np.int32, np.bool_),
                f"augment = {self.augment!r} with inputs of shape {self.input_shape}",
                "needs images [H, W, C]",
                "leave augment out",
            )
        if self.classes is not None:
            require(
                len(self.classes) == self.num_classes,
                f"classes has {len(self.classes)} names",
                f"must name all classes, num_classes = {self.num_classes}",
                "leave it out if they have no names",
            )
        if self.ids is not None:
            check_ids(self.ids, max(self.num_clients, self.num_test_clients))
            object.__setattr__(self, "ids", _frozen(self.ids))
        _ = self.pipeline  # checks `normalise`
        for name in _ARRAYS:
            object.__setattr__(self, name, jax.tree.map(_frozen, getattr(self, name)))

    @property
    def num_clients(self) -> int:
        """Number of clients n."""
        return len(self.count)

    @property
    def num_test_clients(self) -> int:
        """Number of clients that train or own test samples; 0 without owners of test samples."""
        if self.test_client is None:
            return 0
        return max(self.num_clients, 1 + int(np.max(self.test_client)))

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of samples of each client, int64[n], read-only."""
        return _frozen(self.count.astype(np.int64))

    @cached_property
    def start(self) -> np.ndarray:
        """Position in `order` of each client's first sample, int32[n], read-only."""
        return _frozen((np.cumsum(self.sizes) - self.sizes).astype(np.int32))

    @property
    def input_shape(self) -> Any:
        """Shape of one input, without the sample axis; a pytree of shapes if `x` is a pytree."""
        return jax.tree.map(lambda a: a.shape[1:], self.x)

    @property
    def input_dtype(self) -> Any:
        """Dtype of prepared inputs, a pytree if `x` is one: int32 tokens, bool masks or float32."""
        return jax.tree.map(
            lambda a: a.dtype if a.dtype in (np.int32, np.bool_) else np.dtype(np.float32), self.x
        )

    @cached_property
    def pipeline(self) -> Pipeline:
        """Preprocessing of stored samples; the static argument of `batches.gather`."""
        if self.normalise is None:
            return Pipeline(augment=self.augment)
        require(
            isinstance(self.x, np.ndarray) and self.x.dtype not in (np.int32, np.bool_),
            f"normalise = {self.normalise} for inputs of {self.input_dtype}",
            "tokens, masks and inputs of several parts are not normalised",
            "leave normalise out, and normalise the numbers beforehand",
        )
        pair = isinstance(self.normalise, tuple | list) and len(self.normalise) == 2
        parts = [given_array(part, "normalise") for part in self.normalise] if pair else []
        require(
            pair and all(part.dtype.kind in "iuf" and part.ndim <= 1 for part in parts),
            f"normalise = {self.normalise!r}",
            "must be (mean, std)",
            "give each as one number, or one per channel",
        )
        mean, std = (tuple(float(v) for v in np.atleast_1d(part)) for part in parts)
        channels = self.input_shape[-1]
        for name, values in (("mean", mean), ("std", std)):
            require(
                len(values) in (1, channels) and bool(numbers.usable(np.asarray(values)).all()),
                f"normalise: {name} = {values}",
                f"must be 1 or {channels} finite numbers, 0 or of at least {numbers.LEAST:g}",
                "give one number, or one per channel (last axis)",
            )
        require(
            min(std) > 0, f"normalise: std = {std}", "must be positive", "drop constant channels"
        )
        return Pipeline(mean, std, self.augment)

    def client_samples(self, client: int) -> np.ndarray:
        """Ids of the training samples of one client, int32[n_k]."""
        begin = int(self.start[client])
        return self.order[begin : begin + int(self.count[client])]

    def label_counts(self) -> np.ndarray:
        """Count of each class per client, int64[n, num_classes]; all labelled positions count.

        Raises:
          InputError: if the labels are numbers.
        """
        if not self.num_classes:
            raise InputError(
                f"label_counts of {self.name!r}: must have classes, but its labels are "
                f"{self.y.dtype} numbers; count bins of numpy.digitize instead"
            )
        held = self.y[self.order].reshape(len(self.order), -1)
        owner = np.repeat(np.arange(self.num_clients), self.count)[:, None]
        flat = (owner * self.num_classes + held)[held >= 0]
        counts = np.bincount(flat, minlength=self.num_clients * self.num_classes)
        return counts.reshape(self.num_clients, self.num_classes)

    def device(self) -> DeviceData:
        """Copies the training samples and the partition to the default device."""
        arrays = (self.x, self.y, self.order, self.start, self.count)
        return DeviceData(*jax.device_put(arrays, may_alias=False))

    def fingerprint(self) -> str:
        """SHA-256, in hex, of all samples, the partition and the preprocessing."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.num_classes, self.pipeline)).encode())
        for name in _ARRAYS:
            for label, array in named_arrays(getattr(self, name), name):
                digest.update(f"{label}{array.dtype.str}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _frozen(array: np.ndarray) -> np.ndarray:
    """A view that cannot be written to; the caller's own array stays writable."""
    view = array.view()
    view.flags.writeable = False
    return view


def from_arrays(
    x: PyTree,
    y: np.ndarray,
    test_x: PyTree,
    test_y: np.ndarray,
    *,
    clients: Partitioner | Mapping[Any, Any] | Sequence[Any] | np.ndarray,
    num_classes: int | None = None,
    name: str = "custom",
    normalise: Normalise | None = None,
    augment: str | None = None,
    test_clients: Sequence[Any] | np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    validation_fraction: float = 0.0,
    per_client_cap: int | None = None,
    seed: int = 0,
) -> FederatedData:
    """Makes a federated data set from NumPy arrays.

    Example::

        data = from_arrays(x, y, test_x, test_y, clients=dirichlet(30, alpha=0.5), seed=1)

    Args:
      x: training inputs, [N, ...]: uint8 pixels, int16 audio, floats (stored as float32),
        int32/int64 tokens, or bool masks; or a dictionary or tuple of such arrays. Images are
        [N, H, W, C].
      y: labels, [N, ...]: integers for classes, floats for numbers; see `FederatedData`.
      test_x: test inputs, like `x`.
      test_y: test labels, like `y`.
      clients: assignment of samples to clients: a partitioner from `fedjax_het.data.partition`,
        the owner of each sample (N ids in an array, a list or a Series of pandas, all numbers, all
        text or all dates; clients are numbered in sorted order of their ids), a dictionary from
        ids to arrays of sample ids, or a list of n such arrays.
      num_classes: number of classes; default one more than the largest label, 0 for floats.
      name: name of the data set in records and plots.
      normalise: pair (mean, std), each one number or one per channel, applied after pixels are
        scaled to [0, 1].
      augment: name of the augmentation, `"crop_flip"` or `"crop_flip_cutout"`, or None.
      test_clients: owner id of each test sample; only if `clients` gives owner ids too. Owners
        without training samples take no part in training and are only tested (a held-out domain).
      classes: names of the labels.
      validation_fraction: share of the training samples moved to `val_x`, `val_y` before the
        partition is drawn; if clients are given, this share (rounded down) of every client.
      per_client_cap: largest number of samples a client keeps, chosen at random; default all.
      seed: seed of the partition, the validation split and the cap, each with its own stream.

    Returns:
      The `FederatedData`.

    Raises:
      InputError: for arrays or a partition that cannot be used.
    """
    x, test_x = as_storage(x, "x"), as_storage(test_x, "test_x")
    y, test_y = as_labels(y, "y"), as_labels(test_y, "test_y")
    require(
        y.dtype == test_y.dtype,
        f"y of {y.dtype}, test_y of {test_y.dtype}",
        "must both be classes (integers) or numbers (floats)",
        "convert one of them with .astype(...)",
    )
    check_fraction(validation_fraction, "validation_fraction")
    check_types({"classes": classes, "seed": seed}, "option of from_arrays", from_arrays)
    if per_client_cap is not None:
        check_whole(per_client_cap, "per_client_cap", "leave it out to keep all samples")
    require(
        isinstance(seed, int | np.integer) and seed >= 0,
        f"seed = {seed!r}",
        "must be a whole number >= 0",
        "any such number will do",
    )
    split_rng, partition_rng, cap_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)
    )
    owners = None
    if callable(clients):
        given = Partition.of([np.arange(num_samples(x), dtype=np.int64)])
    else:
        given, owners = groups(clients, num_samples(x))
    kept, val = hold_out(given, validation_fraction, split_rng)
    if callable(clients):
        dealt, _ = groups(clients(y[kept.order], partition_rng), len(kept.order))
        kept = Partition(kept.order[dealt.order], dealt.sizes)
    if per_client_cap is not None:
        kept = Partition.of([cap_rng.permutation(part)[:per_client_cap] for part in kept])
    owner = None
    if test_clients is not None:
        owner, owners = owner_index(test_clients, owners)
    if num_classes is None and y.dtype == np.float32:
        num_classes = 0
    elif num_classes is None:
        num_classes = 1 + max(int(labels.max(initial=0)) for labels in (y, test_y))
    return FederatedData(
        x=x,
        y=y,
        order=kept.order.astype(np.int32),
        count=kept.sizes.astype(np.int32),
        test_x=test_x,
        test_y=test_y,
        num_classes=num_classes,
        name=name,
        normalise=normalise,
        augment=augment,
        test_client=owner,
        val_x=jax.tree.map(lambda a: a[val], x) if len(val) else None,
        val_y=y[val] if len(val) else None,
        classes=None if classes is None else tuple(str(c) for c in classes),
        ids=readable(owners),
    )
