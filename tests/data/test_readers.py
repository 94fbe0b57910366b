"""Files in people's formats, against what another program reads in them."""

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest

from fedjax_het import data, experiment
from fedjax_het.common.errors import InputError
from fedjax_het.data import load_federated, read_csv, read_jsonl, read_npz
from fedjax_het.report.device_plots import timeline
from fedjax_het.report.plots import labels_by_client

INPUTS = Path(__file__).parents[1] / "inputs"
HOSPITALS = INPUTS / "hospitals.csv"
COLUMNS = {"label": "outcome", "client": "hospital", "split": "split", "ignore": ["days"]}


def rows(path=HOSPITALS):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def number(values, train):
    """A column of numbers as its rule says, and whether each is missing."""
    missing = np.array([v == "" for v in values])
    given = np.array([float(v or 0) for v in values])
    used = given[train & ~missing]
    scaled = (given - np.mean(used)) / np.std(used)
    return np.where(missing, 0, scaled), missing


def test_a_table_becomes_the_inputs_that_its_rules_say():
    raw, held = read_csv(HOSPITALS, **COLUMNS), rows()
    train = np.array([row["split"] == "train" for row in held])
    parts = []
    for name in ("age", "sex", "pressure", "cholesterol"):
        values = [row[name] for row in held]
        if name == "sex":
            parts += [np.array([v == sex for v in values]) for sex in ("f", "m")]
            continue
        column, missing = number(values, train)
        parts += [column, missing] if missing[train].any() else [column]
    x = np.stack(parts, axis=1)
    assert x.shape[1] == 6  # three numbers, one of them with gaps, and two sexes
    np.testing.assert_allclose(raw.x, x[train], atol=1e-6)
    np.testing.assert_allclose(raw.test_x, x[~train], atol=1e-6)
    assert raw.classes == ("disease", "healthy")
    wanted = [raw.classes.index(row["outcome"]) for row in held]
    assert raw.y.tolist() == [y for y, is_train in zip(wanted, train) if is_train]
    assert raw.test_clients.tolist() == [r["hospital"] for r, t in zip(held, train) if not t]
    assert raw.name == "hospitals"


def test_days_are_a_number_to_predict():
    raw = read_csv(HOSPITALS, "days", "hospital", "split", features=["age", "sex"])
    days = [float(row["days"]) for row in rows() if row["split"] == "train"]
    np.testing.assert_allclose(raw.y, days, rtol=1e-6)
    assert (raw.y.dtype, raw.num_classes, raw.x.shape[1]) == (np.float32, 0, 3)
    whole = read_csv(HOSPITALS, "age", split="split", target="numbers", ignore=["days"])
    assert whole.y.dtype == np.float32


@pytest.mark.parametrize("client", ["hospital", None])
def test_a_fraction_is_taken_of_every_client(client):
    raw = read_csv(HOSPITALS, "outcome", client, test_fraction=0.25, ignore=["split"])
    again = read_csv(HOSPITALS, "outcome", client, test_fraction=0.25, ignore=["split"])
    np.testing.assert_array_equal(raw.test_x, again.test_x)
    if client is None:
        assert len(raw.test_y) == len(rows()) // 4
        return
    _, every = np.unique([row["hospital"] for row in rows()], return_counts=True)
    _, held = np.unique(raw.test_clients, return_counts=True)
    assert held.tolist() == (every // 4).tolist()


def test_clients_of_the_test_set_only_are_only_tested():
    raw = read_csv(HOSPITALS, "outcome", "hospital", test_clients=["north"], ignore=["split"])
    held = load_federated(raw)
    assert held.ids.tolist() == ["east", "south", "west", "north"]
    assert (held.num_clients, held.num_test_clients) == (3, 4)
    assert set(held.test_client.tolist()) == {3}
    left_out = load_federated(read_csv(HOSPITALS, **COLUMNS), num_clients=2)
    assert left_out.num_test_clients == 2  # owners who are left out do not stay in the test set


def test_categories_and_gaps_that_training_rows_do_not_have_are_zeros(tmp_path):
    (tmp_path / "train.csv").write_text("ward;kind;y\n7;a;0\n9;b;1\n")
    (tmp_path / "test.csv").write_text("kind;ward;y\nc;8;1\n;7;0\n")
    raw = read_csv(
        tmp_path / "train.csv",
        "y",
        test_path=tmp_path / "test.csv",
        categories=["ward"],
        delimiter=";",
    )
    assert raw.x.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]
    assert raw.test_x.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]


