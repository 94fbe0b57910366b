"""Partitioners: functions that assign training samples to clients.

A factory closes over its options and returns `partition(labels, rng)`, which assigns the samples
`0, ..., N - 1` to clients: n disjoint int64 arrays in sequence that together cover all samples. Use
it as `from_arrays(..., clients=dirichlet(30, alpha=0.5), seed=1)`; the same seed gives the same
partition. Requests that cannot be met raise `InputError` before anything is drawn.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.numbers import Count, Size
from fedjax_het.common.options import check_options, checked
from fedjax_het.data.checks import check_whole, is_finite
from fedjax_het.data.clients import Partition, by_owner, owner_ids

Partitioner = Callable[[np.ndarray, np.random.Generator], Sequence[np.ndarray]]

_MAX_RETRIES = 100


@checked
def iid(num_clients: Size) -> Partitioner:
    """Shuffles the samples and splits them equally: sizes differ by at most 1.

    Args:
      num_clients: number of clients n, at most N.
    """
    check_whole(num_clients, "num_clients", "10 to 1000 is customary")

    def partition(labels: np.ndarray, rng: np.random.Generator) -> Partition:
        _check_samples(len(labels), num_clients, 1)
        return Partition(rng.permutation(len(labels)), _equal(len(labels), num_clients))

    return partition


@checked
def contiguous(num_clients: Size) -> Partitioner:
    """Splits the samples in their order into equal parts; suited to text cut into windows.

    Args:
      num_clients: number of clients n, at most N.
    """
    check_whole(num_clients, "num_clients", "10 to 1000 is customary")

    def partition(labels: np.ndarray, rng: np.random.Generator) -> Partition:
        del rng
        _check_samples(len(labels), num_clients, 1)
        return Partition(np.arange(len(labels)), _equal(len(labels), num_clients))

    return partition


def natural(ids: Sequence[Any] | np.ndarray) -> Partitioner:
    """Gives every sample to the client of its id; clients are numbered in sorted order of ids.

    Args:
      ids: owner of each sample, N ids: numbers, text or dates.
    """
    owner = owner_ids(ids, "ids")
    require(
        owner.ndim == 1, f"ids of shape {owner.shape}", "must have one axis", "one id per sample"
    )

    def partition(labels: np.ndarray, rng: np.random.Generator) -> Partition:
        del rng
        require(
            len(labels) == len(owner),
            f"{len(owner)} ids for {len(labels)} samples",
            "must be one id per sample",
            "with validation_fraction, hand the ids to from_arrays as `clients` instead",
        )
        return by_owner(owner)[0]

    return partition


@checked
def dirichlet(
    num_clients: Size, alpha: float, min_size: Count = 10, balanced: bool = True
) -> Partitioner:
    """Label skew: splits the samples of each label in proportions drawn from Dir(alpha).

    Labels are split one after the other. A draw that leaves a client with fewer than `min_size`
    samples is repeated, at most 100 times. If none succeeds, the draw with the largest smallest
    client is kept, and clients below `min_size` receive random samples of the largest clients.

    Args:
      num_clients: number of clients n.
      alpha: concentration; 0.1 gives most clients one or two labels, 100 is nearly i.i.d.
      min_size: least number of samples of a client, `n * min_size <= N`.
      balanced: whether clients that already hold N / n samples get no samples of further labels, as
        in DTFL and most published splits; if False, sizes are as skewed as labels.

    Reference:
      Hsu, Qi and Brown, arXiv 1909.06335, for the draw; DTFL, arXiv 2312.05642, for the cap.
    """
    check_whole(num_clients, "num_clients", "10 to 1000 is customary")
    require(
        is_finite(alpha) and alpha > 0,
        f"alpha = {alpha!r}",
        "must be a finite positive number",
        "0.1 is strong label skew, 100 nearly none",
    )
    check_whole(min_size, "min_size", "a client without samples cannot train")

    def partition(labels: np.ndarray, rng: np.random.Generator) -> Partition:
        _check_samples(len(labels), num_clients, min_size)
        per_label = _by_label(labels, rng)
        totals = [len(samples) for samples in per_label]
        best, best_smallest = None, -1
        for _ in range(_MAX_RETRIES):
            dealt = _dirichlet_counts(totals, num_clients, alpha, balanced, rng)
            smallest = int(dealt.sum(axis=0).min())
            if smallest > best_smallest:
                best, best_smallest = dealt, smallest
            if smallest >= min_size:
                break
        assert best is not None
        return _fill_up(_deal(per_label, best), min_size, rng)

    return partition


@checked
def shards(num_clients: Size, shards_per_client: Count = 2) -> Partitioner:
    """Sorts by label, cuts into equal shards and gives each client a fixed number of them.

    Args:
      num_clients: number of clients n.
      shards_per_client: number s of shards per client, `n * s <= N`; a client holds about s labels
        if shards are smaller than classes.

    Reference:
      McMahan et al., "Communication-Efficient Learning of Deep Networks", arXiv 1602.05629.
    """
    check_whole(num_clients, "num_clients", "10 to 1000 is customary")
    check_whole(shards_per_client, "shards_per_client", "2 gives most clients two labels")

    def partition(labels: np.ndarray, rng: np.random.Generator) -> Partition:
        _check_samples(len(labels), num_clients, shards_per_client)
        by_label = np.concatenate(_by_label(labels, rng))
        size = _equal(len(by_label), num_clients * shards_per_client)
        hands = rng.permutation(len(size))
        begin, size = (np.cumsum(size) - size)[hands], size[hands]
        # Distance from the place of a shard's samples in the result to that in `by_label`.
        moved = np.repeat(begin - (np.cumsum(size) - size), size)
        order = by_label[np.arange(len(by_label)) + moved]
        return Partition(order, size.reshape(num_clients, shards_per_client).sum(axis=1))

    return partition


@checked
def label_limited(num_clients: Size, labels_per_client: Count) -> Partitioner:
    """Gives every client exactly k labels.

    All labels have equally many clients, up to rounding, and a label's clients share it equally.

    Args:
      num_clients: number of clients n.
      labels_per_client: number k of labels per client, at most the number of labels C, with
        `n * k >= C`, so that every label has a client. No label may have fewer samples than
        clients.
    """
    check_whole(num_clients, "num_clients", "10 to 1000 is customary")
    check_whole(labels_per_client, "labels_per_client", "2 is the customary strong skew")

    def partition(labels: np.ndarray, rng: np.random.Generator) -> Partition:
        per_label = _by_label(labels, rng)
        num_labels = len(per_label)
        require(
            labels_per_client <= num_labels <= num_clients * labels_per_client,
            f"labels_per_client = {labels_per_client} for {num_clients} clients",
            f"must lie between {math.ceil(num_labels / num_clients)} and the {num_labels} labels",
            "otherwise a client lacks labels or a label lacks clients",
        )
        holds = np.zeros((num_labels, num_clients), bool)
        for client in rng.permutation(num_clients):  # takes the labels with the fewest holders
            fewest = np.lexsort((rng.random(num_labels), holds.sum(axis=1)))
            holds[fewest[:labels_per_client], client] = True
        dealt = np.zeros((num_labels, num_clients), np.int64)
        for label, samples in enumerate(per_label):
            holders = np.flatnonzero(holds[label])
            require(
                len(samples) >= len(holders),
                f"label number {label} has {len(samples)} samples for {len(holders)} clients",
                "every holder must get at least 1",
                "use fewer clients or fewer labels per client",
            )
            dealt[label, holders] = _equal(len(samples), len(holders))
        return _deal(per_label, dealt)

    return partition


@checked
def quantity_skew(num_clients: Size, sigma: float, min_size: Count = 1) -> Partitioner:
    """Unequal sizes with i.i.d. labels.

    Every client gets `min_size` samples; the rest is split in log-normal proportions.

    Args:
      num_clients: number of clients n.
      sigma: standard deviation of the logarithm of the share; 0 gives equal shares, 1 makes the
        95th percentile 27 times the 5th.
      min_size: least number of samples of a client, `n * min_size <= N`.
    """
    check_whole(num_clients, "num_clients", "10 to 1000 is customary")
    check_whole(min_size, "min_size", "a client without samples cannot train")
    require(
        is_finite(sigma) and 0 <= sigma <= 10,
        f"sigma = {sigma!r}",
        "must lie in 0..10",
        "1 is strong quantity skew",
    )

    def partition(labels: np.ndarray, rng: np.random.Generator) -> Partition:
        _check_samples(len(labels), num_clients, min_size)
        share = np.exp(sigma * rng.standard_normal(num_clients))
        ends = np.cumsum(share / share.sum()) * (len(labels) - num_clients * min_size)
        ends[-1] = len(labels) - num_clients * min_size
        extra = np.diff(np.floor(ends).astype(np.int64), prepend=0)
        return Partition(rng.permutation(len(labels)), min_size + extra)

    return partition


PARTITIONERS: dict[str, Callable[..., Partitioner]] = {
    f.__name__: f for f in (iid, contiguous, dirichlet, shards, label_limited, quantity_skew)
}


@checked
def partitioner(name: str, num_clients: Size, **options: Any) -> Partitioner:
    """Makes a partitioner by name, for configurations and command lines.

    Args:
      name: name of the factory, a key of `PARTITIONERS`.
      num_clients: number of clients n.
      **options: options of the factory, e.g. `alpha`.

    Raises:
      InputError: for an unknown name, or an unknown or missing option.
    """
    require_known(name, PARTITIONERS, "partition")
    factory = PARTITIONERS[name]
    check_options(options, f"option of partition {name!r}", factory, derived=("num_clients",))
    return factory(num_clients, **options)


def _equal(total: int, count: int) -> np.ndarray:
    """Sizes of `count` equal parts of `total`, the first ones larger by 1 if needed, int64."""
    return np.full(count, total // count) + (np.arange(count) < total % count)


def _by_label(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffled sample ids of every label that occurs, one array per label, in label order."""
    require(
        labels.ndim == 1 and labels.dtype.kind in "iu",
        f"labels {labels.dtype}{list(labels.shape)}",
        "must be one class per sample, to skew by",
        "use iid, contiguous, quantity_skew or natural clients, or give the owner of each sample",
    )
    shuffled = rng.permutation(len(labels))
    _, count = np.unique(labels, return_counts=True)
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    return np.split(by_label, np.cumsum(count)[:-1])


