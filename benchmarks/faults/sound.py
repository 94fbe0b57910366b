"""Small sound files of every kind that the package reads, and the functions that read them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.cells import run_cells
from benchmarks.faults import runs
from fedjax_het import experiment, models
from fedjax_het.data import load_federated
from fedjax_het.data.partition import iid
from fedjax_het.fleet import presets, traces
from fedjax_het.fleet.block_times import FORMAT, MeasuredProfile
from fedjax_het.report import page
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation.saved import load_model

_SETTING = "blocks of rounds"


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def _images(root: Path, rng: np.random.Generator) -> None:
    for name in ("mnist", "fashion_mnist"):
        (root / name).mkdir()
        for stem, count in (("train", 12), ("t10k", 6)):
            images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
            labels = (np.arange(count) % 10).astype(np.uint8)
            (root / name / f"{stem}-images-idx3-ubyte").write_bytes(_idx(images))
            (root / name / f"{stem}-labels-idx1-ubyte").write_bytes(_idx(labels))
    (root / "cifar10").mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = rng.integers(0, 10, (3, 3073)).astype(np.uint8)
        (root / "cifar10" / f"{name}.bin").write_bytes(records.tobytes())
    x = rng.integers(0, 256, (20, 28, 28)).astype(np.uint8)
    y, writer = np.arange(20) % 4, np.arange(20) % 3
    (root / "quickdraw").mkdir()
    np.savez(root / "quickdraw" / "quickdraw345.npz", x=x, y=y, classes=np.array(list("abcd")))
    (root / "femnist").mkdir()
    np.savez(
        root / "femnist" / "femnist_leaf_207w.npz",
        x=x,
        y=y,
        writer=writer,
        is_test=np.arange(20) >= 14,
        writers=np.array(["f1", "f2", "f3"]),
    )
    (root / "speech_commands").mkdir()
    np.savez(
        root / "speech_commands" / "speech_commands_v2_test_8khz.npz",
        audio=rng.integers(-99, 99, (20, 8000)).astype(np.int16),
        y=y,
        speaker=np.array(["a", "b"] * 10),
        classes=np.array(list("abcd")),
    )


def _tables(root: Path, rng: np.random.Generator) -> None:
    for name in ("yeast", "flights", "shakespeare", "tinyshakespeare"):
        (root / name).mkdir()
    header = ",".join(f"c{i}" for i in range(117))
    rows = [[*rng.random(103).round(3), *rng.integers(0, 2, 14)] for _ in range(12)]
    text = "\n".join([header, *(",".join(map(str, row)) for row in rows)])
    (root / "yeast" / "yeast.csv").write_text(f"{text}\n")
    columns = "year,month,day,hour,dep_delay,distance,arr_delay,origin,carrier,dest"
    flights = [
        f"2013,{i % 12 + 1},{i + 1},{i % 24},{i - 5},{100 + i},{3 * i - 9},EWR,UA,{'AB'[i % 2]}"
        for i in range(20)
    ]
    (root / "flights" / "flights.csv").write_text("\n".join([columns, *flights]) + "\n")
    roles = [
        {"play": p, "role": f"r{i}", "speeches": ["To be, or not to be", "that is the question"]}
        for i, p in enumerate("pqp")
    ]
    lines = "".join(json.dumps(role) + "\n" for role in roles)
    (root / "shakespeare" / "shakespeare_roles.jsonl").write_text(lines)
    (root / "tinyshakespeare" / "tinyshakespeare.txt").write_text("To be or not to be\n" * 20)


def _traces(root: Path) -> None:
    root.mkdir()
    content = {
        "ai_benchmark_devices": [{"model": f"m{i}", "ai_score": 10.0 + i} for i in range(3)],
        "training_latency_ms": [{"model": f"m{i}", "resnet_ms": 90.0 + i} for i in range(3)],
        "network_speed_distribution": [
            {"down_u": 9.0, "down_sigma": 1.0, "up_u": 5.0, "up_sigma": 1.0} for _ in range(3)
        ],
        "mobiperf_tcp_samples": [{"tcp_kbps": [100.0, 200.0 + i]} for i in range(3)],
        "availability": [
            {"start": 0, "end": 100, "ready": [[10, 20 + i], [50, 90]]} for i in range(3)
        ],
    }
    (root / traces.DEVICE_FILE).write_text(json.dumps(content))
    np.savez(
        root / traces.BANDWIDTH_FILE,
        time_s=np.tile(np.arange(5, dtype=np.float32), 3),
        mbps=np.linspace(1, 9, 15).astype(np.float32),
        length=np.full(3, 5, np.int32),
        set=np.array([0, 1, 1], np.int8),
        sets=np.array(["lte", "wifi"]),
    )


def _profile(path: Path) -> None:
    content: dict[str, Any] = {"format": FORMAT}
    for field in dataclasses.fields(MeasuredProfile):
        content[field.name] = [0.5, 0.25]
    content |= {"model": "mlp", "backend": "cpu", "batch": 4, "repeats": 3}
    content |= {"names": ["a", "b"], "num_blocks": 2}
    path.write_text(json.dumps(content, indent=1))


def make(root: Path) -> None:
    """Writes all files below a new directory; runs a simulation and a comparison, so JAX starts."""
    page.inline_svg = lambda *figure: "<svg></svg>"
    rng = np.random.default_rng(0)
    root.mkdir()
    (root / "data").mkdir()
    _images(root / "data", rng)
    _tables(root / "data", rng)
    _traces(root / "traces")
    (root / "other").mkdir()
    _profile(root / "other" / "profile.json")
    run_cells({"cell": lambda: {"accuracy": 0.5}}, root / "other" / "sweep")
    config = settings()
    experiment.train(config, root / "run")
    config["compare"] = {
        "methods": {"A": {"name": "fedavg"}, "B": {"name": "fedprox", "deadline_s": 1.0}}
    }
    config["algorithm"] = {"name": "fedavg", "learning_rate": 0.1, "batch_size": 4}
    experiment.compare([config], root / "comparison")


def settings() -> dict[str, Any]:
    """The configuration of the run in `run`."""
    config = runs.config(_SETTING, 0)
    config["run"] |= {"rounds": 4, "checkpoint_every": 2, "client_eval": "last"}
    return config


def _source(name: str, natural: bool = False, **options: Any) -> Callable[[Path], Any]:
    def read(root: Path) -> Any:
        dealt: dict[str, Any] = {} if natural else {"partition": iid(2)}
        return load_federated(name, root, verify=False, **dealt, **options)

    return read


def _trace_fleet(links: str) -> Callable[[Path], Any]:
    return lambda root: presets.build("traces", 4, data_dir=str(root), links=links)


def _started(root: Path) -> Any:
    start = root / "model.safetensors"
    return models.build("mlp", (8, 8, 1), 10, hidden=[8], start=start).init(jax.random.key(0))


def _predicted(root: Path) -> Any:
    return load_model(root).predict(np.zeros((2, 8, 8, 1), np.uint8))


# Name of a reader -> directory of its files and function of a damaged copy of this directory.
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "data: mnist": ("data/mnist", _source("mnist")),
    "data: fashion_mnist": ("data/fashion_mnist", _source("fashion_mnist")),
    "data: cifar10": ("data/cifar10", _source("cifar10")),
    "data: quickdraw": ("data/quickdraw", _source("quickdraw")),
    "data: femnist": ("data/femnist", _source("femnist", True)),
    "data: speech_commands": ("data/speech_commands", _source("speech_commands", True)),
    "data: yeast": ("data/yeast", _source("yeast")),
    "data: flights": ("data/flights", _source("flights", True)),
    "data: shakespeare": ("data/shakespeare", _source("shakespeare", True, window=4)),
    "data: tinyshakespeare": ("data/tinyshakespeare", _source("tinyshakespeare", window=8)),
    "traces: phones": ("traces", lambda root: traces.phones(root / traces.DEVICE_FILE)),
    "traces: latencies": ("traces", lambda root: traces.latencies(root / traces.DEVICE_FILE)),
    "traces: wifi": ("traces", lambda root: traces.wifi_links(root / traces.DEVICE_FILE)),
    "traces: mobiperf": ("traces", lambda root: traces.mobiperf_links(root / traces.DEVICE_FILE)),
    "traces: availability": ("traces", lambda root: traces.availability(root / traces.DEVICE_FILE)),
    "traces: bandwidth": ("traces", lambda root: traces.bandwidth(root / traces.BANDWIDTH_FILE)),
    "fleet of traces": ("traces", _trace_fleet("bandwidth")),
    "profile": ("other", lambda root: MeasuredProfile.load(root / "profile.json")),
    "sweep": ("other/sweep", lambda root: run_cells({"cell": lambda: {"accuracy": 0.5}}, root)),
    "record": ("run", RunRecord.load),
    "page of a run": ("run", experiment.report),
    "page of a comparison": ("comparison", experiment.report),
    "resumption": ("run", lambda root: experiment.train(settings(), root)),
    "saved model": ("run", _predicted),
    "start of a model": ("run", _started),
}
