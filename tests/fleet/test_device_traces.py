"""Trace files: read exactly, refused when damaged."""

import json
from typing import Any

import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.fleet import traces
from fedjax_het.fleet.presets import build

CONTENT: dict[str, Any] = {
    "ai_benchmark_devices": [{"model": "A", "ai_score": 100.0}, {"model": "B", "ai_score": 400}],
    "training_latency_ms": [
        {"model": "A", "resnet_ms": 100.0},
        {"model": "lost", "resnet_ms": 0.0},
        {"model": "B", "resnet_ms": 50},
        {"model": "C", "resnet_ms": 400},
    ],
    "network_speed_distribution": [
        {"down_u": 1000.0, "down_sigma": 500.0, "up_u": 100.0, "up_sigma": 50.0}
    ],
    "mobiperf_tcp_samples": [{"network_type": "WIFI", "tcp_kbps": [800.0, 1600.0]}],
    "availability": [
        {"start": 100.0, "end": 200.0, "ready": [[110.0, 110.0], [120.0, 130.0]]},
        {"start": 150.0, "end": 250.0, "ready": [[160.0, 160.0]]},
        {"start": 150.0, "end": 250.0, "ready": [[150.0, 175.0]]},
    ],
}
RATES: dict[str, Any] = {
    "time_s": np.array([0.0, 1.0, 0.0, 2.0, 3.0], np.float32),
    "mbps": np.array([8.0, 0.0, 1.0, 2.0, 3.0], np.float32),
    "length": np.array([2, 3], np.int32),
    "set": np.array([0, 1], np.int8),
    "sets": np.array(["slow", "fast"]),
}


def changed(**sections):
    return {**CONTENT, **sections}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / traces.DEVICE_FILE).write_text(json.dumps(CONTENT))
    np.savez(tmp_path / traces.BANDWIDTH_FILE, **RATES)
    return tmp_path


def test_sections(directory):
    path = directory / traces.DEVICE_FILE
    assert traces.phones(path).models == ("A", "B")
    latencies = traces.latencies(path)
    assert latencies.models == ("A", "B", "C")
    np.testing.assert_allclose(latencies.latency_s, [0.1, 0.05, 0.4])
    np.testing.assert_allclose(
        np.concatenate(traces.wifi_links(path)), 1024 * np.array([1000, 500, 100, 50])
    )
    mean, std = 1200 * 125.0, 400 * 125.0
    np.testing.assert_allclose(np.concatenate(traces.mobiperf_links(path)), [mean, std, mean, std])
    on = traces.availability(path)
    np.testing.assert_array_equal(on.on_s[0], [[20.0, 30.0]])
    np.testing.assert_array_equal(on.on_s[1], [[0.0, 25.0]])
    np.testing.assert_array_equal(on.start_s, [100.0, 150.0])


def test_bandwidth(directory):
    pool = traces.bandwidth(directory / traces.BANDWIDTH_FILE)
    np.testing.assert_array_equal(pool.bytes_per_s, 125_000 * RATES["mbps"])
    np.testing.assert_array_equal(pool.offsets, [0, 2, 5])
    fast = traces.bandwidth(directory / traces.BANDWIDTH_FILE, ("fast",))
    np.testing.assert_array_equal(fast.time_s, [0.0, 2.0, 3.0])
    assert fast.num_traces == 1
    with pytest.raises(InputError, match="did you mean 'fast'"):
        traces.bandwidth(directory / traces.BANDWIDTH_FILE, ("fats",))


