import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.common.errors import InputError
from fedjax_het.data.clients import by_owner
from fedjax_het.data.partition import (
    PARTITIONERS,
    _deal,
    contiguous,
    dirichlet,
    iid,
    label_limited,
    natural,
    partitioner,
    quantity_skew,
    shards,
)

_CASES = {
    "iid": lambda n: iid(n),
    "contiguous": lambda n: contiguous(n),
    "dirichlet": lambda n: dirichlet(n, 0.3, min_size=2),
    "dirichlet_extreme": lambda n: dirichlet(n, 1e-4, min_size=2),
    "dirichlet_unbalanced": lambda n: dirichlet(n, 0.3, min_size=1, balanced=False),
    "shards": lambda n: shards(n, 2),
    "label_limited": lambda n: label_limited(n, 3),
    "quantity_skew": lambda n: quantity_skew(n, 1.5, min_size=2),
}
_LEAST = {"dirichlet": 2, "dirichlet_extreme": 2, "quantity_skew": 2}


def _labels(size, classes, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([np.arange(classes), rng.integers(0, classes, size - classes)])


@pytest.mark.parametrize("case", _CASES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    clients=st.integers(2, 25),
    extra=st.integers(0, 400),
    classes=st.integers(3, 6),
    seed=st.integers(0, 2**32),
)
def test_parts_are_a_disjoint_cover_and_reproducible(case, clients, extra, classes, seed):
    # Every label has at least as many samples as there are clients, so every case is feasible.
    labels = np.concatenate(
        [np.tile(np.arange(classes), clients), _labels(classes + extra, classes)]
    )
    parts = _CASES[case](clients)(labels, np.random.default_rng(seed))
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert min(map(len, parts)) >= _LEAST.get(case, 0 if case == "dirichlet_unbalanced" else 1)
    again = _CASES[case](clients)(labels, np.random.default_rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def _split_by_label(labels, rng):
    shuffled = rng.permutation(len(labels))
    return [shuffled[labels[shuffled] == label] for label in np.unique(labels)]


def _listed_shards(labels, rng, clients):
    pieces = np.array_split(np.concatenate(_split_by_label(labels, rng)), 2 * clients)
    hands = rng.permutation(len(pieces)).reshape(clients, 2)
    return [np.concatenate([pieces[p] for p in hand]) for hand in hands]


# The same as lists of arrays, written client by client.
_LISTED = {
    "iid": lambda y, rng, n: np.array_split(rng.permutation(len(y)), n),
    "contiguous": lambda y, rng, n: np.array_split(np.arange(len(y)), n),
    "shards": _listed_shards,
}


@pytest.mark.parametrize("case", _LISTED)
@given(clients=st.integers(1, 25), extra=st.integers(0, 200), seed=st.integers(0, 2**32))
def test_a_partition_is_the_list_of_its_parts(case, clients, extra, seed):
    labels = np.random.default_rng(seed).integers(0, 4, 2 * clients + extra)
    parts = _CASES[case](clients)(labels, np.random.default_rng(seed))
    listed = _LISTED[case](labels, np.random.default_rng(seed), clients)
    assert [part.tolist() for part in parts] == [part.tolist() for part in listed]
    assert [part.tolist() for part in parts[1:-1]] == [part.tolist() for part in listed[1:-1]]
    assert parts[-1].tolist() == listed[-1].tolist()
    with pytest.raises(IndexError):
        parts[clients]


@given(st.lists(st.integers(0, 5), min_size=1), st.data())
def test_samples_are_grouped_by_owner_in_sorted_order(owner, data):
    kind = data.draw(st.sampled_from([np.int64, np.float64, np.str_, "M8[s]"]))
    held, ids = by_owner(np.asarray(owner).astype(kind))
    assert ids.tolist() == np.unique(np.asarray(owner).astype(kind)).tolist()
    for client, mine in zip(np.unique(owner), held, strict=True):
        assert mine.tolist() == np.flatnonzero(np.asarray(owner) == client).tolist()


@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    clients=st.integers(1, 5),
    data=st.data(),
)
def test_samples_of_each_label_are_dealt_out_in_their_order(sizes, clients, data):
    ends = np.cumsum(sizes)
    per_label = np.split(np.random.default_rng(0).permutation(ends[-1]), ends[:-1])
    cuts = [
        np.sort(data.draw(st.lists(st.integers(0, n), min_size=clients - 1, max_size=clients - 1)))
        for n in sizes
    ]
    dealt = np.array(
        [np.diff(c, prepend=0, append=n) for c, n in zip(cuts, sizes, strict=True)], int
    )
    parts = [np.split(s, np.cumsum(row)[:-1]) for s, row in zip(per_label, dealt, strict=True)]
    listed = [np.concatenate(own).tolist() for own in zip(*parts, strict=True)]
    assert [part.tolist() for part in _deal(per_label, dealt)] == listed


def _counts(parts, labels):
    classes = labels.max() + 1
    return np.stack([np.bincount(labels[p], minlength=classes) for p in parts])


def test_iid_sizes_differ_by_at_most_one():
    sizes = {len(p) for p in iid(7)(np.zeros(100), np.random.default_rng(0))}
    assert sizes == {14, 15}


def test_contiguous_keeps_the_order():
    parts = contiguous(3)(np.zeros(10), np.random.default_rng(0))
    assert [p.tolist() for p in parts] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_natural_groups_by_id_in_sorted_order():
    parts = natural(["b", "a", "b", "c"])(np.zeros(4), np.random.default_rng(0))
    assert [p.tolist() for p in parts] == [[1], [0, 2], [3]]
    with pytest.raises(InputError, match="4 ids for 3 samples"):
        natural(["b", "a", "b", "c"])(np.zeros(3), np.random.default_rng(0))


def test_dirichlet_skew_follows_alpha():
    labels = _labels(20_000, 10)
    top = {}
    for alpha in (0.05, 0.5, 1000.0):
        counts = _counts(dirichlet(20, alpha)(labels, np.random.default_rng(3)), labels)
        top[alpha] = (counts.max(axis=1) / counts.sum(axis=1)).mean()
    assert top[0.05] > 0.7 > top[0.5] > 0.25 > top[1000.0]
    assert top[1000.0] < 0.13


def test_dirichlet_without_the_cap_has_dirichlet_proportions():
    labels = np.zeros(1000, int)
    shares = np.stack(
        [
            [len(p) / 1000 for p in dirichlet(4, 0.7, 1, balanced=False)(labels, rng)]
            for rng in map(np.random.default_rng, range(400))
        ]
    )
    # Var of a component of Dir(a, ..., a) with n parts: (n - 1) / (n^2 (n a + 1)); draws that leave
    # a client empty are repeated, which lowers it a little.
    assert abs(shares[:, 0].mean() - 0.25) < 0.03
    assert abs(shares.var(axis=0).mean() - 3 / (16 * 3.8)) < 0.008


def test_dirichlet_cap_keeps_sizes_together():
    labels = _labels(50_000, 10)
    rng = np.random.default_rng(0)
    sizes = np.array([[len(p) for p in dirichlet(10, 0.5)(labels, rng)] for _ in range(30)])
    loose = np.array(
        [[len(p) for p in dirichlet(10, 0.5, balanced=False)(labels, rng)] for _ in range(30)]
    )
    # A client stops receiving once it holds N / n; what it holds beyond that came with one label.
    assert sizes.max() < 2 * 5000
    assert sizes.std(axis=1).mean() < 0.7 * loose.std(axis=1).mean()


@pytest.mark.parametrize("alpha", [1e-12, 1e-3])
def test_dirichlet_with_tiny_alpha_ends_and_fills_up_small_clients(alpha):
    labels = _labels(3000, 5)
    parts = dirichlet(100, alpha, min_size=30)(labels, np.random.default_rng(0))
    assert [len(p) for p in parts] == [30] * 100
    parts = dirichlet(100, alpha, min_size=7)(labels, np.random.default_rng(0))
    assert min(map(len, parts)) == 7
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(3000))


