import gzip
import struct

import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.data import SOURCES, load
from fedjax_het.data.federated import from_arrays
from fedjax_het.data.partition import iid

_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def _idx_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    sizes = (12, 12, 5, 5)
    arrays = [
        rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        if "images" in stem
        else (np.arange(n) % 10).astype(np.uint8)
        for stem, n in zip(_STEMS, sizes, strict=True)
    ]
    return {stem: _idx(a) for stem, a in zip(_STEMS, arrays, strict=True)}


def _write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_digits_is_the_embedded_set():
    raw = load("digits")
    assert raw.x.shape == (1437, 8, 8, 1)
    assert raw.test_x.shape == (360, 8, 8, 1)
    assert raw.x.dtype == np.uint8
    assert raw.x.max() == 255
    share = np.bincount(raw.test_y) / np.bincount(np.concatenate([raw.y, raw.test_y]))
    assert np.all(np.abs(share - 0.2) < 0.01), "stratified"
    mean, std = raw.normalise
    assert abs(raw.x.mean() / 255 - mean) < 1e-3
    assert abs(raw.x.std() / 255 - std) < 1e-3
    again = load("digits")
    np.testing.assert_array_equal(raw.x, again.x)
    from_arrays(raw.x, raw.y, raw.test_x, raw.test_y, clients=iid(3))


@pytest.mark.parametrize("layout", ["set folder", "data folder", "plain", "dotted"])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_layouts(tmp_path, name, layout):
    files = _idx_files()
    folder = tmp_path / name if layout == "set folder" else tmp_path
    if layout in ("set folder", "data folder"):
        written = {f"{stem}.gz": gzip.compress(data) for stem, data in files.items()}
    elif layout == "dotted":
        written = {stem.replace("-idx", ".idx"): data for stem, data in files.items()}
    else:
        written = files
    _write(folder, written)
    raw = load(name, tmp_path, verify=False)
    assert raw.x.shape == (12, 28, 28, 1)
    assert raw.test_y.tolist() == [0, 1, 2, 3, 4]
    assert raw.x[..., 0].tobytes() == files[_STEMS[0]][16:]
    with pytest.raises(InputError, match=r"content has SHA-256 .*verify=False accepts"):
        load(name, tmp_path)


_BROKEN_IDX = {
    "magic": (lambda d: b"\x00\x00\x09" + d[3:], "magic number 00000903"),
    "header": (lambda d: d[:9], "9 bytes, shorter than its header of 16"),
    "short": (lambda d: d[:-1], r"9423 bytes, expected 9424 for shape \(12, 28, 28\)"),
    "long": (lambda d: d + b"\x00", "9425 bytes, expected 9424"),
    "gzip": (lambda d: gzip.compress(d)[:-20], "truncated or corrupt gzip"),
    "gzip content": (lambda d: gzip.compress(d)[:30] + bytes(3000), "truncated or corrupt gzip"),
    "rank": (lambda d: _idx(np.zeros(12, np.uint8)), "rank 1, expected 3"),
    "lengths": (lambda d: _idx(np.zeros((3, 28, 28), np.uint8)), "train: 3 images, 12 labels"),
}


@pytest.mark.parametrize("case", _BROKEN_IDX)
def test_broken_idx_files_are_named(tmp_path, case):
    breaking, message = _BROKEN_IDX[case]
    files = _idx_files()
    _write(tmp_path, {**files, _STEMS[0]: breaking(files[_STEMS[0]])})
    with pytest.raises(InputError, match=message) as error:
        load("mnist", tmp_path, verify=False)
    assert str(tmp_path) in str(error.value)
    assert "IDX files" in str(error.value)


def _cifar(folder, records=4):
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    rows = {n: rng.integers(0, 10, (records, 3073), dtype=np.uint8) for n in names}
    _write(folder, {n: r.tobytes() for n, r in rows.items()})
    return rows


@pytest.mark.parametrize("nested", [True, False])
def test_cifar10_planes_become_channels(tmp_path, nested):
    parent = tmp_path / "cifar10" if nested else tmp_path
    parent.mkdir(exist_ok=True)
    rows = _cifar(parent / "cifar-10-batches-bin")
    raw = load("cifar10", tmp_path, verify=False)
    assert raw.x.shape == (20, 32, 32, 3)
    assert raw.test_x.shape == (4, 32, 32, 3)
    first = rows["data_batch_1.bin"][0]
    assert raw.y[0] == first[0]
    for channel in range(3):
        plane = first[1 + 1024 * channel : 1 + 1024 * (channel + 1)].reshape(32, 32)
        np.testing.assert_array_equal(raw.x[0, :, :, channel], plane)
    with pytest.raises(InputError, match="SHA-256"):
        load("cifar10", tmp_path)


