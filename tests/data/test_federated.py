import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.data import FederatedData, Pipeline, from_arrays
from fedjax_het.data.partition import dirichlet, iid


def _arrays(n=30, classes=3):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)
    return x, np.arange(n) % classes, x[:6], np.arange(6) % classes


def _valid() -> dict:
    x, y, test_x, test_y = _arrays()
    return {
        "x": x,
        "y": y.astype(np.int32),
        "order": np.arange(30, dtype=np.int32),
        "count": np.array([10, 20], np.int32),
        "test_x": test_x,
        "test_y": test_y.astype(np.int32),
        "num_classes": 3,
    }


def test_partitioner_owner_ids_and_lists_agree():
    x, y, test_x, test_y = _arrays()
    by_id = from_arrays(x, y, test_x, test_y, clients=np.where(np.arange(30) < 12, "zoe", "adam"))
    by_list = from_arrays(x, y, test_x, test_y, clients=[range(12, 30), range(12)])
    by_call = from_arrays(
        x, y, test_x, test_y, clients=lambda labels, rng: [np.arange(12, 30), np.arange(12)]
    )
    for data in (by_id, by_list, by_call):
        assert data.sizes.tolist() == [18, 12]
        assert data.client_samples(1).tolist() == list(range(12))
        assert data.start.tolist() == [0, 18]
        assert data.fingerprint() == by_id.fingerprint()


def test_ids_of_clients_stay_with_them():
    x, y, test_x, test_y = _arrays()
    owner = np.where(np.arange(30) < 12, "zoe", "adam")
    held = {"zoe": range(12), "adam": np.arange(12, 30)}
    for clients, ids in (
        (owner, ["adam", "zoe"]),
        (owner.tolist(), ["adam", "zoe"]),
        (held, ["zoe", "adam"]),
    ):
        data = from_arrays(
            x, y, test_x, test_y, clients=clients, test_clients=["zoe"] * 5 + ["eve"]
        )
        assert data.ids.tolist() == [*ids, "eve"]
        of_zoe = ids.index("zoe")
        assert data.client_samples(of_zoe).tolist() == list(range(12))
        assert data.test_client.tolist() == [of_zoe] * 5 + [2]
    numbers = from_arrays(x, y, test_x, test_y, clients={70: range(12), 7: range(12, 30)})
    assert numbers.ids.tolist() == [70, 7]
    assert from_arrays(x, y, test_x, test_y, clients=np.arange(30) % 3).ids is None
    assert from_arrays(x, y, test_x, test_y, clients=iid(2)).ids is None
    dates = np.array(["2024-05-01", "2024-05-02"], "datetime64[D]")[np.arange(30) % 2]
    data = from_arrays(x, y, test_x, test_y, clients=dates)
    assert data.ids.tolist() == ["2024-05-01", "2024-05-02"]
    plain = from_arrays(x, y, test_x, test_y, clients=np.arange(30) % 2)
    assert plain.fingerprint() == data.fingerprint()  # ids change no result


@pytest.mark.parametrize("dtype", ["object", "string", "category", "int64", "Int64"])
def test_columns_of_pandas_are_owners(dtype):
    pandas = pytest.importorskip("pandas")
    x, y, test_x, test_y = _arrays()
    text = [3, 5, 9] if dtype.lower() == "int64" else ["ann", "bob", "eve"]
    owners = pandas.Series([text[i % 3] for i in range(30)], index=range(100, 130), dtype=dtype)
    data = from_arrays(x, y, test_x, test_y, clients=owners, test_clients=owners[:6])
    assert data.ids.tolist() == text
    assert data.test_client.tolist() == [0, 1, 2] * 2


def test_label_counts_sizes_and_device():
    x, y, test_x, test_y = _arrays()
    data = from_arrays(x, y, test_x, test_y, clients=iid(4), seed=3)
    counts = data.label_counts()
    assert counts.shape == (4, 3)
    for client in range(4):
        expected = np.bincount(y[data.client_samples(client)], minlength=3)
        assert counts[client].tolist() == expected.tolist()
    device = data.device()
    assert device.x.dtype == jnp.uint8
    for index in (device.y, device.order, device.start, device.count):
        assert index.dtype == jnp.int32
    assert data.input_shape == (4, 4, 1)
    assert data.num_clients == 4


def test_label_counts_of_sequences_count_every_position():
    tokens = np.arange(12).reshape(4, 3) % 5
    data = from_arrays(tokens, tokens, tokens, tokens, clients=[[0, 1], [3]])
    assert data.label_counts().tolist() == [[2, 1, 1, 1, 1], [1, 1, 0, 0, 1]]


def test_arrays_are_read_only_but_the_users_stay_writable():
    x, y, test_x, test_y = _arrays()
    data = from_arrays(x, y, test_x, test_y, clients=iid(2))
    with pytest.raises(ValueError, match="read-only"):
        data.x[0] = 1
    x[0] = 7


