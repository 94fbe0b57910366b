"""Folders of NumPy files, which are used where they lie."""

import numpy as np
import pytest

from fedjax_het import data
from fedjax_het.common.errors import InputError
from fedjax_het.data import load_federated, read_npy


def folder(tmp_path, **changes):
    """A folder of arrays, of which some are others, or left out if None."""
    x = np.arange(240, dtype=np.uint8).reshape(10, 4, 6, 1)
    arrays = {"x": x, "y": np.arange(10) % 3, "client": np.array([*"abababcaca"])}
    arrays |= {
        "test_x": x[:4],
        "test_y": np.array([0, 1, 3, 0]),
        "test_client": np.array([*"abcd"]),
    }
    for name, array in {**arrays, **changes}.items():
        if array is not None:
            np.save(tmp_path / f"{name}.npy", array)
    return tmp_path


def test_a_folder_of_arrays_is_not_copied(tmp_path):
    raw = read_npy(folder(tmp_path))
    assert isinstance(raw.x, np.memmap)
    assert raw.num_classes == 4
    loaded = load_federated(raw)
    assert np.shares_memory(loaded.x, raw.x)
    assert loaded.ids.tolist() == [*"abc"]
    assert loaded.sizes.tolist() == [5, 3, 2]
    # The owner of the last test sample does not train.
    assert loaded.test_client.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(loaded.test_x, raw.x[:3])
    (tmp_path / "dealt").mkdir()
    raw = read_npy(folder(tmp_path / "dealt", client=None, test_client=None))
    assert np.shares_memory(load_federated(raw, partition=data.iid(2)).x, raw.x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((10, 3))}, r"x\.npy: float64\[10, 3\]: must be .samples.* float32"),
        ({"x": np.zeros((10, 3), ">f4")}, r"x\.npy: >?f?.*must be .* byte order"),
        ({"x": np.array([{}] * 10, object)}, r"x\.npy: is not a readable array without objects"),
        ({"y": np.zeros((7,), int)}, r"y\.npy: \[7\]: must have 10 rows"),
        ({"y": np.array(["a"] * 10)}, r"y\.npy is .*: must be integers"),
        ({"client": np.zeros((3,), int)}, r"client\.npy: int64\[3\]: must be \[10\]"),
        (
            {"client": np.zeros(10)},
            r"client\.npy: float64\[10\]: must be \[10\] whole numbers or text",
        ),
        ({"test_x": np.zeros((4, 2), np.uint8)}, r"held-out samples are uint8\[N, 2\]"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        load_federated("npy", path=folder(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_or_cut(tmp_path):
    with pytest.raises(InputError, match="is not a folder; name one"):
        read_npy(tmp_path / "none")
    where = folder(tmp_path)
    (where / "test_client.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match=r"test_client\.npy: is not a readable array"):
        read_npy(where)
    whole = (where / "x.npy").read_bytes()
    (where / "x.npy").write_bytes(whole[:-50])
    with pytest.raises(InputError, match=r"x\.npy: is not a readable array"):
        read_npy(where)
    (where / "x.npy").unlink()
    with pytest.raises(InputError, match=r"x\.npy: is missing; save it with numpy\.save"):
        read_npy(where)
    (where / "client.npy").unlink()
    np.save(where / "x.npy", np.zeros((10, 3), np.uint8))
    np.save(where / "test_x.npy", np.zeros((4, 3), np.uint8))
    np.save(where / "test_client.npy", np.array([*"abcd"]))
    with pytest.raises(InputError, match=r"test_client\.npy without client\.npy"):
        read_npy(where)


def test_numbers_that_are_not_finite_are_found_in_any_part(tmp_path, monkeypatch):
    monkeypatch.setattr("fedjax_het.data.checks._PART", 8)
    x = np.ones((10, 3), np.float32)
    x[[6, 9], 1] = np.nan
    with pytest.raises(InputError, match=r"2 samples are not finite, first ids \[6, 9\]"):
        load_federated("npy", path=folder(tmp_path, x=x, test_x=x[:4]))
