"""Files of one's own in every format that is read."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from malformed.case import Call, Case, changed

from fedjax_het import data, experiment
from fedjax_het.data import load_federated

CSV = "who,age,sex,score,label,set\n" + "".join(
    f"{'ab'[i % 2]},{20 + i},{'fm'[i % 3 == 0]},{i}.5,{'xy'[i // 2 % 2]},"
    f"{'test' if i > 5 else 'train'}\n"
    for i in range(8)
)


def csv(content: str | bytes = CSV, old: str = "", new: str = "", **options: Any) -> Call:
    """A table of eight rows, or other content; `old` is replaced by `new`, once."""

    def call(here: Path) -> None:
        given = content.encode() if isinstance(content, str) else content
        if old:
            assert old.encode() in given
            given = given.replace(old.encode(), new.encode(), 1)
        (here / "t.csv").write_bytes(given)
        data.read_csv(here / "t.csv", **{"label": "label", **options})

    return call


def jsonl(*rows: Any, **options: Any) -> Call:
    def call(here: Path) -> None:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (here / "t.jsonl").write_text("\n".join(lines))
        data.read_jsonl(here / "t.jsonl", **{"label": "y", **options})

    return call


def arrays(options: dict[str, Any] | None = None, **held: Any) -> Call:
    def call(here: Path) -> None:
        np.savez(here / "t.npz", **held)
        data.read_npz(here / "t.npz", **(options or {}))

    return call


def npz_bytes(make: Callable[[], bytes]) -> Call:
    def call(here: Path) -> None:
        (here / "t.npz").write_bytes(make())
        data.read_npz(here / "t.npz")

    return call


def cut_npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=np.zeros((4, 2)), y=np.arange(4))
    return stream.getvalue()[:-40]


def bomb() -> bytes:
    """Half a gigabyte of zeros in half a megabyte."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "xy":
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                for _ in range(32):
                    member.write(bytes(2**23))
    return stream.getvalue()


def leaf(content: Any, **options: Any) -> Call:
    def call(here: Path) -> None:
        (here / "train").mkdir()
        text = content if isinstance(content, str) else json.dumps(content)
        (here / "train" / "all.json").write_text(text)
        data.read_leaf(here, **options)

    return call


def users(x: Any = None, y: Any = None, **changes: Any) -> dict[str, Any]:
    x, y = [[0, 1], [2, 3]] if x is None else x, [0, 1] if y is None else y
    return {"users": ["u"], "num_samples": [2], "user_data": {"u": {"x": x, "y": y}}, **changes}


def matrices(**content: str) -> Call:
    """Text matrices of three samples; `y_train="1\\n2"` replaces a file."""
    files = {"X_train": "1 2\n3 4\n5 6\n", "y_train": "1\n2\n1\n", "subject_train": "1\n1\n2\n"}
    files |= {"X_test": " 1.0e0 2\n", "y_test": "2\n", "subject_test": "3\n"}

    def call(here: Path) -> None:
        for name, text in {**files, **content}.items():
            if text:
                (here / f"{name}.txt").write_text(text)
        data.read_text_matrix(here)

    return call


def images(*files: tuple[str, Any], **options: Any) -> Call:
    """Images of a shape, or other content, in folders."""

    def call(here: Path) -> None:
        pillow = pytest.importorskip("PIL.Image")
        for name, content in files:
            path = here / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                pillow.fromarray(np.zeros(content, np.uint8)).save(path)
        data.read_image_folder(here, **options)

    return call