def test_shards_give_few_labels():
    labels = np.repeat(np.arange(10), 600)
    parts = shards(100, 2)(labels, np.random.default_rng(0))
    assert {len(p) for p in parts} == {60}
    assert max(len(np.unique(labels[p])) for p in parts) == 2


def test_label_limited_is_exact_and_shares_equally():
    labels = np.repeat(np.arange(10), 60)
    counts = _counts(label_limited(50, 3)(labels, np.random.default_rng(0)), labels)
    assert set((counts > 0).sum(axis=1)) == {3}
    assert set((counts > 0).sum(axis=0)) == {15}
    assert set(counts[counts > 0]) == {4}
    assert len(np.unique(counts > 0, axis=0)) > 20


def test_quantity_skew_is_log_normal_and_zero_sigma_equal():
    labels = np.zeros(1_000_000)
    sizes = [len(p) for p in quantity_skew(500, 0.8)(labels, np.random.default_rng(0))]
    assert abs(np.log(sizes).std() - 0.8) < 0.08
    assert {len(p) for p in quantity_skew(8, 0.0)(labels, np.random.default_rng(0))} == {125_000}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: iid(0), "num_clients = 0"),
        (lambda: iid(2.5), r"'num_clients' = 2\.5: must be a whole number"),
        (lambda: iid(True), "'num_clients' = True: must be a whole number"),
        (lambda: dirichlet(5, 0.0), r"alpha = 0\.0"),
        (lambda: dirichlet(5, -1), "alpha = -1"),
        (lambda: dirichlet(5, float("nan")), "'alpha' = nan: must be a finite number"),
        (lambda: dirichlet(5, float("inf")), "'alpha' = inf: must be a finite number"),
        (lambda: dirichlet(5, "0.5"), r"'alpha' = '0\.5': must be a number"),
        (lambda: dirichlet(5, 0.5, min_size=0), "min_size = 0"),
        (lambda: shards(5, 0), "shards_per_client = 0"),
        (lambda: label_limited(5, 0), "labels_per_client = 0"),
        (lambda: quantity_skew(5, -0.1), r"sigma = -0\.1"),
        (lambda: quantity_skew(5, float("nan")), "'sigma' = nan: must be a finite number"),
        (lambda: natural([[1, 2]]), r"ids of shape \(1, 2\)"),
    ],
)
def test_impossible_options_are_refused_by_the_factory(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (iid(101), "101 clients with at least 1 samples each: need 101 of the 100"),
        (contiguous(101), "use at most 100 clients"),
        (dirichlet(11, 0.5), "need 110 of the 100"),
        (shards(60, 2), "need 120 of the 100"),
        (quantity_skew(20, 1.0, min_size=6), "use at most 16 clients"),
        (label_limited(4, 11), "labels_per_client = 11"),
        (label_limited(4, 2), "must lie between 3 and the 10 labels"),
        (label_limited(30, 5), "has 10 samples for 15 clients"),
    ],
)
def test_impossible_sizes_are_refused(partition, message):
    with pytest.raises(InputError, match=message):
        partition(np.arange(100) % 10, np.random.default_rng(0))


@pytest.mark.parametrize("partition", [dirichlet(2, 0.5), shards(2), label_limited(2, 1)])
def test_sequences_have_no_label_to_skew_by(partition):
    with pytest.raises(InputError, match="must be one class per sample"):
        partition(np.zeros((40, 7), int), np.random.default_rng(0))
    assert len(iid(2)(np.zeros((40, 7), int), np.random.default_rng(0))) == 2


def test_partitioner_by_name():
    labels = _labels(300, 5)
    a = partitioner("dirichlet", 6, alpha=0.5)(labels, np.random.default_rng(1))
    b = dirichlet(6, 0.5)(labels, np.random.default_rng(1))
    assert all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
    assert set(PARTITIONERS) == {
        "iid",
        "contiguous",
        "dirichlet",
        "shards",
        "label_limited",
        "quantity_skew",
    }
    with pytest.raises(InputError, match="did you mean 'dirichlet'"):
        partitioner("dirichlett", 6)
    with pytest.raises(InputError, match="did you mean 'alpha'"):
        partitioner("dirichlet", 6, alpa=0.5)
    with pytest.raises(InputError, match="'alpha' is missing"):
        partitioner("dirichlet", 6)
