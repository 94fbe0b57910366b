"""`fedjax-het init`: the configuration that it writes for a file."""

import re
from pathlib import Path

import numpy as np
import pytest

from fedjax_het import algorithms, config, experiment, models, objectives
from fedjax_het.fleet import FLEETS

# ml_collections loads configuration files by a method that Python is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")


HOSPITALS = """age,sex,Hospital,outcome,split,dose
61,f,north,disease,train,0.5
18,m,south,healthy,train,0.25

44,f,south,healthy,test,
"""


@pytest.fixture
def started(fedjax_het, tmp_path, monkeypatch):
    """The configuration that `init` writes for a file, and what it prints."""

    def of(name, content, *arguments):
        monkeypatch.chdir(tmp_path)
        if isinstance(content, str):
            (tmp_path / name).write_text(content)
        else:
            np.savez(tmp_path / name, **content)
        status, out, err = fedjax_het("init", name, *arguments)
        assert (status, err) == (0, "")
        place = re.search("^configuration: (.*)$", out, re.M)[1]
        settings = config.plain(config.load_config(str(tmp_path / place)))
        assert Path(settings["data"]["path"]).resolve() == (tmp_path / name).resolve()
        for part, registry in (
            ("model", models.MODELS),
            ("objective", objectives.OBJECTIVES),
            ("fleet", FLEETS),
        ):
            assert settings[part]["name"] in registry
        assert {o["name"] for o in config.methods(settings).values()} <= {*algorithms.ALGORITHMS}
        return settings, (tmp_path / place).read_text(), out

    return of


def test_init_finds_the_columns_of_a_table(started, tmp_path):
    (tmp_path / "studies").mkdir()
    settings, text, out = started("hospitals.csv", HOSPITALS, "--out=studies/one.py")
    data = settings["data"]
    assert data.pop("path").endswith("hospitals.csv")
    assert data == {
        "source": "csv",
        "label": "outcome",
        "client": "Hospital",
        "split": "split",
        "features": ["age", "sex", "dose"],
    }
    assert settings["objective"]["name"] == "classification"
    for line in (
        "    age       18, 44, 61",
        "    Hospital  north, south",
        "    dose      0.25, 0.5; some are missing",
    ):
        assert f"\n{line}\n" in text
    assert "--config=one.py --workdir=runs/one" in text
    assert out.splitlines()[:3] == [
        "label: outcome (guessed)",
        "client: Hospital (guessed)",
        "split: split (guessed)",
    ]
    assert max(map(len, text.splitlines())) <= 100


def test_init_takes_what_it_is_told(started):
    settings, _, out = started("h.csv", HOSPITALS, "--label=dose", "--client=sex")
    assert (settings["data"]["label"], settings["data"]["client"]) == ("dose", "sex")
    assert settings["data"]["features"] == ["age", "Hospital", "outcome"]
    assert settings["objective"]["name"] == "regression"
    assert out.splitlines()[:2] == ["label: dose", "client: sex"]


def test_init_deals_samples_that_have_no_owner(started):
    settings, text, _ = started("t.csv", "a,b,y\n1,2,x\n")
    assert settings["data"]["partition"] == {"name": "dirichlet", "alpha": 0.5}
    assert settings["data"]["num_clients"] == 10
    assert "client" not in settings["data"]
    assert "a fifth of the samples, drawn at random" in text
    settings, _, _ = started("u.csv", "a,b,y\n1,2,0.5\n")
    assert settings["data"]["partition"] == {"name": "iid"}


def test_init_writes_any_name_as_it_is(started):
    names = ['we"ird', "it's", "back\\slash", '"""', "{brace}", "é\u202e", "#", "y"]
    header = ",".join('"' + name.replace('"', '""') + '"' for name in names)
    settings, _, _ = started("odd.csv", f"{header}\n" + ",".join(map(str, range(8))) + "\n")
    assert settings["data"]["features"] == names[:-1]
    many = ",".join(f"pixel{i}" for i in range(784)) + ",label"
    settings, text, _ = started("wide.csv", f"{many}\n" + ",".join(["1"] * 785) + "\n")
    assert "features" not in settings["data"]
    assert "    and 745 more\n" in text


def test_init_finds_the_arrays_of_an_archive(started):
    arrays = {
        "x_train": np.zeros((6, 8, 8, 1), np.uint8),
        "y_train": np.zeros(6, np.int64),
        "x_test": np.zeros((2, 8, 8, 1), np.uint8),
        "y_test": np.zeros(2, np.int64),
        "users": np.array(list("aabbcc")),
        "test_users": np.array(list("ab")),
    }
    settings, text, _ = started("digits.npz", arrays)
    del settings["data"]["path"]
    assert settings["data"] == {
        "source": "npz",
        "inputs": "x_train",
        "label": "y_train",
        "client": "users",
        "test_inputs": "x_test",
        "test_label": "y_test",
        "test_client": "test_users",
    }
    assert settings["model"]["name"] == "cifar_cnn"
    assert "    x_train     uint8 [6, 8, 8, 1]\n" in text
    grey = {"image": np.zeros((3, 8, 8), np.uint8), "y": np.array(list("abc"))}
    assert started("grey.npz", grey)[0]["model"]["name"] == "cifar_cnn"
    settings, _, _ = started("n.npz", {"x": np.zeros((3, 5)), "y": np.zeros(3)}, "--out=n2.py")
    assert settings["model"]["name"] == "mlp"
    assert settings["objective"]["name"] == "regression"


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("a.csv", "", [], "a.csv: is empty, and must be a table with a line of names"),
        ("a.csv", "a,b\n1,2\n", [], r"a.csv: \['a', 'b'\]: none of them .*; name it with --label"),
        ("a.csv", "a,b\n1,2\n", ["--label=c"], "--label 'c': must be one of a, b; choose"),
        ("a.csv", "a,b\n1\n", ["--label=a"], "a.csv, line 2: 1 values: must be 2"),
        ("a.npz", "no archive", [], "a.npz: is not an .npz file that can be read"),
        ("a.npz", "no archive", ["--split=x"], "--split=x: is a column of a CSV file"),
        ("a.npz", {"z": np.zeros(2)}, [], r"a.npz: \['z'\]: none of them has the name of a label"),
        ("a.npz", {"y": np.array([None])}, [], None),
    ],
)
def test_init_refuses_in_one_line(
    fedjax_het, tmp_path, monkeypatch, name, content, arguments, message
):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        np.savez(tmp_path / name, **content)
    status, _, err = fedjax_het("init", name, *arguments)
    if message is None:  # arrays of objects are named, and never unpickled
        assert (status, err) == (0, "")
        return
    (line,) = err.splitlines()
    assert status == 2
    assert re.search(message, line), line
    assert not (tmp_path / "a.py").exists()


def test_a_configuration_by_init_runs(started, monkeypatch):
    rows = [f"{i},{i % 7 / 7},{'xy'[i % 2]},{'abc'[i % 3]}" for i in range(60)]
    settings, _, _ = started("t.csv", "\n".join(["n,share,label,site", *rows]))
    monkeypatch.setattr(experiment, "write_report", lambda record, path: None)
    result = experiment.train({**settings, "run": {"rounds": 1}})
    assert result.record.summary["num_clients"] == 3