def png(here: Path) -> bytes:
    pillow = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    pillow.fromarray(np.zeros((4, 4), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def cut_image(here: Path) -> None:
    whole = png(here)
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(whole[: len(whole) // 2] if name == "b/2.png" else whole)
    data.read_image_folder(here)


def mapping(content: str) -> Call:
    def call(here: Path) -> None:
        (here / "m.csv").write_text(content)
        data.read_mapping(here / "m.csv")

    return call


def parquet(columns: dict[str, Any] | bytes, **options: Any) -> Call:
    def call(here: Path) -> None:
        arrow = pytest.importorskip("pyarrow")
        library = pytest.importorskip("pyarrow.parquet")
        if isinstance(columns, bytes):
            (here / "t.parquet").write_bytes(columns)
        else:
            library.write_table(arrow.table(columns), here / "t.parquet")
        data.read_parquet(here / "t.parquet", **{"label": "y", **options})

    return call


def hdf5(clients: dict[str, dict[str, Any]] | bytes, group: str = "examples") -> Call:
    def call(here: Path) -> None:
        h5py = pytest.importorskip("h5py")
        path = here / "t.h5"
        if isinstance(clients, bytes):
            path.write_bytes(clients)
        else:
            with h5py.File(path, "w") as file:
                for name, features in clients.items():
                    for key, value in features.items():
                        file[f"{group}/{name}/{key}"] = value
        data.read_tff_h5(path)

    return call


def hub(here: Path) -> None:
    pytest.importorskip("datasets")
    (here / "state.json").write_text("{")
    data.read_hub(str(here), "label")


def configured(**options: Any) -> Call:
    """A configuration whose data are a file."""

    def call(here: Path) -> None:
        (here / "t.csv").write_text(CSV)
        section = {"source": "csv", "path": str(here / "t.csv"), **options}
        experiment.build_problem({**changed(), "data": section})

    return call


def natural(here: Path) -> None:
    (here / "t.csv").write_text(CSV)
    load_federated("csv", path=here / "t.csv", label="label")


PIXELS = np.zeros((2, 4, 4), np.float32)
DEEP = '{"y": ' + "[" * 100 + "]" * 100 + "}"
TWO = ("a/1.png", (4, 4)), ("b/2.png", (4, 4))

TABLES: list[Case] = [
    (lambda here: data.read_csv(here / "no.csv", "y"), "no.csv | does not exist | correct"),
    (lambda here: data.read_csv(here, "y"), " | is a directory | correct"),
    (csv(""), "t.csv, line 1 | column names [] | name every column"),
    (csv("a,label\n"), "t.csv | has no rows | correct"),
    (csv("a,a,label\n1,2,x\n"), "line 1 | column names ['a'] | name every column"),
    (csv("a,,label\n1,2,x\n"), "line 1 | column names [''] | name every column"),
    (csv(label="lable"), "label 'lable' | must be one of | did you mean 'label'?"),
    (csv(client="hospital"), "client 'hospital' | must be one of age, label | choose one"),
    (csv(features=["agee"]), "column in features 'agee' | must be one of | did you mean 'age'?"),
    (csv(features=["age", "label"]), "feature column 'label' | is the label | leave it out"),
    (csv(old="b,21", new="b,21,3"), "t.csv, line 3 | 7 values | correct the line"),
    (csv(old=",m,0.5", new=""), "t.csv, line 2 | 4 values | correct the line"),
    (csv(old="b,21,", new='b,"21,'), "t.csv, line 9 | unexpected end of data | correct"),
    (csv(old="b,21", new="b,old"), "t.csv, line 3: 'old' in column 'age' | text among | missing"),
    (csv(old="b,21", new="b,1e60"), "t.csv, line 3: 1e+60 | must be a finite number | empty"),
    (csv(old="b,21", new="b,inf"), "t.csv, line 3: inf | must be a finite number | correct"),
    (csv(old="x,train", new=",train"), "t.csv, line 2: the label | must be given | fill it in"),
    (csv(old="1.5", new="nan", label="score"), "line 3: the label | must be given | fill it in"),
    (csv(old="1.5", new="inf", label="score"), "line 3: label inf | must be a finite | correct it"),
    (csv(old="a,20", new=",20", client="who"), "line 2: the client | must be given | fill it in"),
    (csv(label="who", target="numbers"), "label 'a' | is text | leave target out"),
    (csv(label=["age", "sex"]), "label column 'sex' | must hold numbers | name one label"),
    (csv(label=["age", "score"], target="classes"), "line 2: labels | 0 or 1 | name one"),
    (csv(split="set", old="x,train", new="x,dev"), "line 2: split 'dev' | 'train' or 'test' | out"),
    (csv(split="set", old="y,test", new="z,test"), "label 'z' | must be one of | move"),
    (csv(CSV.replace(",test\n", ",train\n"), split="set"), "a test set | no test row | split"),
    (csv(split="set", test_fraction=0.5), "test_fraction = 0.5 | exclude each other | keep"),
    (csv(client="who", test_fraction=0.01), "test_fraction = 0.01 | no test row | test_clients"),
    (csv(test_fraction=1.5), "test_fraction = 1.5 | below 1 | 0.1 sets"),
    (csv(client="who", test_clients=["c"]), "test client 'c' | one of the clients ['a' | name"),
    (csv(client="who", test_clients=["a", "b"]), "test_clients | no training row | say which"),
    (csv(test_clients=["a"]), "test_clients = ['a'] | needs to know the clients | client"),
    (csv(CSV.replace(",x,", ",y,")), "labels with 1 different | must be 2 to | another label"),
    (csv(b"a,label\n\xff\xfe1,x\n"), "t.csv, line 2 | is not UTF-8 text | save it"),
    (csv(gzip.compress(CSV.encode())[:60]), "t.csv | truncated or corrupt gzip | correct"),
    (csv(gzip.compress(bytes(2**28 + 9))), "t.csv, unpacked | must be at most | correct"),
    (csv(CSV.replace("m,0.5", "m" * 2000 + ",0.5")), "a text of 251 | at most 250 | ignore"),
    (csv("a" * 200_000 + ",label\n1,x\n"), "not comma-separated | larger than | correct"),
    (csv(delimiter=";;"), "delimiter = ';;' | must be one character | customary"),
    (csv(delimiter=";"), "label 'label' | must be one of | choose one"),
    (
        csv("a,label\n" + "".join(f"n{i},{'xy'[i % 2]}\n" for i in range(1300))),
        "column 'a' has | at most 1000 categories | ignore",
    ),
    (csv("a,label\n,x\n,y\n,x\n,y\n,x\n"), "column 'a' | no value in any training | ignore"),
    (
        csv("label,who\n" + "x,a\ny,b\n" * 9, client="who"),
        "0 feature columns | at least 1 | features",
    ),
    (jsonl('{"y": 1'), "t.jsonl, line 1 | is not valid JSON | correct"),
    (jsonl([1]), "t.jsonl, line 1 | must be an object | correct"),
    (jsonl(DEEP), "t.jsonl, line 1 | nested deeper than 64 | correct"),
    (jsonl({"x": 1, "y": 0}, '{"x": NaN, "y": 1}'), "line 2 | NaN is not a JSON number | correct"),
    (
        jsonl({"x": 1, "y": 0}, {"x": "a", "y": 1}, target="numbers"),
        "line 2: x holds text | a number | correct",
    ),
    (
        jsonl({"x": [1], "y": 0}, {"x": 2, "y": 1}, target="numbers"),
        "line 2: x | is no list | correct",
    ),
    (
        jsonl({"x": {}, "y": 0}, {"x": {}, "y": 1}, target="numbers"),
        "line 1: x | a number, text | correct",
    ),
    (
        jsonl(*({"x": [0] * (1 + i // 2), "y": i % 2} for i in range(4)), test_fraction=0.25),
        "lists of 1 to 2 | equally long, or tokens | 'sequence'",
    ),
    (
        jsonl(
            {"x": [1], "y": 0},
            {"x": [-1], "y": 1},
            {"x": [0], "y": 1},
            {"x": [0], "y": 0},
            tokens="bag",
            test_fraction=0.25,
        ),
        "token -1 | must be >= 0 | number the words",
    ),
    (
        jsonl(
            {"x": [1.5, 2], "y": 0},
            {"x": [1], "y": 1},
            {"x": [0], "y": 1},
            {"x": [0], "y": 0},
            tokens="sequence",
            test_fraction=0.25,
        ),
        "of float64 | must hold whole | number the",
    ),
    (parquet(b"PAR1 and nothing else"), "t.parquet | not a readable Parquet | write it again"),
    (parquet({"x": [1.0, 2.0], "z": [0, 1]}), "label 'y' | must be one of x, z | choose one"),
    (parquet({"x": [1.0, 2.0, 3.0], "y": [0, None, 1]}), "row 2: the label | must be given | fill"),
    (
        parquet({"x": [b"abc"] * 4, "y": [0, 0, 1, 1]}, test_fraction=0.25),
        "row 1 | not a readable image | replace",
    ),
    (
        parquet(
            {"x": [1.0] * 4, "d": np.zeros(4, "datetime64[s]"), "y": [0, 0, 1, 1]},
            test_fraction=0.25,
        ),
        "column 'd' of type timestamp | must be numbers | ignore",
    ),
]
ARRAYS: list[Case] = [
    (npz_bytes(cut_npz), "t.npz | not a readable .npz | arrays that it holds"),
    (npz_bytes(bomb), "t.npz, unpacked | must be at most | arrays that it holds"),
    (arrays(x=np.array([{}], object), y=[0]), "t.npz | never unpickled | name"),
    (arrays(x=np.zeros((4, 2))), "lacks the arrays ['y'] | has ['x'] | name"),
    (
        arrays(x=np.zeros((4, 2)), y=[0, 1, 0]),
        "array 'y' of shape [3] | must have 4 rows | correct",
    ),
    (arrays(x=np.zeros((4, 2)), y=[0, 1, np.nan, 1]), "sample 2 | must be a finite | correct"),
    (
        arrays({"client": "c"}, x=np.zeros((4, 2)), y=[0, 1, 0, 1], c=np.zeros(4)),
        "array 'c' of float64 | whole numbers or text | convert",
    ),
    (
        arrays({"test_inputs": "x"}, x=np.zeros((4, 2)), y=[0, 1, 0, 1]),
        "test_inputs = 'x' | the same arrays of both | name all",
    ),
    (leaf("{"), "all.json | is not valid JSON | correct"),
    (leaf('{"users": ' + "[" * 100 + "]" * 100 + "}"), "all.json | nested deeper | correct"),
    (leaf({"users": []}), "all.json | users and user_data | correct"),
    (leaf(users(users=["v"])), "users ['v'] | have samples in user_data | correct"),
    (leaf(users(y=[0])), "user 'u' | lists x and y of equal length | correct"),
    (leaf(users(num_samples=[3])), "user 'u': 2 samples | as num_samples says | cut or altered"),
    (
        leaf(users(x=[[0, 1], [2]]), test_fraction=0.5),
        "sample 1: x has 1 values | must be 2 | correct",
    ),
    (
        leaf(users(x=["to be", "or not"]), test_fraction=0.5),
        "x is text | must be numbers | number the words",
    ),
    (leaf(users(y=[0, None]), test_fraction=0.5), "sample 1: y is null | must be given | correct"),
    (leaf(users(), shape=(3, 3, 1), test_fraction=0.5), "shape = (3, 3, 1) | 2 numbers | e.g."),
    (lambda here: data.read_leaf(here), "train | has no .json file | above LEAF's"),
    (matrices(X_train=""), "X_train.txt | does not exist | correct"),
    (matrices(X_train="1 2\n3\n5 6\n"), "X_train.txt, line 2: 1 numbers | must be 2 | correct"),
    (matrices(X_train="1 2\n3 x\n5 6\n"), "line 2, column 2: 'x' | must be a number | correct"),
    (matrices(X_train="1 2\n3 nan\n5 6\n"), "line 2, column 2: nan | finite number | correct"),
    (matrices(y_train="1\n2\n"), "y_train.txt: 2 lines | X_train.txt, 3 | correct"),
    (matrices(subject_test=""), "subjects of one set only | both sets | add the other"),
    (matrices(y_test="7\n"), "X_test.txt, line 1: label '7' | must be one of | move"),
    (matrices(X_test="1 2 3\n"), "of [2, 3] columns | equally many | correct"),
    (images(), " | holds no image | name a folder"),
    (images(*TWO, ("b/c/3.png", (4, 4))), "is 2 folders deep | must be 1 | move it"),
    (images(*TWO, ("b/3.png", (4, 5))), "3.png: image of 4 x 5 | must be 4 x 4 | size"),
    (images(*TWO, ("b/notes.txt", b"x")), "notes.txt | must be an image | move it"),
    (images(*TWO, levels=("client", "class")), "levels = | each folder | e.g. levels"),
    (images(*TWO, ("dev/a/3.png", (4, 4))), "folders deep | must be 1 | move it"),
    (cut_image, "2.png | not a readable image | replace"),
    (
        mapping(
            "client_id,sample_path,label_name,label_id\n" + "1,a.png,cat,0\n2,b.png,dog,1\n" * 5
        ),
        "line 2: sample_path a.png | is no file | say images",
    ),
    (mapping("client,sample_path\n1,a.png\n"), "client 'client_id' | must be one of | did you"),
    (hdf5(b"\x89HDF\r\n\x1a\n" + bytes(40)), "t.h5 | not a readable HDF5 | correct"),
    (hdf5({"u": {"pixels": PIXELS}}, group="data"), "groups ['data'] | the group examples | corr"),
    (hdf5({"u": {"pixels": PIXELS}}), "client 'u': feature 'label' | must be one of | choose"),
    (hdf5({"u": {"pixels": PIXELS, "label": [1]}}), "2 pixels, 1 label | equally many | correct"),
    (
        hdf5(
            {
                "u": {"pixels": PIXELS, "label": [1, 0]},
                "v": {"pixels": PIXELS[:, :3], "label": [1, 0]},
            }
        ),
        "client 'v': pixels | as those of other clients | correct",
    ),
    (hub, " | cannot be read by datasets | save_to_disk"),
]
USES: list[Case] = [
    (natural, "data set 't' without partition | no natural clients | client of a file"),
    (configured(), "option of data 'label' is missing | must be given | add label"),
    (configured(label="label", clinet="who"), "'clinet' | must be one of | 'client'?"),
    (
        configured(label="label", client="who", data_dir="."),
        "data_dir = '.' for 'csv' | sets by name | complete path",
    ),
    (
        configured(label="label", target="number"),
        "target' = 'number' | must be one of 'classes' | correct target",
    ),
    (
        lambda here: load_federated(data.RawData("r", PIXELS, PIXELS, PIXELS, PIXELS, 0), window=3),
        "options ['window'] for a RawData | belong to the reader | give them there",
    ),
]
CASES = TABLES + ARRAYS + USES