@pytest.mark.parametrize("links", ["wifi", "mobiperf", "bandwidth", "free"])
@pytest.mark.parametrize("speed", ["latency", "score"])
def test_fleet_from_traces(directory, links, speed, monkeypatch):
    monkeypatch.setenv(traces.DATA_DIR_VARIABLE, str(directory))
    fleet = build("traces", 30, seed=1, links=links, speed=speed)
    relative = {"latency": [0.25, 1.0, 2.0], "score": [0.4, 1.6]}[speed]
    np.testing.assert_allclose(np.unique(fleet.flops_per_s), 1e10 * np.array(relative))
    timing = fleet.timing(np.arange(30), 1e9, 10**5, 10**5, 7.0, np.random.default_rng(0))
    assert (timing.total_s > 0).all()
    # Records are aligned on their common clock: on at 120..130 of every 100 s, and 150..175.
    then = np.unique(fleet.next_available(np.arange(30), 40.0))
    np.testing.assert_allclose(then, [50.0, 120.0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        (json.dumps(CONTENT)[:200], "not valid JSON"),
        ("[]", "lacks the section"),
        (json.dumps(changed(availability=[])), "lacks the section 'availability'"),
        (json.dumps(changed(ai_benchmark_devices=[{"model": "A"}])), "ai_score"),
        (json.dumps(changed(ai_benchmark_devices=[{"ai_score": 1.0}])), "model"),
        (json.dumps(changed(ai_benchmark_devices=[{"model": "A", "ai_score": 0}])), "positive"),
        (json.dumps(changed(training_latency_ms=[{"model": "A", "resnet_ms": "x"}])), "numeric"),
        (json.dumps(changed(training_latency_ms=[{"model": "A", "resnet_ms": -1}])), ">= 0"),
        (json.dumps(changed(training_latency_ms=[{"model": "A", "resnet_ms": 0}])), "no latency"),
        (json.dumps(changed(mobiperf_tcp_samples=[{"tcp_kbps": []}])), "tcp_kbps"),
        (json.dumps(changed(mobiperf_tcp_samples=[{}])), "tcp_kbps"),
        (json.dumps(changed(network_speed_distribution=[{"down_u": float("nan")}])), "finite"),
        (
            json.dumps(changed(availability=[{"start": 0, "end": 9, "ready": [[1, 2], [1, 3]]}])),
            r"availability\[0\]",
        ),
        (
            json.dumps(changed(availability=[{"start": 0, "end": 9, "ready": [[1, 2, 3]]}])),
            r"availability\[0\].ready.*pairs",
        ),
        (
            json.dumps(changed(availability=[{"start": 0, "end": 9, "ready": [[1, 1]]}])),
            "ever on",
        ),
    ],
)
def test_damaged_device_files_are_refused(tmp_path, content, message):
    path = tmp_path / traces.DEVICE_FILE
    path.write_text(content)

    def read_all():
        for section in ("phones", "latencies", "mobiperf_links", "wifi_links", "availability"):
            getattr(traces, section)(path)

    with pytest.raises(InputError, match=message) as caught:
        read_all()
    assert traces.DEVICE_FILE in str(caught.value)
    assert "fetch the file again" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": np.array([2, 2], np.int32)}, "do not fit"),
        ({"mbps": RATES["mbps"][:-1]}, "unequal or no length.*'mbps': 4"),
        ({"set": np.array([0, 2], np.int8)}, "do not fit"),
        ({"mbps": -RATES["mbps"]}, ">= 0"),
        ({"time_s": RATES["time_s"][::-1]}, "start at 0"),
        ({"mbps": np.array([0, 0, 1, 1, 1.0])}, "no bytes"),
        ({"sets": np.array(["a", {}], object)}, "'sets' holds Python objects, which are never"),
        ({"sets": np.array(["a", "a"])}, "must differ"),
        ({"time_s": np.array(list("01023"))}, "'time_s' is of <U1, and must be numbers"),
        ({"time_s": RATES["time_s"].astype("M8[s]")}, "'time_s' is of datetime64"),
        ({"mbps": RATES["mbps"] * 1j}, "'mbps' is of complex"),
        ({"length": RATES["length"] * 1.0}, "'length' is of float64, and must be integers"),
        (
            {"set": np.array([[0], [1]], np.int8)},
            r"'set' has the shape \[2, 1\]: must be \[traces\]",
        ),
        # The sum of these lengths is 5 in 64 bits, and one of these sets is 0 in 32 bits.
        ({"length": np.array([2**62] * 4 + [5]), "set": np.zeros(5, int)}, "do not fit"),
        ({"set": np.array([2**32, 1])}, "do not fit"),
        ({"set": np.array([0, 2**63], np.uint64)}, "do not fit"),
    ],
)
def test_damaged_bandwidth_files_are_refused(tmp_path, change, message):
    path = tmp_path / traces.BANDWIDTH_FILE
    np.savez(path, **{**RATES, **change})
    with pytest.raises(InputError, match=message):
        traces.bandwidth(path)


def test_truncated_and_foreign_npz_are_refused(directory):
    path = directory / traces.BANDWIDTH_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"not a readable .npz file \(File is not a zip file"):
        traces.bandwidth(path)
    with path.open("wb") as single:
        np.save(single, RATES["mbps"])
    with pytest.raises(InputError, match=r"holds a single array \(.npy\), and must be an .npz"):
        traces.bandwidth(path)
    flipped = bytearray(whole)
    at = whole.index(RATES["mbps"].tobytes())
    flipped[at] ^= 0xFF
    path.write_bytes(bytes(flipped))
    with pytest.raises(InputError, match="CRC"):
        traces.bandwidth(path)
    np.savez(path, other=np.ones(1))
    with pytest.raises(InputError, match="lacks the arrays"):
        traces.bandwidth(path)


def test_missing_directory_and_file(tmp_path, monkeypatch):
    monkeypatch.delenv(traces.DATA_DIR_VARIABLE, raising=False)
    with pytest.raises(InputError, match="pass data_dir or set FEDJAX_HET_DATA"):
        build("traces", 3)
    with pytest.raises(InputError, match=r"no such file.*fl_device_traces\.json"):
        build("traces", 3, data_dir=tmp_path)


def test_published_files(data_dir):
    path = traces.find(traces.DEVICE_FILE, data_dir)
    assert len(traces.phones(path).models) == 333
    seconds = traces.latencies(path).latency_s
    assert seconds.size == 997 - 19
    assert np.log(seconds).std() == pytest.approx(0.78, abs=0.005)
    assert np.log(traces.phones(path).score).std() == pytest.approx(1.36, abs=0.01)
    wifi = traces.wifi_links(path)
    assert np.log(wifi.down_mean_bytes_per_s).std() == pytest.approx(0.47, abs=0.005)
    assert np.log(wifi.up_mean_bytes_per_s).std() == pytest.approx(0.68, abs=0.005)
    assert len(traces.mobiperf_links(path).up_mean_bytes_per_s) == 400
    assert len(traces.availability(path).on_s) == 704
    pool = traces.bandwidth(traces.find(traces.BANDWIDTH_FILE, data_dir))
    assert (pool.num_traces, pool.time_s.size) == (1223, 529_083)
    fleet = build("traces", 1000, data_dir=data_dir, links="bandwidth")
    timing = fleet.timing(np.arange(1000), 1e9, 10**6, 10**6, 1e5, None)
    assert (timing.total_s > 0).all()
    assert fleet.describe()["availability"]["on_fraction_median"] == pytest.approx(0.055, abs=0.01)
