"""Fleets from files: units, names, classes, availability, rates, and who gets which device."""

import csv
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedjax_het import algorithms, experiment, fleet
from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import jsonable
from fedjax_het.fleet.columns import COLUMNS, UNITS
from fedjax_het.report.captions import fleet_and_data
from fedjax_het.report.device_plots import timeline, window_s
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation.identity import identify, require_same
from fedjax_het.simulation.options import RunOptions

FILES = Path(__file__).parent / "files"
DEVICES, AVAILABILITY = FILES / "devices.csv", FILES / "availability.csv"


def lines(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def written(path, text):
    path.write_text(text)
    return path


def test_units_of_the_columns_become_those_of_the_fleet():
    made = fleet.read_csv(DEVICES)
    rows = lines(DEVICES)
    assert made.device_names.tolist() == [row["device"] for row in rows]
    for column, unit, field in (
        ("gflops", "e9", "flops_per_s"),
        ("memory_mb", "e6", "memory_bytes"),
        ("nj_per_flop", "e-9", "joules_per_flop"),
    ):
        expected = [float(row[column] + unit) for row in rows]
        np.testing.assert_allclose(getattr(made, field), expected, rtol=1e-15)
    np.testing.assert_array_equal(
        made.downlink_bytes_per_s, [float(row["down_mbps"]) * 1e6 / 8 for row in rows]
    )
    np.testing.assert_array_equal(
        made.uplink_bytes_per_s, [float(row["up_mbps"]) * 1e6 / 8 for row in rows]
    )
    assert made.group_names == ("low", "mid", "high")
    assert [made.group_names[g] for g in made.groups] == [row["class"] for row in rows]
    assert made.always_on


def test_every_unit_is_one_of_its_column(tmp_path):
    names = list(UNITS)
    for field in COLUMNS:
        units = {n: 1 / to[1] for n, to in UNITS.items() if to[0] == field}
        assert field in units
        for name, one in units.items():
            own = {name: one, **({} if field == "flops_per_s" else {"gflops": 1})}
            if field in ("failure_rate", "battery_joules"):
                own |= {name: one / 2, "nj_per_flop": 1}
            path = written(
                tmp_path / "f.csv", ",".join(own) + "\n" + ",".join(map(repr, own.values()))
            )
            (value,) = getattr(fleet.read_csv(path), field)
            assert value == pytest.approx(own[name] / one, rel=1e-12), name
    assert len(names) == len(set(names))


def on_at(rows, device, time_s):
    """Whether a device is on at a time, line by line of the file."""
    own = [row for row in rows if row["device"] == device]
    return any(float(row["on_s"]) <= time_s < float(row["off_s"]) for row in own)


def test_availability_is_the_union_of_the_lines():
    made = fleet.read_csv(DEVICES, AVAILABILITY)
    rows, names = lines(AVAILABILITY), made.device_names
    for time_s in np.arange(0.0, 3500.0, 23.7):
        on = made.next_available(np.arange(8), time_s) == time_s
        assert on.tolist() == [on_at(rows, name, time_s) for name in names]
    last = [max(float(r["off_s"]) for r in rows if r["device"] == name) for name in names]
    np.testing.assert_array_equal(made.availability.off_after(np.arange(8)), last)


def test_intervals_repeat_after_a_period(tmp_path):
    times = written(tmp_path / "a.csv", "device,on_min,off_min\nb,2,3\na,0.5,1\n")
    devices = written(tmp_path / "d.csv", "device,gflops\na,1\nb,2\n")
    made = fleet.read_csv(devices, times, period_s=300.0)
    np.testing.assert_allclose(made.next_available(np.arange(2), 200.0), [330.0, 420.0])


def test_rates_that_change_move_the_bytes(tmp_path):
    devices = written(tmp_path / "d.csv", "device,gflops\na,1\nb,2\n")
    text = "device,time_s,down_mbps\nb,0,8\na,0,16\na,10,0\nb,5,80\na,20,8\n"
    made = fleet.read_csv(devices, rates=written(tmp_path / "r.csv", text))
    # a: 20 MB until 10 s, nothing until 20 s, then 1 MB a second; b: 5 MB, then 10 MB a second.
    timing = made.timing(np.arange(2), 1e9, [25 * 10**6, 25 * 10**6], 1, 0.0, None)
    np.testing.assert_allclose(timing.download_s, [25.0, 7.0])
    assert np.isinf(made.uplink_bytes_per_s).all()
    np.testing.assert_allclose(made.downlink_bytes_per_s, [1e6, 5.5e6])


def test_json_and_csv_are_one_fleet(tmp_path):
    rows = [
        {k: v if k in ("device", "class") else float(v) for k, v in row.items()}
        for row in lines(DEVICES)
    ]
    plain = written(tmp_path / "list.json", json.dumps(rows))
    keyed = {row["device"]: {k: v for k, v in row.items() if k != "device"} for row in rows}
    named = written(tmp_path / "named.json", json.dumps(keyed))
    expected = fleet.read_csv(DEVICES, AVAILABILITY)
    for path in (plain, named):
        made = fleet.build("json", 8, path=path, availability=AVAILABILITY)
        for field in (*COLUMNS, "groups", "device_names"):
            np.testing.assert_array_equal(getattr(made, field), getattr(expected, field))
        assert made.group_names == expected.group_names
        assert made.source not in ("", expected.source)


def test_columns_of_other_names_are_renamed_or_left_out(tmp_path):
    path = written(tmp_path / "f.csv", "\ufeffPhone, GFLOPS ,city\nx,2,Bonn\n\ny,3,Jena\n")
    made = fleet.read_csv(path, columns={"Phone": "device", "city": ""})
    assert made.device_names.tolist() == ["x", "y"]
    assert made.flops_per_s.tolist() == [2e9, 3e9]
    assert made.group_names == ("slow third", "middle", "fast third")


def test_dealt_devices_are_used_equally_and_keep_their_lines():
    for n in (3, 8, 21):
        made = fleet.read_csv(DEVICES, AVAILABILITY, num_clients=n, assignment="dealt", seed=5)
        used = Counter(made.device_names.tolist())
        assert made.num_devices == n
        assert max(used.values()) - min(used.values() if n >= 8 else [0]) <= 1
        speed = {row["device"]: float(row["gflops"]) * 1e9 for row in lines(DEVICES)}
        assert made.flops_per_s.tolist() == [speed[name] for name in made.device_names]
        rows = lines(AVAILABILITY)
        on = made.next_available(np.arange(n), 600.0) == 600.0
        assert on.tolist() == [on_at(rows, name, 600.0) for name in made.device_names]
        again = fleet.build("csv", n, 5, path=str(DEVICES), assignment="dealt")
        assert again.device_names.tolist() == made.device_names.tolist()
    other = fleet.read_csv(DEVICES, num_clients=21, assignment="dealt", seed=6)
    assert other.device_names.tolist() != made.device_names.tolist()


FEDSCALE = {
    "1": {"duration": 30, "active": [10, 50, 90], "inactive": [20, 60, 120], "finish_time": 100},
    "7": {"duration": 5, "active": [0], "inactive": [5], "finish_time": 50, "model": "X"},
    "9": {"duration": 0, "active": [], "inactive": [], "finish_time": 50, "model": "X"},
}


def test_the_files_of_fedscale(tmp_path):
    capacity = {"7": {"computation": 20.0, "communication": 1000.0}}
    capacity["1"] = {"computation": 5.0, "communication": 250.5}
    capacity["4"] = {"computation": 10.0, "communication": 8.0}
    path = written(tmp_path / "capacity.json", json.dumps(capacity))
    made = fleet.read_fedscale(path, median_flops_per_s=3e9)
    assert made.device_names.tolist() == ["7", "1", "4"]
    np.testing.assert_allclose(made.flops_per_s, [1.5e9, 6e9, 3e9])
    # Its seconds for a size in bytes: bytes / 1024 * 8 / communication.
    seconds = 10**6 / 1024 * 8 / np.array([1000.0, 250.5, 8.0])
    timing = made.timing(np.arange(3), 1.0, 10**6, 10**6, 0.0, None)
    np.testing.assert_allclose(timing.download_s, seconds)
    np.testing.assert_allclose(timing.upload_s, seconds)

    traces = written(tmp_path / "behave.json", json.dumps(FEDSCALE))
    with pytest.raises(InputError, match="device '4': is never on in it, or has no record"):
        fleet.read_fedscale(path, traces)
    del capacity["4"]
    path.write_text(json.dumps(capacity))
    made = fleet.read_fedscale(path, traces)
    for time_s in np.arange(0.25, 320, 0.5):
        on = (made.next_available(np.arange(2), time_s) == time_s).tolist()
        assert on == [
            any(
                a <= time_s % record["finish_time"] < b
                for a, b in zip(record["active"], record["inactive"])
            )
            for record in (FEDSCALE["7"], FEDSCALE["1"])
        ]
    dealt = fleet.build(
        "fedscale", 40, path=path, availability=traces, assignment="dealt", trace_assignment="dealt"
    )
    assert sorted(Counter(dealt.availability.period_s.tolist()).items()) == [
        (50.0, 20),
        (100.0, 20),
    ]


MESSAGES = """2020-01-02 00:00:50\tscreen_lock
2020-01-02 00:01:40\tWifi
2020-01-02 00:01:00\tbattery_charged_on
2020-01-02 00:02:30\t57.0%
2020-01-02 00:03:20\tscreen_unlock

2020-01-02 00:04:10\tscreen_lock
2020-01-02 00:05:00\t4G
2020-01-02 00:06:40\tscreen_on
"""


def test_the_state_traces_of_flash(tmp_path):
    stays = "2020-01-01 23:59:00\tbattery_charged_on\n2020-01-01 23:59:10\tscreen_lock\n"
    stays += "2020-01-01 23:59:20\twifi\n2020-01-01 23:59:50\tscreen_off"
    never = "2020-01-02 00:00:50\twifi\n2020-01-02 00:00:59\tunknown"
    phones = {"a": MESSAGES, "b": stays, "c": never}
    traces = {name: {"model": "X", "messages": text} for name, text in phones.items()}
    path = written(tmp_path / "state_traces.json", json.dumps(traces))
    devices = written(tmp_path / "d.csv", "device,gflops\na,1\nb,2\n")
    made = fleet.read_csv(devices, path)
    # On from 100 to 200 s and from 250 to 300 s of a record from 50 to 400 s; and from -40 to -10 s
    # of a record from -60 to -10 s, which repeats every 50 s.
    for time_s in np.arange(0.5, 1500.0, 3.0):
        local = (time_s - 50) % 350 + 50
        on = [100 <= local < 200 or 250 <= local < 300, 20 <= (time_s + 60) % 50 < 50]
        assert (made.next_available(np.arange(2), time_s) == time_s).tolist() == on, time_s
    both = fleet.read_csv(devices, path, num_clients=2, trace_assignment="dealt")
    assert sorted(both.availability.period_s) == [50.0, 350.0]


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    path = tmp_path / "client_device_capacity"
    path.write_bytes(pickle.dumps({1: {"computation": 162.0, "communication": 5648.1}}))
    with pytest.raises(InputError, match="is a pickle, which may run any program") as caught:
        fleet.read_fedscale(path)
    program = str(caught.value).partition('python -c "')[2].rstrip('"')
    exec(program, {})
    made = fleet.read_fedscale(f"{path}.json")
    assert made.device_names.tolist() == ["1"]


CONFIG = {
    "data": {
        "source": "digits",
        "num_clients": 8,
        "partition": {"name": "dirichlet", "alpha": 0.5},
    },
    "model": {"name": "mlp", "hidden": (8,)},
    "algorithm": {"name": "fedavg", "learning_rate": 0.1, "clients_per_round": 2},
    "run": {"rounds": 3},
}


@pytest.fixture
def no_pages(monkeypatch):
    monkeypatch.setattr(experiment, "write_report", lambda record, path: None)


def test_a_configuration_reads_names_classes_and_times_into_the_record(tmp_path, no_pages):
    paths = {"path": str(DEVICES), "availability": str(AVAILABILITY)}
    config = {**CONFIG, "fleet": {"name": "csv", **paths}}
    result = experiment.train(config, tmp_path / "run")
    record = RunRecord.load(tmp_path / "run")
    assert record.population == result.record.population
    assert record.population.device_names.tolist() == [f"d{k}" for k in range(8)]
    assert record.summary["fleet"]["groups"] == {"low": 3, "mid": 3, "high": 2}
    assert len(record.clients) == 3 * 2
    for row in record.clients:
        assert on_at(lines(AVAILABILITY), f"d{row['client']}", row["dispatched_s"])

    # The run is the same where the files have moved to, and another one with other content.
    moved = written(tmp_path / "moved.csv", DEVICES.read_text())
    elsewhere = {**config, "fleet": {**config["fleet"], "path": str(moved)}}
    identities = []
    for each in (config, elsewhere):
        problem = experiment.build_problem(each)
        resolved = experiment.resolve(each, problem)
        assert "num_clients" not in resolved["fleet"]
        algorithm = algorithms.build("fedavg", problem, learning_rate=0.1, clients_per_round=2)
        identities.append(identify(algorithm, problem, RunOptions(rounds=3), resolved))
    require_same("run", {"identity": jsonable(identities[0])}, identities[1])
    moved.write_text(DEVICES.read_text().replace("1.2,20", "1.2,21"))
    with pytest.raises(InputError, match=r"another configuration \(fleet"):
        experiment.train(elsewhere, tmp_path / "run")


def test_captions_and_plots_show_the_names_as_they_are(tmp_path):
    text = DEVICES.read_text().replace("low", "$x$").replace("d1,", "$d_1$,")
    text = text.replace("high", "the fastest of all devices")
    devices = written(tmp_path / "d.csv", text)
    config = {**CONFIG, "algorithm": {"name": "fedavg", "learning_rate": 0.1}, "run": {"rounds": 1}}
    record = experiment.train({**config, "fleet": {"name": "csv", "path": str(devices)}}).record
    ((_, told), *_) = fleet_and_data(record)
    assert told.startswith("8: 2 in the fastest of all devi…, ")
    assert "; 3 in $x$, " in told
    (axes,) = timeline(record, window_s([record])).axes
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert sorted(shown) == [r"\$d_1\$", "d0", "d2", "d3", "d4", "d5", "d6", "d7"]
    assert any(label.get_text().startswith(r"\$x\$") for label in axes.texts)
