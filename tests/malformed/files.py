"""Data files and work directories."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from malformed.case import Call, Case, changed, problem

from fedjax_het import experiment
from fedjax_het.data import load, load_federated
from fedjax_het.report.records import RunRecord
from fedjax_het.report.writer import RunWriter
from fedjax_het.simulation.checkpoints import Checkpoints

# ---- data files ----------------------------------------------------------------------------------

IDX = {
    "train-images-idx3-ubyte": (3, 28, 28),
    "train-labels-idx1-ubyte": (3,),
    "t10k-images-idx3-ubyte": (2, 28, 28),
    "t10k-labels-idx1-ubyte": (2,),
}


def idx(*shape: int) -> bytes:
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    return header + bytes(int(np.prod(shape)))


def mnist_files(verify: bool = False, **spoilt: bytes) -> Call:
    """MNIST of five black images, with other content for some files (`t10k_labels=...`)."""

    def call(here: Path) -> None:
        for name, shape in IDX.items():
            key = "_".join(name.split("-")[:2])
            (here / name).write_bytes(spoilt.get(key, idx(*shape)))
        load("mnist", here, verify=verify)

    return call


def cifar_file(here: Path) -> None:
    (here / "data_batch_1.bin").write_bytes(bytes(3074))
    load("cifar10", here)


def npz_file(**columns: Any) -> Call:
    def call(here: Path) -> None:
        np.savez(here / "femnist_leaf_207w.npz", **columns)
        load("femnist", here)

    return call


def text_file(name: str, content: str, source: str, **options: Any) -> Call:
    def call(here: Path) -> None:
        (here / name).write_text(content)
        load(source, here, verify=False, **options)

    return call


def natural_clients(here: Path, num_clients: int, **more: Any) -> None:
    role = {"play": "p", "role": "r", "speeches": ["to be or not to be"]}
    (here / "shakespeare_roles.jsonl").write_text(json.dumps(role) + "\n")
    options = {"window": 2, "verify": False, **more}
    load_federated("shakespeare", here, num_clients=num_clients, **options)


DATA_FILES: list[Case] = [
    (lambda here: load("mnist"), "mnist | no data directory | IDX files"),
    (lambda here: load("mnist", here / "gone"), "gone | existing directory | IDX files"),
    (lambda here: load("mnist", 5), "'data_dir' = 5 | must be text | data_dir"),
    (lambda here: load("mnist", here), "train-images-idx3-ubyte.gz | no file | IDX files"),
    (mnist_files(train_images=b"\x89PNG" + bytes(20)), "89504e47 | expected 000008 | fetch"),
    (mnist_files(train_images=idx(3, 28, 28)[:6]), "6 bytes | shorter than its header | fetch"),
    (mnist_files(train_images=idx(3, 28, 28)[:-101]), "2267 bytes | expected 2368 | fetch"),
    (
        mnist_files(train_images=gzip.compress(idx(3, 28, 28))[:30]),
        "train-images | truncated or corrupt gzip | fetch",
    ),
    (mnist_files(train_images=idx(3, 28)), "rank 2 | expected 3 | fetch"),
    (mnist_files(t10k_labels=idx(3)), "2 images, 3 labels | t10k | fetch"),
    (mnist_files(verify=True), "content has SHA-256 | the published set has | fetch"),
    (cifar_file, "3074 bytes | 3,073-byte records | fetch"),
    (
        npz_file(x=np.array([{}], object), y=1, writer=1, is_test=1, writers=1),
        "femnist_leaf_207w.npz | not a readable .npz | fetch",
    ),
    (
        npz_file(x=np.zeros(1), y=np.zeros(1)),
        "lacks the arrays ['is_test' | has ['x', 'y'] | fetch",
    ),
    (
        npz_file(
            x=np.zeros((2, 28, 28), np.uint8),
            y=np.zeros(1, np.uint8),
            writer=np.zeros(2, np.uint8),
            is_test=np.zeros(2, bool),
            writers=np.array(["w"]),
        ),
        "'x': 2, 'y': 1 | unequal | fetch",
    ),
    (
        text_file("tinyshakespeare.txt", "100 % of it", "tinyshakespeare"),
        "symbols '%01' | of the vocabulary | remove them",
    ),
    (
        text_file("tinyshakespeare.txt", "To be", "tinyshakespeare"),
        "window = 80 | no training window | shorter windows",
    ),
    (
        lambda here: natural_clients(here, 1, exclude=("q",)),
        "play to exclude 'q' | must be one of p | choose one",
    ),
    (text_file("shakespeare_roles.jsonl", "[]\n", "shakespeare"), "line 1 | not an object | fetch"),
    (
        text_file("tinyshakespeare.txt", "x", "tinyshakespeare", windows=3),
        "'windows' | must be one of | 'window'?",
    ),
    (
        lambda here: natural_clients(here, 9),
        "num_clients = 9 | has 1 such clients of 1 | fewer clients",
    ),
]

# ---- work directories ----------------------------------------------------------------------------

ROW = '{"step":0,"virtual_s":0}\n'


def into(prepare: Call, **changes: Any) -> Call:
    """Trains into a directory that holds something already."""

    def call(here: Path) -> None:
        prepare(here)
        experiment.train(changed(**changes), here / "run", problem())

    return call


def files(**content: str) -> Call:
    def prepare(here: Path) -> None:
        (here / "run").mkdir()
        for name, text in content.items():
            (here / "run" / name.replace("_", ".")).write_text(text)

    return prepare


def read_back(**content: str) -> Call:
    """Rebuilds the page of a directory with these files."""

    def call(here: Path) -> None:
        files(**content)(here)
        experiment.report(here / "run")

    return call


def shortened(here: Path) -> None:
    """Takes up a run whose file of rows is shorter than its checkpoint says."""
    with RunWriter(here) as writer:
        writer.truncate({"metrics.jsonl": 10})


WIDER = json.dumps({"identity": {"algorithm": "fedavg", "model": "mlp", "parameters": [1040, 170]}})
OTHER = json.dumps({"identity": {"algorithm": "fedpmt"}})


def other_checkpoint(here: Path) -> None:

    kept = Checkpoints(here / "run" / "checkpoints")
    kept.save(1, {"w": np.zeros(2, np.float32)}, {"identity": {"algorithm": "fedpmt"}})


WORK_DIRECTORIES: list[Case] = [
    (
        into(lambda here: (here / "run").write_text("")),
        "workdir = | run': cannot be made | may write to",
    ),
    (into(files(checkpoints="")), "checkpoints' | cannot be made | may write to"),
    (
        into(files(metrics_jsonl=ROW)),
        "metrics.jsonl but no config.json | not the directory of a run | another work directory",
    ),
    (
        into(files(metrics_jsonl=ROW, config_json=OTHER)),
        "algorithm: 'fedpmt' -> 'fedavg' | another configuration | new work directory",
    ),
    (
        into(files(metrics_jsonl=ROW, config_json=WIDER)),
        "parameters: [1040, 170] -> [520, 90] | another configuration | new work directory",
    ),
    (
        into(files(metrics_jsonl=ROW, config_json='{"iden')),
        "config.json | not valid JSON | restore the file",
    ),
    (shortened, "0 bytes | expects at least 10 | restore the file"),
    (lambda here: experiment.report(here / "gone"), "gone | neither a run | train or compare"),
    (read_back(config_json="{}", metrics_jsonl=ROW + ROW[:9]), "line 2 | is torn | resume the run"),
    (
        read_back(config_json="{}", metrics_jsonl=ROW, clients_jsonl=ROW),
        "summary.json | does not exist | resume the run",
    ),
    (read_back(comparison_json="{}"), "'methods' | is missing | run the experiment again"),
    (
        read_back(comparison_json='{"methods": [{"name": "A"}], "targets": ["a"]}'),
        "targets[0]: target = 'a' | must be a number | run the experiment again",
    ),
    (
        read_back(comparison_json='{"methods": ["A"], "targets": []}'),
        "methods[0] | must be a mapping, not str | run the experiment again",
    ),
    (
        read_back(comparison_json='{"methods": [], "targets": [0.5]}'),
        "methods [] | different ones, at least one | run the experiment again",
    ),
    (
        read_back(comparison_json="[" * 100_000),
        "comparison.json | nested deeper than 64 | restore the file",
    ),
    (lambda here: RunRecord.load("gone"), "workdir = 'gone' | not a directory | finished run"),
    (into(other_checkpoint), "'fedpmt' -> 'fedavg' | another configuration | new work directory"),
]

CASES = [*DATA_FILES, *WORK_DIRECTORIES]