def _dirichlet_counts(
    totals: list[int], num_clients: int, alpha: float, balanced: bool, rng: np.random.Generator
) -> np.ndarray:
    """Number of samples of each label for each client, int64[labels, n]; rows sum to `totals`."""
    dealt = np.zeros((len(totals), num_clients), np.int64)
    fair = sum(totals) / num_clients
    for label, total in enumerate(totals):
        # Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha), computed in logarithms: a small alpha would
        # underflow otherwise, and a share of zeros cannot be normalised.
        gamma = rng.standard_gamma(alpha + 1.0, num_clients)
        log_share = np.log(gamma) - rng.standard_exponential(num_clients) / alpha
        if balanced:
            log_share[dealt.sum(axis=0) >= fair] = -np.inf
        share = np.exp(log_share - np.max(log_share))
        ends = np.cumsum(share / share.sum()) * total
        last = np.flatnonzero(share)[-1]  # takes the remainder; clients after it have no share
        ends[last:] = total
        dealt[label] = np.diff(np.floor(ends).astype(np.int64), prepend=0)
    return dealt


def _deal(per_label: list[np.ndarray], dealt: np.ndarray) -> Partition:
    """Cuts every label's samples into the sizes `dealt` [labels, n] and collects them by client."""
    owner = np.concatenate([np.repeat(np.arange(dealt.shape[1]), row) for row in dealt])
    order = np.concatenate(per_label)[np.argsort(owner, kind="stable")]
    return Partition(order, dealt.sum(axis=0))


def _fill_up(held: Partition, min_size: int, rng: np.random.Generator) -> Partition:
    """Moves random samples from the largest clients to those below `min_size`."""
    sizes = held.sizes.copy()
    small = np.flatnonzero(sizes < min_size)
    if not small.size:
        return held
    parts = list(held)
    for client in small:
        while sizes[client] < min_size:
            donor = int(np.argmax(sizes))
            moved = int(min(min_size - sizes[client], sizes[donor] - min_size))
            given = rng.permutation(parts[donor])
            parts[client] = np.concatenate([parts[client], given[:moved]])
            parts[donor] = given[moved:]
            sizes[client] += moved
            sizes[donor] -= moved
    return Partition.of(parts)


def _check_samples(num_samples: int, num_clients: int, min_size: int) -> None:
    require(
        num_clients * min_size <= num_samples,
        f"{num_clients} clients with at least {min_size} samples each",
        f"need {num_clients * min_size} of the {num_samples} samples there are",
        f"use at most {num_samples // min_size} clients, or ask for fewer samples per client",
    )
