"""Assignments of samples to clients, read from each of the forms that users may give."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require


def groups(clients: Sequence[Any] | np.ndarray, num_samples: int) -> tuple[list[np.ndarray], Any]:
    """Sample ids per client, and the sorted client ids if owners were given, else None."""
    require(
        isinstance(clients, Sequence | np.ndarray) and not isinstance(clients, str),
        f"clients of type {type(clients).__name__}",
        "must say who holds which sample",
        "give one owner per sample, a list of arrays of sample ids, or a partitioner",
    )
    listed = not isinstance(clients, np.ndarray) and len(clients) > 0 and np.ndim(clients[0]) == 1
    if listed:
        parts = [np.asarray(part) for part in clients]
        for client, part in enumerate(parts):
            require(
                part.ndim == 1 and (part.dtype.kind in "iu" or part.size == 0),
                f"clients[{client}] is {part.dtype}{list(part.shape)}",
                "must be a one-dimensional array of sample ids",
                "convert masks with numpy.flatnonzero",
            )
            low, high = int(part.min(initial=0)), int(part.max(initial=0))
            require(
                low >= 0 and high < num_samples,
                f"clients[{client}] has sample ids {low}..{high}",
                f"must lie in 0..{num_samples - 1}",
                "index the training arrays only",
            )
        return [part.astype(np.int64) for part in parts], None
    owner = np.asarray(clients)
    require(
        owner.shape == (num_samples,),
        f"clients has shape {list(owner.shape)}",
        f"must name one owner per training sample, {num_samples} in all",
        "or give a partitioner, or a list of arrays of sample ids",
    )
    ids, index, count = np.unique(owner, return_inverse=True, return_counts=True)
    by_client = np.argsort(index, kind="stable")
    return np.split(by_client, np.cumsum(count)[:-1]), ids


def hold_out(
    held_by: list[np.ndarray], fraction: float, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Moves `floor(fraction n_k)` random samples of every group into one sorted array."""
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
    return kept, val


def owner_index(test_clients: Sequence[Any] | np.ndarray, ids: np.ndarray | None) -> np.ndarray:
    """Client numbers of the owners of the test samples, int32[N_test].

    Owners without training samples only test; they are numbered after the others, in sorted order.
    """
    if ids is None:
        raise InputError(
            "test_clients given: clients must then be the owner of each training sample; "
            "leave test_clients out, or give clients as ids"
        )
    owner = np.asarray(test_clients)
    require(
        owner.ndim == 1 and (owner.dtype.kind in "US") == (ids.dtype.kind in "US"),
        f"test_clients is {owner.dtype}{list(owner.shape)}",
        f"must name one owner per test sample, by ids like those of clients ({ids.dtype})",
        "use the same ids in both",
    )
    every = np.concatenate([ids, np.setdiff1d(owner, ids)])
    order = np.argsort(every, kind="stable")
    return order[np.searchsorted(every, owner, sorter=order)].astype(np.int32)
