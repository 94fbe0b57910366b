"""Every reader, given files that are damaged by chance or by intent: a result, or one line.

The damages are drawn from fixed seeds, so a failure names a file that can be made again.
"""

import gzip
import io
import json
import os
import pickle
import re
import signal
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from malformed.case import changed, problem
from malformed.files import idx

from fedjax_het import experiment, load_model
from fedjax_het.common.errors import InputError
from fedjax_het.config import load_config
from fedjax_het.data import load
from fedjax_het.fleet import traces
from fedjax_het.fleet.block_times import MeasuredProfile
from fedjax_het.models.saving import read
from fedjax_het.report import RunRecord
from fedjax_het.simulation.saved import save_model


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def text_table(header: str, *rows: str) -> bytes:
    return "\n".join((header, *rows, "")).encode()


N = 12
WRITERS = npz(
    x=np.arange(N * 784).reshape(N, 28, 28).astype(np.uint8),
    y=np.arange(N, dtype=np.uint8),
    writer=np.arange(N) % 3,
    is_test=np.arange(N) % 4 == 0,
    writers=np.array(["a", "b", "c"]),
)
SPEECH = npz(
    audio=np.arange(N * 8000).reshape(N, 8000).astype(np.int16),
    y=np.arange(N),
    speaker=np.array(["", *"aabbccddeef"]),
    classes=np.array([f"word{i}" for i in range(N)]),
)
RATES = npz(
    time_s=np.array([0.0, 1.0, 0.0, 2.0, 3.0], np.float32),
    mbps=np.array([8.0, 0.0, 1.0, 2.0, 3.0], np.float32),
    length=np.array([2, 3], np.int32),
    set=np.array([0, 1], np.int8),
    sets=np.array(["slow", "fast"]),
)
DEVICES = json.dumps(
    {
        "ai_benchmark_devices": [{"model": "A", "ai_score": 100.0}],
        "availability": [{"start": 100.0, "end": 200.0, "ready": [[110.0, 130.0]]}],
    }
).encode()
ROLES = b"".join(
    json.dumps({"play": "p", "role": r, "speeches": ["to be or not to be"] * 3}).encode() + b"\n"
    for r in "ab"
)
YEAST = text_table("h", *(",".join(["0.5"] * 103 + ["1"] * 14) for _ in range(5)))
FLIGHTS = text_table(
    "year,month,day,hour,dep_delay,distance,arr_delay,origin,carrier,dest",
    *(f"2013,1,{day},5,2,1400,{day},EWR,UA,IAH" for day in range(1, 9)),
)
ONE = [1.0, 2.0]
PROFILE = json.dumps(
    {
        "format": 1,
        "model": "m",
        "backend": "cpu",
        "batch": 8,
        "repeats": 1,
        "names": ["a", "b"],
        "num_blocks": 2,
        "forward_s": ONE,
        "weight_grad_s": ONE,
        "input_grad_s": ONE,
        "xla_forward_flops": ONE,
        "xla_backward_flops": ONE,
    }
).encode()


