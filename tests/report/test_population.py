"""The facts of every client in a file of their own: the same values, bytes and refusals."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedjax_het.common.arrays import packed_arrays
from fedjax_het.common.errors import InputError
from fedjax_het.report import Population, RunRecord, RunWriter

COUNT = st.integers(0, 300) | st.integers(0, 70_000) | st.integers(0, 2**31 - 1)


@st.composite
def populations(draw):
    n = draw(st.integers(1, 9))
    classes = draw(st.none() | st.integers(1, 4))
    groups, sizes = (draw(arrays(np.int64, n, elements=COUNT)) for _ in range(2))
    if classes is None:
        return Population(groups, sizes)
    return Population(groups, sizes, draw(arrays(np.int64, (n, classes), elements=COUNT)))


@given(populations())
def test_what_is_written_is_read_back(tmp_path_factory, held):
    place = tmp_path_factory.mktemp("population")
    held.write(place)
    found = Population.read(place, len(held), held.num_classes)
    assert found == held
    assert all(column.dtype == np.int32 for column in found.columns.values())
    first = (place / "population.npz").read_bytes()
    found.write(place)
    assert (place / "population.npz").read_bytes() == first
    with np.load(place / "population.npz") as file:  # as another program reads it
        for name, column in held.columns.items():
            np.testing.assert_array_equal(file[name], column)


def test_a_client_of_ten_small_counts_takes_twelve_bytes(tmp_path):
    n = 10_000
    Population(np.zeros(n, int), np.full(n, 255), np.full((n, 10), 255)).write(tmp_path)
    assert n * 12 < (tmp_path / "population.npz").stat().st_size < n * 12 + 1000
    Population(np.zeros(n, int), np.full(n, 256)).write(tmp_path)
    assert n * 3 < (tmp_path / "population.npz").stat().st_size < n * 3 + 1000


def test_packed_arrays_have_no_time_and_no_place_of_their_making():
    """The date of every member is the first that an archive can state."""
    content = packed_arrays({"a": np.arange(3), "b": np.array(["x"])})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["a.npy", "b.npy"]
        for member in archive.infolist():
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            assert member.compress_type == zipfile.ZIP_STORED
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        assert file["a"].tolist() == [0, 1, 2]
        assert file["b"].tolist() == ["x"]
    with pytest.raises(ValueError, match="Object arrays"):
        packed_arrays({"a": np.array([{}], object)})


def test_names_of_devices_are_read_back(tmp_path):
    named = Population(np.array([0, 1]), np.array([3, 4]), device_names=np.array(["d0", "ü"]))
    named.write(tmp_path)
    assert Population.read(tmp_path, 2, None, named=["device_names"]) == named
    assert Population.read(tmp_path, 2, None) != named
    Population(np.array([0, 1]), np.array([3, 4])).write(tmp_path)
    with pytest.raises(InputError, match=r"population.npz: lacks the arrays \['device_names'\]"):
        Population.read(tmp_path, 2, None, named=["device_names"])


def test_columns_may_not_be_changed_and_are_compared_by_value():
    held = Population(np.array([0, 1]), np.array([3, 4]))
    with pytest.raises(ValueError, match="read-only"):
        held.sizes[0] = 9
    assert held == Population([0, 1], [3, 4])  # type: ignore[arg-type]
    assert held != Population(np.array([0, 1]), np.array([3, 5]))
    assert held != Population(np.array([0, 1]), np.array([3, 4]), np.ones((2, 1), int))
    assert held != "population"
    own = np.array([3, 4])
    assert Population(own, own).sizes is not own


def test_names_of_clients_and_classes_are_kept(tmp_path):
    counts = np.ones((2, 3), int)
    text = Population(np.zeros(2, int), np.ones(2, int), counts, ["north", "a" * 40], list("xyz"))
    numbers = Population(np.zeros(2, int), np.ones(2, int), ids=np.array([7, 2**40]))
    for held in (text, numbers):
        held.write(tmp_path)
        found = Population.read(tmp_path, 2, held.num_classes, held.named)
        assert found == held
        assert found.ids.tolist() == held.ids.tolist()
    assert text.named == ["ids", "classes"]
    assert numbers.named == ["ids"]
    assert (text.client_name(0), text.class_name(2)) == ("north", "z")
    assert text.client_name(1) == "a" * 15 + "…"
    assert (numbers.client_name(1), numbers.class_name(2)) == (str(2**40), "2")
    assert text != Population(np.zeros(2, int), np.ones(2, int), counts, list("ab"), list("xyz"))
    with pytest.raises(InputError, match=r"ids of <U1\[3\]: must be text or whole numbers \[2\]"):
        Population(np.zeros(2, int), np.ones(2, int), ids=list("abc"))
    with pytest.raises(InputError, match=r"classes of <U1\[2\]"):
        Population(np.zeros(2, int), np.ones(2, int), counts, classes=list("ab"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device_groups": np.zeros(0, int)}, r"device_groups of shape \[0\]: must have 1 axes"),
        ({"device_groups": np.zeros((2, 1), int)}, r"device_groups of shape \[2, 1\]"),
        ({"sizes": np.ones(3, int)}, r"sizes of shape \[3\]: must .* one entry per client"),
        ({"sizes": np.array([1.0, 2.0])}, "sizes of float64: must be whole numbers from 0 to"),
        (
            {"sizes": np.array([1, -1])},
            "sizes of int64: must be whole numbers from 0 to 2147483647",
        ),
        ({"sizes": np.array([1, 2**31])}, "sizes of int64: must be whole numbers"),
        ({"sizes": [[1], [1, 2]]}, "sizes of type list: must be one array"),
        (
            {"label_counts": np.ones((2, 0), int)},
            r"label_counts of shape \[2, 0\]: must have 2 axes",
        ),
        ({"device_names": np.array(["a"])}, "device_names of .*: must be text or whole numbers"),
        ({"label_counts": np.ones(2, int)}, r"label_counts of shape \[2\]"),
        ({"label_counts": np.ones((3, 2), int)}, r"label_counts of shape \[3, 2\]"),
    ],
)
def test_other_columns_are_refused(change, message):
    columns = {"device_groups": np.zeros(2, int), "sizes": np.ones(2, int), **change}
    with pytest.raises(InputError, match=f"population: {message}"):
        Population(**columns)


@pytest.fixture
def workdir(make_run, tmp_path):
    record = make_run(steps=2)
    with RunWriter(tmp_path) as writer:
        writer.write_config(record.config)
        for row in record.metrics:
            writer.write_step(row, [c for c in record.clients if c["step"] == row["step"]])
        writer.write_summary(record.summary, record.population)
    return tmp_path


def test_the_summary_does_not_grow_with_the_clients(make_run, workdir):
    """It has the same keys and numbers for any number of clients, apart from the totals."""
    told = json.loads((workdir / "summary.json").read_text())
    assert told["num_clients"] == 12
    assert told["data"] == {"name": "digits", "num_classes": 10}
    assert len(str(make_run(steps=2, devices=300).summary)) < len(str(told)) + 50
    assert RunRecord.load(workdir) == make_run(steps=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sizes": np.ones(11, int)},
            r"population.npz: array 'sizes' has the shape \[11\]: must be",
        ),
        ({"label_counts": np.ones((12, 9), int)}, r"has the shape \[12, 9\]: must be \[12, 10\]"),
        ({"device_groups": np.zeros(12)}, "'device_groups' is of float64, and must be integers"),
        (
            {"device_groups": np.full(12, -1)},
            "population.npz: device_groups of int64: must be whole",
        ),
        (
            {"sizes": np.full(12, 2**63, np.uint64)},
            "population.npz: sizes of uint64: must be whole",
        ),
        ({"sizes": np.array([{}] * 12, object)}, "Python objects, which are never unpickled"),
    ],
)
def test_a_file_of_other_columns_is_refused(make_run, workdir, change, message):
    np.savez(workdir / "population.npz", **{**make_run(steps=2).population.columns, **change})
    with pytest.raises(InputError, match=message):
        RunRecord.load(workdir)


def test_a_record_of_the_older_form_is_refused_in_one_line(workdir):
    path = workdir / "summary.json"
    told = json.loads(path.read_text())
    (workdir / "population.npz").unlink()
    with pytest.raises(
        InputError, match=r"population.npz: does not exist; restore the file or run"
    ):
        RunRecord.load(workdir)
    told["device_groups"] = [0] * told.pop("num_clients")
    told["data"] = {"name": "digits", "sizes": [9] * 12, "label_counts": [[3, 6]] * 12}
    path.write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"summary.json: lists .* earlier version.* command again"):
        RunRecord.load(workdir)


def test_parts_of_different_runs_are_refused(make_run):
    record = make_run(steps=2)
    other = make_run(steps=2, devices=11).population
    with pytest.raises(
        InputError, match=r"num_clients = 12, num_classes = 10: population.npz hold"
    ):
        replace(record, population=other)
    bare = replace(record.population, label_counts=None)
    with pytest.raises(InputError, match=r"population.npz holds 12 clients, None classes"):
        replace(record, population=bare)
