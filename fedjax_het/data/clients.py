"""Assignments of samples to clients, read from each of the forms that users may give."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_het.common.arrays import given_array, within
from fedjax_het.common.errors import InputError, require


class Partition(Sequence[np.ndarray]):
    """The samples of each client: a sequence of n arrays of ids, int64[n_k], held as one.

    An array for every client would take a second and 100 MB for a million of them.

    Args:
      order: ids of the samples grouped by client, int64[N].
      sizes: number of samples of each client, int64[n].
    """

    def __init__(self, order: np.ndarray, sizes: np.ndarray):
        self.order, self.sizes = order, sizes
        self._ends = np.cumsum(sizes)

    @classmethod
    def of(cls, parts: Sequence[np.ndarray]) -> "Partition":
        """The partition of a list of arrays."""
        sizes = np.fromiter(map(len, parts), np.int64, len(parts))
        return cls(np.concatenate([np.zeros(0, np.int64), *parts]), sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, client: Any) -> Any:
        if isinstance(client, slice):
            return [self[k] for k in range(len(self))[client]]
        end = self._ends[client]
        return self.order[end - self.sizes[client] : end]


def by_owner(owner: np.ndarray) -> tuple[Partition, np.ndarray]:
    """The samples of each owner, and the sorted ids of the owners.

    Args:
      owner: owner of each sample, a result of `owner_ids` with one axis.
    """
    order = np.argsort(owner, kind="stable")
    ids = owner[order]
    begin = np.flatnonzero(np.append(True, ids[1:] != ids[:-1])[: len(ids)])
    return Partition(order, np.diff(begin, append=len(ids))), ids[begin]


def groups(clients: Any, num_samples: int) -> tuple[Partition, Any]:
    """The samples of each client, and the clients' ids if they were given, else None.

    Args:
      clients: owner of each sample (sorted ids are returned), a dictionary from the ids to the
        samples of each, or a list of the samples of each.
      num_samples: number of samples.
    """
    clients = plain_owners(clients)
    require(
        isinstance(clients, Sequence | np.ndarray | Mapping) and not isinstance(clients, str),
        f"clients of type {type(clients).__name__}",
        "must say who holds which sample",
        "give one owner per sample, a list or dictionary of arrays of sample ids, or a partitioner",
    )
    if isinstance(clients, Partition):
        return clients, None
    if isinstance(clients, Mapping):
        return _held_by(clients, num_samples)
    if _lists_samples(clients):
        held = Partition.of([_sample_ids(part, k, num_samples) for k, part in enumerate(clients)])
        outside = np.flatnonzero((held.order < 0) | (held.order >= num_samples))
        if outside.size:
            client = int(np.searchsorted(np.cumsum(held.sizes), outside[0], side="right"))
            _require_known(held[client], f"clients[{client}]", num_samples)
        return held, None
    owner = owner_ids(clients, "clients")
    require(
        owner.shape == (num_samples,),
        f"clients has shape {list(owner.shape)}",
        f"must name one owner per training sample, {num_samples} in all",
        "or give a partitioner, or a list of arrays of sample ids",
    )
    return by_owner(owner)


def plain_owners(owners: Any) -> Any:
    """A column of another library (a Series of pandas or polars) as an array, others as given."""
    convert = getattr(owners, "to_numpy", None)
    return owners if isinstance(owners, np.ndarray) or convert is None else convert()


def _held_by(clients: Mapping[Any, Any], num_samples: int) -> tuple[Partition, np.ndarray]:
    require(bool(clients), "clients = {}", "must have at least 1 client", "give its samples")
    ids = owner_ids(list(clients), "clients")
    parts = []
    for client, part in clients.items():
        part = plain_owners(part)
        require(
            (isinstance(part, Sequence) and not isinstance(part, str | bytes))
            or getattr(part, "ndim", 0) == 1,
            f"clients[{client!r}] of type {type(part).__name__}",
            "must be a list of sample ids",
            "give one list per client",
        )
        parts.append(np.asarray(part, np.int64) if not len(part) else part)
    return groups(parts, num_samples)[0], ids


def _lists_samples(clients: Sequence[Any] | np.ndarray) -> bool:
    """Whether a sequence holds the samples of each client, and not the owner of each sample."""
    if isinstance(clients, np.ndarray) or not len(clients):
        return False
    first = clients[0]
    if isinstance(first, Sequence):
        return not isinstance(first, str | bytes)
    return getattr(first, "ndim", 0) >= 1


def _sample_ids(part: Any, client: int, num_samples: int) -> np.ndarray:
    """Ids of the samples of one client, int64[n_k]."""
    if type(part) is np.ndarray and part.dtype == np.int64 and part.ndim == 1:
        return part  # `groups` looks at all such arrays together
    name = f"clients[{client}]"
    ids = given_array(part, name, "give a list of sample ids")
    require(
        ids.ndim == 1 and (ids.dtype.kind in "iu" or ids.size == 0),
        f"{name} is {ids.dtype}{list(ids.shape)}",
        "must be a one-dimensional array of sample ids",
        "convert masks with numpy.flatnonzero",
    )
    if not ids.size:
        return np.zeros(0, np.int64)
    _require_known(ids, name, num_samples)
    return ids.astype(np.int64)


def _require_known(ids: np.ndarray, name: str, num_samples: int) -> None:
    require(
        within(ids, 0, num_samples - 1),
        f"{name} has sample ids {int(ids.min())}..{int(ids.max())}",
        f"must lie in 0..{num_samples - 1}",
        "index the training arrays only",
    )


def owner_ids(owners: Any, name: str) -> np.ndarray:
    """The owner of each sample: bools, integers of 64 bits, finite floats, text, bytes or dates.

    Args:
      owners: sequence of ids of one type.
      name: name of the sequence in an error message.

    Raises:
      InputError: for ids of several types or of another type, and for missing ones.
    """
    owners = plain_owners(owners)
    ids = given_array(owners, name, "give one id per sample")
    objects = ids.dtype.kind == "O"
    every = ids.flat if objects else owners if isinstance(owners, list | tuple) else ()
    kinds = {type(owner) for owner in every}
    # NumPy makes text of the numbers beside text, so that 1 and "1" would be one client.
    families = {next((f for f in (str, bytes) if issubclass(kind, f)), None) for kind in kinds}
    if objects and len(families) == 1:
        ids = np.asarray(ids.tolist())
    require(
        ids.dtype.kind in "biufUSM" and len(families) <= 1,
        f"{name} holds ids of {', '.join(sorted(kind.__name__ for kind in kinds)) or ids.dtype}",
        "must all be numbers, all text or all dates",
        "give every sample an owner, or convert the ids with str",
    )
    missing = (
        np.isnat(ids) if ids.dtype.kind == "M" else ids.dtype.kind == "f" and ~np.isfinite(ids)
    )
    first = np.flatnonzero(missing)[:1]
    require(
        first.size == 0,
        f"{name}: {ids.ravel()[first]} of sample {first}",
        "must not be missing or infinite",
        "give every sample an owner",
    )
    if ids.dtype.kind in "iu":
        require(
            within(ids, -(2**63), 2**63 - 1),
            f"{name}: id {int(ids.max(initial=0))}",
            "must be below 2^63",
            "convert the ids with str",
        )
        ids = ids.astype(np.int64)
    return ids


def hold_out(
    held_by: Partition, fraction: float, rng: np.random.Generator
) -> tuple[Partition, np.ndarray]:
    """Moves `floor(fraction n_k)` random samples of every client into one sorted array."""
    if fraction == 0.0:
        return held_by, np.zeros(0, np.int64)
    kept, held = [], []
    for part in held_by:
        part = rng.permutation(part)
        cut = int(fraction * len(part))
        kept.append(np.sort(part[cut:]))
        held.append(part[:cut])
    val = np.sort(np.concatenate(held))
    require(
        len(val) > 0,
        f"validation_fraction = {fraction}",
        f"takes no sample from any of {len(held_by)} clients",
        "raise it, or leave it out",
    )
    return Partition.of(kept), val


def owner_index(test_clients: Any, ids: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Client numbers of the owners of the test samples, int32[N_test], and the ids of all clients.

    Owners without training samples only test; they are numbered after the others, in sorted order.
    """
    if ids is None:
        raise InputError(
            "test_clients given: clients must then be the owner of each training sample; "
            "leave test_clients out, or give clients as ids"
        )
    owner = owner_ids(test_clients, "test_clients")
    require(
        owner.ndim == 1 and owner.dtype.kind == ids.dtype.kind,
        f"test_clients is {owner.dtype}{list(owner.shape)}",
        f"must name one owner per test sample, by ids like those of clients ({ids.dtype})",
        "use the same ids in both",
    )
    every = np.concatenate([ids, np.setdiff1d(owner, ids)])
    order = np.argsort(every, kind="stable")
    return order[np.searchsorted(every, owner, sorter=order)].astype(np.int32), every


def readable(ids: np.ndarray | None) -> np.ndarray | None:
    """Ids as text or int64; None if they are the numbers of the clients, or not given."""
    if ids is None or (ids.dtype.kind == "i" and np.array_equal(ids, np.arange(len(ids)))):
        return None
    if ids.dtype.kind in "iU":
        return ids
    texts = [i.decode(errors="replace") if isinstance(i, bytes) else str(i) for i in ids.tolist()]
    return np.array(texts)