def test_truncated_cifar10_is_named(tmp_path):
    _cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(3000))
    with pytest.raises(InputError, match=r"data_batch_3\.bin: 3000 bytes, not a whole number"):
        load("cifar10", tmp_path, verify=False)


def _femnist_arrays(n=20):
    return {
        "x": np.full((n, 28, 28), 255, np.uint8),
        "y": np.arange(n, dtype=np.uint8),
        "writer": (np.arange(n) % 3).astype(np.int16),
        "is_test": np.arange(n) >= 14,
        "writers": np.array(["w2", "w0", "w1"]),
    }


def test_femnist_inverts_ink_and_names_writers(tmp_path):
    np.savez(tmp_path / "femnist_leaf_207w.npz", **_femnist_arrays())
    raw = load("femnist", tmp_path, verify=False)
    assert raw.x.shape == (14, 28, 28, 1)
    assert raw.x.max() == 0
    assert raw.clients[:3].tolist() == ["w2", "w0", "w1"]
    assert raw.test_clients[0] == "w1"
    assert raw.num_classes == len(raw.classes) == 62
    with pytest.raises(InputError, match="SHA-256"):
        load("femnist", tmp_path)


_BROKEN_NPZ = {
    "key": ({"writer": None}, r"lacks the arrays \['writer'\]"),
    "length": ({"y": np.zeros(3, np.uint8)}, "unequal or no length"),
    "writer": ({"writer": np.full(20, 3, np.int16)}, "beyond the 3 writers"),
    "pickle": ({"writers": np.array([{}], object)}, r"not a readable \.npz"),
}


@pytest.mark.parametrize("case", _BROKEN_NPZ)
def test_broken_npz_is_named(tmp_path, case):
    change, message = _BROKEN_NPZ[case]
    arrays = {k: v for k, v in {**_femnist_arrays(), **change}.items() if v is not None}
    np.savez(tmp_path / "femnist_leaf_207w.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load("femnist", tmp_path, verify=False)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not really a zip file", b"text"])
def test_other_content_is_not_an_npz(tmp_path, data):
    (tmp_path / "femnist_leaf_207w.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"not a readable \.npz"):
        load("femnist", tmp_path)


def test_truncated_npz_is_named(tmp_path):
    path = tmp_path / "femnist_leaf_207w.npz"
    np.savez_compressed(path, **_femnist_arrays())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"not a readable \.npz"):
        load("femnist", tmp_path)


def test_quickdraw_holds_out_every_fifth_drawing(tmp_path):
    y = np.repeat(np.arange(4), 10).astype(np.int16)
    x = np.zeros((40, 28, 28), np.uint8)
    np.savez(tmp_path / "quickdraw345.npz", x=x, y=y, classes=np.array(list("abcd")))
    raw = load("quickdraw", tmp_path, verify=False)
    assert np.bincount(raw.test_y).tolist() == [2] * 4
    assert np.bincount(raw.y).tolist() == [8] * 4
    assert raw.classes == tuple("abcd")


def test_missing_files_and_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDJAX_HET_DATA", raising=False)
    with pytest.raises(
        InputError, match="no data directory; give data_dir, or set FEDJAX_HET_DATA"
    ):
        load("mnist")
    with pytest.raises(InputError, match=r"no file train-images-idx3-ubyte\.gz or"):
        load("mnist", tmp_path)
    with pytest.raises(InputError, match="must be an existing directory"):
        load("mnist", tmp_path / "absent")
    monkeypatch.setenv("FEDJAX_HET_DATA", str(tmp_path))
    _write(tmp_path / "mnist", _idx_files())
    assert len(load("mnist", verify=False).x) == 12


def test_unknown_names_and_options():
    with pytest.raises(InputError, match="did you mean 'femnist'"):
        load("feminist")
    with pytest.raises(InputError, match="did you mean 'window'"):
        load("shakespeare", windows=10)
    assert {"digits", "mnist", "cifar10", "tfds"} < set(SOURCES)


def test_real_mnist(real):
    raw = real("mnist")
    assert raw.x.shape == (60_000, 28, 28, 1)
    assert raw.test_x.shape == (10_000, 28, 28, 1)
    assert abs(raw.x.mean() / 255 - raw.normalise[0]) < 1e-4


def test_real_femnist(real):
    raw = real("femnist")
    assert (len(raw.x), len(raw.test_x)) == (28_237, 3_245)
    assert len(np.unique(raw.clients)) == len(np.unique(raw.test_clients)) == 207
    assert abs(raw.x.mean() / 255 - raw.normalise[0]) < 1e-3