def zipped(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def of(name: str, **options: Any) -> Callable[[Path], Any]:
    return lambda path: load(name, path.parent, verify=False, **options)


def both_traces(path: Path) -> Any:
    return traces.phones(path), traces.availability(path)


# Reader: name of its file, content, and function of the path.
READERS: dict[str, tuple[str, bytes, Callable[[Path], Any]]] = {
    "femnist": ("femnist_leaf_207w.npz", WRITERS, of("femnist")),
    "speech": ("speech_commands_v2_test_8khz.npz", SPEECH, of("speech_commands")),
    "bandwidth": ("bandwidth_traces.npz", RATES, traces.bandwidth),
    "devices": ("fl_device_traces.json", DEVICES, both_traces),
    "roles": ("shakespeare_roles.jsonl", ROLES, of("shakespeare", window=4)),
    "packed roles": (
        "shakespeare_roles.jsonl.gz",
        gzip.compress(ROLES, mtime=0),
        of("shakespeare", window=4),
    ),
    "text": ("tinyshakespeare.txt", b"To be, or not to be" * 9, of("tinyshakespeare", window=4)),
    "yeast": ("yeast.csv", YEAST, of("yeast")),
    "flights": ("flights.csv.zip", zipped("flights.csv", FLIGHTS), of("flights")),
    "profile": ("profile.json", PROFILE, MeasuredProfile.load),
    "config": (
        "c.py",
        b"def get_config():\n    return {'data': {}}\n",
        lambda p: load_config(str(p)),
    ),
}
READERS |= {
    name: (file, b"", reader)
    for name, file, reader in (
        ("images", "train-images-idx3-ubyte", of("mnist")),
        ("batch", "data_batch_1.bin", of("cifar10")),
        ("model", "model.safetensors", lambda path: load_model(path)),
        ("start", "model.safetensors", lambda path: read(path, "start")),
        ("config.json", "config.json", lambda path: RunRecord.load(path.parent)),
        ("metrics", "metrics.jsonl", lambda path: RunRecord.load(path.parent)),
        ("clients", "clients.jsonl", lambda path: RunRecord.load(path.parent)),
        ("summary", "summary.json", lambda path: RunRecord.load(path.parent)),
        ("population", "population.npz", lambda path: RunRecord.load(path.parent)),
    )
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A directory with the files of a short run, and the other files of `READERS`."""
    place = tmp_path_factory.mktemp("finished")
    experiment.train(changed(), place, problem())
    for name, shape in (("train", 3), ("t10k", 2)):
        (place / f"{name}-images-idx3-ubyte").write_bytes(idx(shape, 28, 28))
        (place / f"{name}-labels-idx1-ubyte").write_bytes(idx(shape))
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (place / name).write_bytes(bytes(3073 * 2))
    save_model(place / "model.safetensors", problem(), problem().model.init(jax.random.key(0)))
    return place


@pytest.fixture
def prepared(finished, tmp_path) -> Callable[[str], tuple[Path, bytes, Callable[[Path], Any]]]:
    """Function that puts the good file of a reader into a directory of the test."""

    def prepare(name: str) -> tuple[Path, bytes, Callable[[Path], Any]]:
        file, content, reader = READERS[name]
        for other in finished.iterdir():
            if other.is_file():
                os.link(other, tmp_path / other.name)
        path = tmp_path / file
        content = content or path.read_bytes()
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        return path, content, reader

    return prepare


class Hangs(BaseException):
    """A reader that does not come back."""


@pytest.fixture(autouse=True)
def in_time():
    def stop(*_: Any) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(reader: Callable[[Path], Any], path: Path) -> str | None:
    """The message of the `InputError`, which is one line with a remedy; None if it was read."""
    try:
        reader(path)
    except InputError as error:
        message = str(error)
        assert re.fullmatch(r"[^\n]+: [^\n]+; [^\n]+", message), message
        assert len(message) < 2000 + 2 * len(str(path))
        return message
    return None


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for place in rng.integers(0, len(damaged), rng.integers(1, 4)):
        damaged[place] ^= 1 << rng.integers(8)
    return bytes(damaged)


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def shuffled(content: bytes, rng: np.random.Generator) -> bytes:
    """Another order of a part of the file."""
    begin, middle, end = np.sort(rng.integers(0, len(content) + 1, 3))
    return content[:begin] + content[middle:end] + content[begin:middle] + content[end:]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", READERS)
def test_what_chance_damages_is_read_or_refused(name, seed, prepared):
    path, content, reader = prepared(name)
    assert refusal(reader, path) is None
    rng = np.random.default_rng([seed, *name.encode()])
    for damage in (flipped, cut, shuffled, flipped, cut):
        # A configuration is a program, and one that is damaged may do anything.
        if name != "config" or damage is cut:
            path.write_bytes(damage(content, rng))
            refusal(reader, path)


FOREIGN = {
    "empty": b"",
    "newline": b"\n",
    "zeros": bytes(4096),
    "noise": np.random.default_rng(0).bytes(4096),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "lists": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "closed lists": b"[" * 500 + b"]" * 500,
    "digits": b"9" * 10_000,
    "exponent": b'{"format": 1e999}',
    "surrogate": b'{"name": "\\ud800"}',
    "constant": b'{"a": NaN}\n',
    "utf-16": '{"a": 1}\n'.encode("utf-16"),
    "scalar": b"3\n",
    "list": b"[]\n",
    "object": b"{}\n",
    "array": b"\x93NUMPY\x01\x00" + struct.pack("<H", 64) + b"{'descr': '<f8'".ljust(64),
    "pickle": pickle.dumps([1]),
    "zip": zipped("other", b"x"),
    "npz": npz(other=np.ones(3)),
    "objects npz": npz(x=np.array([{}], object)),
    "gzip": gzip.compress(b"x" * 100, mtime=0),
    "cut gzip": gzip.compress(bytes(1000), mtime=0)[:-9],
    "length": struct.pack("<Q", 2**63) + b"{}",
    "header": struct.pack("<Q", 8) + b'{"a":{}}',
}


# Content that is sound for a reader.
SOUND = {"config.json": ("object", "surrogate"), "text": ("gzip",)}


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("name", READERS)
def test_foreign_content_is_refused(name, content, prepared):
    if (name, content) == ("config", "constant"):
        pytest.skip("this is a program, whose own errors are shown")
    path, _, reader = prepared(name)
    path.write_bytes(FOREIGN[content])
    message = refusal(reader, path)
    if content not in SOUND.get(name, ()):
        assert message is not None
        assert path.name in message or name == "text"  # whose message shows the symbols


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


def nowhere(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is at most 108 bytes long
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def closed(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may read every file")
    path.touch(0)


NODES = (Path.mkdir, pipe, loop, nowhere, endless, listening, closed)


@pytest.mark.parametrize("node", NODES, ids=[node.__name__ for node in NODES])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_refused_at_once(name, node, prepared):
    path, _, reader = prepared(name)
    path.unlink()
    node(path)
    message = refusal(reader, path)
    assert message is not None
    assert path.name in message or str(path.parent) in message


@pytest.mark.parametrize("node", NODES[:-1], ids=[node.__name__ for node in NODES[:-1]])
@pytest.mark.parametrize("name", ["metrics.jsonl", "clients.jsonl", "clients_eval.jsonl"])
def test_no_run_starts_where_its_rows_would_go_into_no_file(name, node, tmp_path):
    (tmp_path / "run").mkdir()
    node(tmp_path / "run" / name)
    message = refusal(lambda here: experiment.train(changed(), here, problem()), tmp_path / "run")
    assert message is not None
    assert name in message


@pytest.mark.parametrize("place", ["a\0b", "x" * 300, "~nobody-of-this-name/x"])
def test_paths_that_cannot_be_are_refused(place, tmp_path):
    here = tmp_path / place
    readers: tuple[Callable[[Path], Any], ...] = (
        traces.bandwidth,
        traces.phones,
        MeasuredProfile.load,
        RunRecord.load,
        experiment.report,
        load_model,
        lambda path: load("femnist", path),
        lambda path: load_config(str(path)),
        lambda path: load("mnist", place),
    )
    for reader in readers:
        assert refusal(reader, here) is not None


def member(shape: str, descr: str = "<f4", held: bytes = bytes(64)) -> bytes:
    """An .npy file with any header."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + held


CLAIMS = {
    "elements": (member(f"({10**15},)"), r"array 'time_s' claims \[1000000000000000\] x float32"),
    "product": (member(f"({2**40}, {2**40})"), "array 'time_s' claims"),
    "negative": (member("(-16,)"), "array 'time_s' claims"),
    "two negative": (member("(-4, -4)"), "array 'time_s' claims"),
    "nothing": (member("(16,)", "<U0"), "array 'time_s'"),
    "object": (member("(8,)", "|O"), "Python objects, which are never unpickled"),
    "structure": (member("(8,)", "<f4,<f4"), "not a readable .npz"),
    "deep": (member("(" * 900), "not a readable .npz"),
    "format": (b"\x93NUMPY\x09\x00" + bytes(64), r"is of format \(9, 0\)"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_of_an_npz_are_compared_with_what_it_holds(claim, tmp_path):
    content, message = CLAIMS[claim]
    path = tmp_path / "bandwidth_traces.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("time_s", "mbps", "length", "set", "sets"):
            archive.writestr(f"{name}.npy", content)
    assert re.search(message, str(refusal(traces.bandwidth, path)))


def test_an_npz_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path):
    """The archive states 9.6 GB in ten members, as one of a few megabytes may hold."""
    content = bytearray(
        npz(**{n: np.zeros(9) for n in ("time_s", "mbps", "length", "set", "sets")})
    )
    at = 0
    while (at := content.find(b"PK\x01\x02", at)) >= 0:  # the directory of the archive
        content[at + 24 : at + 28] = struct.pack("<I", 1_920_000_000)
        at += 4
    path = tmp_path / "bandwidth_traces.npz"
    path.write_bytes(content)
    assert "9600000000 bytes, must be at most 268435456" in str(refusal(traces.bandwidth, path))


def test_arrays_in_another_order_are_read_rightly(tmp_path):
    """Big-endian numbers, and columns before rows, as other programs write them."""
    images = np.arange(N * 784).reshape(N, 28, 28).astype(np.uint8)
    with np.load(io.BytesIO(WRITERS)) as known:
        arrays = {**known, "x": np.asfortranarray(images), "writer": known["writer"].astype(">i8")}
    (tmp_path / "femnist_leaf_207w.npz").write_bytes(npz(**arrays))
    raw = load("femnist", tmp_path, verify=False)
    np.testing.assert_array_equal(raw.x[..., 0], 255 - images[np.arange(N) % 4 != 0])
    assert raw.test_clients.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("rows", [[0.5] * 102 + ["nan"], [0.5] * 102 + ["1e300"]])
def test_features_that_are_not_finite_are_refused(rows, tmp_path):
    line = ",".join(map(str, [*rows, *[1] * 14]))
    (tmp_path / "yeast.csv").write_bytes(text_table("h", *[line] * 5))
    assert "numbers that are not finite" in str(refusal(of("yeast"), tmp_path / "yeast.csv"))


@pytest.mark.parametrize("label", ["nan", "2", "0.5", "4294967297", "-1"])
def test_labels_of_another_kind_are_not_cast(label, tmp_path):
    line = ",".join(["0.5"] * 103 + ["1"] * 13 + [label])
    (tmp_path / "yeast.csv").write_bytes(text_table("h", *[line] * 5))
    message = str(refusal(of("yeast"), tmp_path / "yeast.csv"))
    assert "not finite" in message or "not all 0 or 1" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.full(N, np.nan)}, "'y' is of float64, and must be integers"),
        ({"y": np.arange(N) - 2**32}, "y: label -4294967296: must be at least -2^31"),
        ({"y": np.zeros((N, 2), int)}, "'y' has the shape [12, 2]: must be [N]"),
        ({"x": np.zeros((N, 28, 28))}, "'x' is of float64, and must be uint8"),
        ({"is_test": np.full(N, np.nan)}, "'is_test' is of float64, and must be bool"),
        ({"writer": np.full(N, 2**32)}, "writer numbers beyond the 3 writers"),
        ({"writers": np.arange(3)}, "'writers' is of int64, and must be text"),
    ],
)
def test_arrays_of_another_kind_are_not_cast(change, message, tmp_path):
    with np.load(io.BytesIO(WRITERS)) as known:
        arrays = {**known, **change}
    (tmp_path / "femnist_leaf_207w.npz").write_bytes(npz(**arrays))
    assert message in str(refusal(of("femnist"), tmp_path / "femnist_leaf_207w.npz"))