def test_names_that_look_like_numbers_are_classes_if_they_are_said_to_be(tmp_path):
    (tmp_path / "t.csv").write_text("x,y\n" + "1,2b\n2,03\n3,2b\n4,03\n" * 3)
    with pytest.raises(InputError, match="line 2: '2b' in column 'y': is text among numbers"):
        read_csv(tmp_path / "t.csv", "y")
    assert read_csv(tmp_path / "t.csv", "y", categories=["y"]).classes == ("03", "2b")


def test_images_of_16_bits_keep_their_upper_half(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    deep = np.arange(0, 65536, 4096, np.uint16).reshape(4, 4)
    for kind in ("a", "b"):
        for n in range(3):
            (tmp_path / kind).mkdir(exist_ok=True)
            pillow.fromarray(deep).save(tmp_path / kind / f"{n}.png")
    raw = data.read_image_folder(tmp_path)
    np.testing.assert_array_equal(raw.x[0, ..., 0], deep >> 8)


def test_ids_keep_their_form(tmp_path):
    lines = "".join(f"{i % 3 + 8},{i % 3:03d},{i}.5,{i % 2}\n" for i in range(12))
    packed = gzip.compress(b"\xef\xbb\xbf" + f"n,code,x,y\n{lines}".encode())
    (tmp_path / "t.csv.gz").write_bytes(packed)
    for client, ids in (("code", ["000", "001", "002"]), ("n", [8, 9, 10])):
        options = {"path": str(tmp_path / "t.csv.gz"), "label": "y", "test_fraction": 0.25}
        assert load_federated("csv", client=client, **options).ids.tolist() == ids


def test_columns_of_tokens_and_of_several_labels(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,p,q\n" + "5,7,0,1\n3,2,1,1\n4,4,0,0\n" * 2)
    flags = read_csv(tmp_path / "t.csv", ["p", "q"])
    assert (flags.y.dtype, flags.y.shape[1:], flags.num_classes) == (np.int32, (2,), 2)
    lines = [{"a": 5, "b": 7, "y": i % 2} for i in range(6)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    tokens = read_jsonl(tmp_path / "t.jsonl", "y", tokens="sequence")
    assert tokens.x.dtype == np.int32
    assert tokens.x.tolist() == [[5, 7]] * 5


def messages():
    lines = (INPUTS / "messages.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("tokens", ["sequence", "bag"])
def test_messages_are_padded_with_a_mask_or_counted(tokens):
    raw = read_jsonl(INPUTS / "messages.jsonl", "labels", "user", tokens=tokens)
    told = messages()
    known = sorted({label for row in told for label in row["labels"]})
    labels = {tuple(row["tokens"]): [int(k in row["labels"]) for k in known] for row in told}
    users = {tuple(row["tokens"]): row["user"] for row in told}
    assert len(raw.y) + len(raw.test_y) == len(told)
    for i, user in enumerate(raw.clients):
        if tokens == "sequence":
            mask, padded = raw.x["mask"][i], raw.x["tokens"][i]
            own = tuple(padded[: mask.sum()].tolist())
            assert not mask[mask.sum() :].any()
            assert not padded[~mask].any()
        else:
            own = next(
                t
                for t in users
                if np.array_equal(np.bincount(t, minlength=raw.x.shape[1]), raw.x[i])
            )
        assert (raw.y[i].tolist(), user) == (labels[own], users[own])


def test_leaf_keeps_users_and_images():
    raw = data.read_leaf(INPUTS / "leaf", shape=(8, 8, 1))
    for split, x, y, who in (
        ("train", raw.x, raw.y, raw.clients),
        ("test", raw.test_x, raw.test_y, raw.test_clients),
    ):
        (path,) = (INPUTS / "leaf" / split).glob("*.json")
        told = json.loads(path.read_text())
        every = [(u, *pair) for u in told["users"] for pair in zip(*told["user_data"][u].values())]
        assert who.tolist() == [u for u, _, _ in every]
        np.testing.assert_allclose(x.reshape(len(x), -1), [x for _, x, _ in every], atol=1e-7)
        assert [raw.classes[k] for k in y] == [str(y) for _, _, y in every]


def test_hdf5_holds_what_leaf_holds_inverted():
    pytest.importorskip("h5py")
    raw = data.read_tff_h5(INPUTS / "fed_digits_train.h5", INPUTS / "fed_digits_test.h5")
    leaf = data.read_leaf(INPUTS / "leaf", shape=(8, 8, 1))
    np.testing.assert_allclose(1 - raw.x, leaf.x, atol=1e-3)
    np.testing.assert_allclose(1 - raw.test_x, leaf.test_x, atol=1e-3)
    assert raw.y.tolist() == leaf.y.tolist()
    assert raw.clients.tolist() == leaf.clients.tolist()


def test_parquet_holds_encoded_images():
    library, pillow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("PIL.Image")
    path = INPUTS / "digits_by_writer.parquet"
    raw = data.read_parquet(path, "label", "writer_id", test_fraction=0.3)
    told = library.read_table(path).to_pylist()
    wanted = {
        (
            r["writer_id"],
            r["label"],
            np.asarray(pillow.open(io.BytesIO(r["image"]["bytes"]))).tobytes(),
        )
        for r in told
    }
    x, y = np.concatenate([raw.x, raw.test_x]), np.concatenate([raw.y, raw.test_y])
    who = np.concatenate([raw.clients, raw.test_clients])
    assert x.dtype == np.uint8
    assert x.shape == (len(told), 8, 8, 1)
    assert {(w, int(raw.classes[k]), i.tobytes()) for w, k, i in zip(who, y, x)} == wanted
    half = data.read_parquet(path, "label", "writer_id", size=(4, 4))
    assert half.x.shape[1:] == (4, 4, 1)


def test_typed_columns_of_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    library = pytest.importorskip("pyarrow.parquet")
    table = arrow.table(
        {
            "v": arrow.array([[1, 2], [3, 4], [5, 6], [7, 8]]),
            "zip": ["01", "02", "01", "02"],
            "n": [1, 2, None, 4],
            "who": arrow.array(["a", "b", "a", "b"]).dictionary_encode(),
            "y": [True, False, True, False],
        }
    )
    library.write_table(table, tmp_path / "t.parquet")
    lists = data.read_parquet(
        tmp_path / "t.parquet", "y", features=["v"], test_path=tmp_path / "t.parquet"
    )
    assert lists.x.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert lists.classes == ("False", "True")
    plain = data.read_parquet(
        tmp_path / "t.parquet", "y", "who", ignore=["v"], test_path=tmp_path / "t.parquet"
    )
    assert plain.x.shape == (4, 4)  # two zips, which are text, a number and its gap
    assert plain.x[:, 3].tolist() == [0, 0, 1, 0]


def test_text_matrices_have_labels_from_1_and_subjects():
    raw = data.read_text_matrix(INPUTS / "har")
    x, y, who = (
        np.loadtxt(INPUTS / "har" / "train" / f"{name}_train.txt") for name in ("X", "y", "subject")
    )
    np.testing.assert_allclose(raw.x, (x - x.mean(0)) / x.std(0), atol=1e-5)
    assert (raw.y + 1).tolist() == y.tolist()
    assert raw.classes == tuple("123456")
    held = load_federated(raw)
    assert held.ids[: held.num_clients].tolist() == sorted(set(who.astype(int).tolist()))
    assert set(held.test_client.tolist()) == set(range(held.num_clients, held.num_test_clients))


def test_classes_of_text_matrices_have_names(tmp_path):
    for name, text in (("X", "1 2\n3 4\n5 6\n7 9\n"), ("y", "1\n2\n1\n2\n")):
        (tmp_path / f"{name}_train.txt").write_text(text)
        (tmp_path / f"{name}_test.txt").write_text(text)
    (tmp_path / "activity_labels.txt").write_text("1 WALKING\n2 SITTING DOWN\n")
    assert data.read_text_matrix(tmp_path).classes == ("WALKING", "SITTING DOWN")


def test_npz_of_arrays(tmp_path):
    rng = np.random.default_rng(0)
    held = {
        "x_train": rng.integers(0, 255, (6, 4, 4), np.uint8),
        "y_train": np.array([3, 9, 3, 9, 3, 9]),
        "x_test": rng.integers(0, 255, (2, 4, 4), np.uint8),
        "y_test": np.array([9, 3]),
        "who": np.array(["a", "b", "a", "b", "a", "b"]),
        "who_test": np.array(["b", "c"]),
    }
    np.savez(tmp_path / "t.npz", **held)
    raw = read_npz(
        tmp_path / "t.npz",
        "x_train",
        "y_train",
        "who",
        test_inputs="x_test",
        test_label="y_test",
        test_client="who_test",
    )
    np.testing.assert_array_equal(raw.x[..., 0], held["x_train"])
    assert (raw.y.tolist(), raw.classes) == ([0, 1, 0, 1, 0, 1], ("3", "9"))
    assert raw.test_clients.tolist() == ["b", "c"]
    np.savez(tmp_path / "t.npz", x=np.arange(12).reshape(6, 2), y=np.arange(6) % 2)
    assert read_npz(tmp_path / "t.npz").x.dtype == np.float32
    assert read_npz(tmp_path / "t.npz", tokens=True).x.dtype == np.int64
    assert (
        load_federated(read_npz(tmp_path / "t.npz", tokens=True), partition=data.iid(2)).x.dtype
        == np.int32
    )


def picture(path, value, pillow):
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(np.full((4, 6), value, np.uint8)).save(path)


@pytest.mark.parametrize("split", [True, False])
def test_folders_of_images_by_client_and_class(tmp_path, split):
    pillow = pytest.importorskip("PIL.Image")
    root = tmp_path / "pets"
    for part in ("train", "test") if split else ("",):
        for i, (client, kind) in enumerate(
            [("ann", "cat"), ("ann", "dog"), ("bob", "cat"), ("bob", "dog")]
        ):
            for n in range(2):
                picture(root / part / client / kind / f"{n}.png", 10 * i + n, pillow)
    raw = data.read_image_folder(root, **({} if split else {"test_fraction": 0.25}))
    assert (raw.name, raw.classes, raw.x.shape[1:]) == ("pets", ("cat", "dog"), (4, 6, 1))
    value, total = raw.x[:, 0, 0, 0] // 10, 8 if split else 6
    assert len(raw.y) == total
    assert raw.y.tolist() == (value % 2).tolist()
    assert raw.clients.tolist() == [["ann", "bob"][v // 2] for v in value]


def test_a_mapping_names_images_and_clients(tmp_path):
    pillow = pytest.importorskip("PIL.Image")
    told = rows(INPUTS / "mapping.csv")
    for i, row in enumerate(told):
        picture(tmp_path / "images" / row["sample_path"], i, pillow)
    raw = data.read_mapping(INPUTS / "mapping.csv", tmp_path / "images", test_fraction=0.1)
    assert raw.clients.dtype == np.int64
    for image, label, client in zip(raw.x, raw.y, raw.clients):
        row = told[int(image[0, 0, 0])]
        assert (row["label_name"], row["client_id"]) == (raw.classes[label], str(client))


@pytest.mark.filterwarnings("ignore:Cannot (locate|pickle)")  # of dill, in datasets
def test_hub_data_sets_from_disk_and_by_client(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"v": datasets.Sequence(datasets.Value("float32")), "who": datasets.Value("string"),
         "label": datasets.ClassLabel(names=["no", "yes"])}
    )  # fmt: skip
    content = {"v": [[i, 1.0] for i in range(8)], "who": list("abababab"), "label": [0, 1] * 4}
    whole = datasets.Dataset.from_dict(content, features=features)
    parts = datasets.DatasetDict({"train": whole.select(range(6)), "test": whole.select([6, 7])})
    parts.save_to_disk(str(tmp_path / "saved"))
    raw = data.read_hub(tmp_path / "saved", "label", "who")
    assert (raw.name, raw.classes) == ("saved", ("no", "yes"))
    assert raw.x[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert raw.test_clients.tolist() == ["a", "b"]
    # What a partitioner of Flower gives: a data set for each client, each split on its own.
    clients = {k: whole.shard(2, k, contiguous=False) for k in range(2)}
    own = {k: datasets.DatasetDict({"train": part.select([0, 1, 2]), "test": part.select([3])})
           for k, part in clients.items()}  # fmt: skip
    clients = data.read_hub(
        {f"phone {k}": part for k, part in own.items()}, ["label"], ignore=["who"]
    )
    assert clients.clients.tolist() == ["phone 0"] * 3 + ["phone 1"] * 3
    assert clients.test_x[:, 0].tolist() == [6, 7]


FROM_CONFIGURATION = {
    "csv": ({"path": "hospitals.csv", **COLUMNS}, {}),
    "parquet": ({"path": "digits_by_writer.parquet", "label": "label", "client": "writer_id"}, {}),
    "leaf": ({"path": "leaf"}, {}),
    "tff_h5": ({"train": "fed_digits_train.h5", "test": "fed_digits_test.h5"}, {}),
    "text_matrix": ({"path": "har"}, {}),
    "jsonl": (
        {"path": "messages.jsonl", "label": "labels", "client": "user", "tokens": "bag"},
        {"objective": {"name": "multilabel"}},
    ),
}


@pytest.mark.parametrize("source", FROM_CONFIGURATION)
def test_every_format_is_read_by_a_configuration(source):
    options, sections = FROM_CONFIGURATION[source]
    places = ("path", "train", "test")
    options = {k: str(INPUTS / v) if k in places else v for k, v in options.items()}
    config = {
        "data": {"source": source, **options},
        "model": {"name": "mlp", "hidden": (4,)},
        "fleet": {"name": "speed_groups"},
        "algorithm": {"name": "fedavg"},
        "run": {"rounds": 1},
        **sections,
    }
    try:
        problem = experiment.build_problem(config)
    except InputError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))
    assert problem.num_clients > 2
    assert problem.data.ids is not None
    resolved = experiment.resolve(config, problem)
    assert resolved["data"]["test_fraction"] is None


def test_ids_and_classes_reach_records_and_plots(tmp_path):
    config = {
        "data": {"source": "csv", "path": str(HOSPITALS), **COLUMNS},
        "model": {"name": "logistic"},
        "fleet": {"name": "speed_groups"},
        "algorithm": {"name": "fedavg", "learning_rate": 0.1},
        "run": {"rounds": 1, "client_eval": "last"},
    }
    record = experiment.train(config, tmp_path / "run").record
    hospitals = ["east", "north", "south", "west"]
    assert record.population.ids.tolist() == hospitals
    assert record.population.classes.tolist() == ["disease", "healthy"]
    assert [row["id"] for row in record.client_evaluations] == hospitals
    axes = labels_by_client(record).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == hospitals
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["disease", "healthy"]
    rows = timeline(record, 1e9).axes[0].get_yticklabels()
    assert sorted(tick.get_text() for tick in rows) == hospitals