def test_fingerprint_sees_content_partition_and_preprocessing():
    x, y, test_x, test_y = _arrays()
    base = {"clients": dirichlet(3, 1.0, min_size=2), "seed": 1}
    prints = [
        from_arrays(x, y, test_x, test_y, **base).fingerprint(),
        from_arrays(x, y, test_x, test_y, **{**base, "seed": 2}).fingerprint(),
        from_arrays(x, y, test_x, test_y, **base, normalise=(0.5, 0.5)).fingerprint(),
        from_arrays(x, y, test_x, test_y, **base, augment="crop_flip").fingerprint(),
        from_arrays(x[::-1], y[::-1], test_x, test_y, **base).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == from_arrays(x, y, test_x, test_y, **base).fingerprint()
    assert len(prints[0]) == 64


def test_floats_and_wide_integers_are_stored_narrow():
    x = np.linspace(0.0, 1.0, 20).reshape(10, 2)
    data = from_arrays(x, np.zeros(10, np.int64), x, np.zeros(10, np.int8), clients=iid(2))
    assert data.x.dtype == np.float32
    assert data.y.dtype == np.int32
    tokens = np.zeros((4, 3), np.int64)
    assert from_arrays(tokens, tokens, tokens, tokens, clients=iid(2)).x.dtype == np.int32


def test_normalise_makes_a_hashable_pipeline():
    x, y, test_x, test_y = _arrays()
    data = from_arrays(
        x, y, test_x, test_y, clients=iid(2), normalise=(0.5, [0.25]), augment="crop_flip"
    )
    assert data.pipeline == Pipeline((0.5,), (0.25,), "crop_flip")
    assert hash(data.pipeline) == hash(Pipeline((0.5,), (0.25,), "crop_flip"))


def test_validation_split_is_disjoint_from_training():
    x = np.arange(100, dtype=np.float32)[:, None]
    y = np.arange(100) % 4
    for clients in (iid(5), np.arange(100) // 20):
        data = from_arrays(x, y, x, y, clients=clients, validation_fraction=0.25, seed=4)
        trained = data.x[data.order][:, 0]
        assert len(data.val_x) == 25
        assert np.array_equal(np.sort(np.concatenate([trained, data.val_x[:, 0]])), np.arange(100))
        assert np.array_equal(data.val_y, data.val_x[:, 0].astype(int) % 4)
    # With given clients every one of them gives its share.
    assert np.bincount(data.val_x[:, 0].astype(int) // 20).tolist() == [5] * 5


def test_cap_keeps_a_random_part_of_the_same_partition():
    x, y, test_x, test_y = _arrays()
    whole = from_arrays(x, y, test_x, test_y, clients=iid(3), seed=5)
    capped = from_arrays(x, y, test_x, test_y, clients=iid(3), seed=5, per_client_cap=4)
    assert capped.sizes.tolist() == [4, 4, 4]
    for client in range(3):
        assert set(capped.client_samples(client)) < set(whole.client_samples(client))


def test_test_owners_are_numbered_like_clients():
    x, y, test_x, test_y = _arrays()
    ids = np.where(np.arange(30) % 2, "b", "a")
    data = from_arrays(x, y, test_x, test_y, clients=ids, test_clients=list("abbaab"))
    assert data.test_client.tolist() == [0, 1, 1, 0, 0, 1]
    data = from_arrays(x, y, test_x, test_y, clients=ids, test_clients=list("Abcaab"))
    assert data.test_client.tolist() == [2, 1, 3, 0, 0, 1]  # A and c only test
    assert (data.num_clients, data.num_test_clients) == (2, 4)
    with pytest.raises(InputError, match=r"test_clients is int64.*like those of clients"):
        from_arrays(x, y, test_x, test_y, clients=ids, test_clients=np.arange(6))
    with pytest.raises(InputError, match="leave test_clients out"):
        from_arrays(x, y, test_x, test_y, clients=iid(2), test_clients=list("abbaab"))


_BAD_FIELDS = {
    "empty client": ({"count": np.array([30, 0], np.int32)}, "1 clients without samples"),
    "no client": ({"count": np.zeros(0, np.int32)}, "0 clients"),
    "overlap": ({"order": np.r_[0, np.arange(29)].astype(np.int32)}, r"sample 0 .* \[0, 0\]"),
    "id range": ({"order": np.arange(1, 31, dtype=np.int32)}, r"ids 1\.\.30 .* 0\.\.29"),
    "negative id": ({"order": np.arange(-1, 29, dtype=np.int32)}, r"ids -1\.\.28"),
    "sum": ({"count": np.array([10, 19], np.int32)}, "hold 29 samples but 30 are listed"),
    "order type": ({"order": np.arange(30)}, r"order is int64\[30\]"),
    "label range": ({"num_classes": 2}, r"labels 0\.\.2: must lie in 0\.\.1"),
    "no classes": ({"num_classes": 0}, "num_classes = 0"),
    "label type": ({"y": np.zeros(30)}, r"y is float64\[30\]"),
    "label length": ({"y": np.zeros(29, np.int32)}, "y has 29 rows for 30 inputs"),
    "x type": ({"x": np.zeros((30, 4, 4, 1))}, r"x is float64\[30, 4, 4, 1\]"),
    "x list": ({"x": [[1]]}, "x is list"),
    "x rank": ({"x": np.zeros(30, np.uint8)}, "on the first axis"),
    "test kind": ({"test_x": np.zeros((6, 4, 4, 1), np.float32)}, "prepare all splits alike"),
    "test shape": ({"test_x": np.zeros((6, 5, 4, 1), np.uint8)}, "prepare all splits alike"),
    "test empty": ({"test_x": np.zeros((0, 4, 4, 1), np.uint8)}, "not empty"),
    "val half": ({"val_x": np.zeros((6, 4, 4, 1), np.uint8)}, "val_y is NoneType"),
    "augment": ({"augment": "crop_flop"}, "did you mean 'crop_flip'"),
    "std": ({"normalise": (0.5, 0.0)}, r"std = \(0\.0,\): must be positive"),
    "channels": ({"normalise": ((0.5, 0.5), 1.0)}, "must be 1 or 1 finite numbers"),
    "mean": ({"normalise": (np.nan, 1.0)}, "mean = "),
    "classes": ({"classes": ("a", "b")}, "must name all classes, num_classes = 3"),
    "owner type": ({"test_client": np.zeros(6)}, r"test_client is float64\[6\]"),
    "owner range": ({"test_client": np.full(6, 3, np.int32)}, r"ids 3\.\.3.*continue from 2"),
}


@pytest.mark.parametrize("case", _BAD_FIELDS)
def test_bad_fields_are_refused(case):
    fields, message = _BAD_FIELDS[case]
    FederatedData(**_valid())
    with pytest.raises(InputError, match=message):
        FederatedData(**{**_valid(), **fields})


def test_tokens_take_neither_augmentation_nor_normalisation():
    tokens = np.zeros((4, 3), np.int64)
    with pytest.raises(InputError, match=r"tokens, masks.* are not normalised"):
        from_arrays(tokens, tokens, tokens, tokens, clients=iid(2), normalise=(0.5, 0.5))
    with pytest.raises(InputError, match="needs images"):
        from_arrays(tokens, tokens, tokens, tokens, clients=iid(2), augment="crop_flip")


_BAD_ARGUMENTS = {
    "nan": ({"x": np.r_[np.zeros((29, 2)), [[np.nan, 0]]]}, r"1 samples .* \[29\]"),
    "overflow": ({"x": np.full((30, 2), 1e300)}, "30 samples are not finite"),
    "complex": ({"x": np.zeros((30, 2), complex)}, r"x is complex128\[30, 2\]"),
    "big token": ({"x": np.full((30, 2), 2**40)}, r"token 1099511627776: must be below 2\^31"),
    "negative token": ({"x": np.full((30, 2), -1)}, "token -1"),
    "big label": ({"y": np.full(30, 2**40)}, r"label 1099511627776: must be below 2\^31"),
    "negative label": ({"y": np.full(30, -1)}, r"labels -1\.\.-1"),
    "owners": ({"clients": [0, 1, 2]}, "one owner per training sample, 30 in all"),
    "mask": ({"clients": [np.ones(30, bool)]}, "numpy.flatnonzero"),
    "out of range": ({"clients": [[0], [30]]}, r"clients\[1\] has sample ids 30\.\.30"),
    "empty": ({"clients": [[0], []]}, "1 clients without samples"),
    "twice": ({"clients": [[0, 1], [1, 2]]}, r"sample 1 is held by clients \[0, 1\]"),
    "cap": ({"per_client_cap": 0}, "per_client_cap = 0"),
    "fraction": ({"validation_fraction": 1.0}, r"validation_fraction = 1\.0"),
    "tiny fraction": ({"validation_fraction": 0.001}, "takes no sample from any"),
    "seed": ({"seed": -1}, "seed = -1"),
}


@pytest.mark.parametrize("case", _BAD_ARGUMENTS)
def test_bad_arguments_are_refused(case):
    given, message = _BAD_ARGUMENTS[case]
    x = np.zeros((30, 2), np.float32)
    arguments = {"x": x, "y": np.zeros(30, int), "clients": iid(3), **given}
    with pytest.raises(InputError, match=message):
        from_arrays(test_x=arguments["x"], test_y=arguments["y"], **arguments)


def test_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FederatedData(**_valid()).x = None
