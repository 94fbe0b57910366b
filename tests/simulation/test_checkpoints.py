"""What else lies in the directory of the checkpoints, damaged ones, and a disk that refuses."""

import json
import os
import shutil

import numpy as np
import pytest
from disk import longest_file

from fedjax_het.common.errors import InputError
from fedjax_het.common.writing import WriteError
from fedjax_het.simulation import checkpoints
from fedjax_het.simulation.checkpoints import Checkpoints

IDENTITY = {"algorithm": "fedavg"}
META = {
    "now_s": 1.5,
    "unseen_score": None,
    "routes": [],
    "rented_s": [],
    "progress": {},
    "offsets": {},
    "totals": {},
    "lowerings": None,
    "identity": {**IDENTITY, "options": None, "network": None},
    "wall_s": 1,
    "compile_s": 0.0,
}
# Names of digits that no checkpoint has: short, long, Arabic-Indic, full-width, and numbers.
NAMES = ("7", "007", "000000007", "1e3", "٠٠٠٠٠٠٠٩", "００００００９９", "+0000009", "9" * 200)


@pytest.fixture
def saved(tmp_path):
    """A directory with the checkpoints of the steps 1 and 2."""
    kept = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        save(kept, step)
    return tmp_path / "checkpoints"


def save(kept, step):
    kept.save(step, {"w": np.full(3, step, np.float32)}, {**META, "step": step})


def restored(directory):
    """The array of the checkpoint that a run would take up."""
    identity = META["identity"]
    found = Checkpoints(directory).restore(lambda meta: {"w": np.zeros(3, np.float32)}, identity)
    return None if found is None else found[0]["w"].tolist()


def rewrite(target, meta):
    """Other metadata under a digest that is right."""
    (target / "meta.json").write_text(json.dumps(meta))
    (target / "digest.json").write_text(json.dumps(checkpoints._digest(target)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", ["nothing", "a checkpoint"])
def test_other_names_are_neither_read_nor_touched(saved, name, content):
    if content == "nothing":
        (saved / name).mkdir()
    else:
        shutil.copytree(saved / "00000001", saved / name)
    assert restored(saved) == [2.0, 2.0, 2.0]
    kept = Checkpoints(saved)
    assert kept.steps() == [1, 2]
    save(kept, 3)
    assert {path.name for path in saved.iterdir()} == {"00000002", "00000003", name}


def test_steps_of_nine_digits(saved):
    kept = Checkpoints(saved)
    save(kept, 10**8)
    assert kept.steps() == [2, 10**8]


@pytest.mark.parametrize("thing", ["file", "link to a file", "link to nowhere", "link to it"])
def test_what_has_the_place_of_the_next_checkpoint_is_replaced(saved, tmp_path, thing):
    place, elsewhere = saved / "00000003", tmp_path / "elsewhere"
    if thing == "file":
        place.write_text("x")
    elif thing == "link to a file":
        elsewhere.write_text("x")
        place.symlink_to(elsewhere)
    else:
        place.symlink_to(elsewhere if thing == "link to nowhere" else place)
    save(Checkpoints(saved), 3)
    assert restored(saved) == [3.0, 3.0, 3.0]
    assert not place.is_symlink()
    assert thing != "link to a file" or elsewhere.read_text() == "x"


def test_a_damaged_checkpoint_that_is_a_link(saved, tmp_path, caplog):
    """The link goes, and what it leads to stays."""
    elsewhere = tmp_path / "elsewhere"
    (saved / "00000002").rename(elsewhere)
    (elsewhere / "meta.json").write_text("{")
    (saved / "00000002").symlink_to(elsewhere)
    assert restored(saved) == [1.0, 1.0, 1.0]
    assert "00000002 is damaged; using the one before it" in caplog.text
    assert (elsewhere / "meta.json").read_text() == "{"
    assert not os.path.lexists(saved / "00000002")


def test_a_whole_checkpoint_that_is_a_link(saved, tmp_path):
    (saved / "00000002").rename(tmp_path / "elsewhere")
    (saved / "00000002").symlink_to(tmp_path / "elsewhere")
    assert restored(saved) == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("digest", ["[]", "{}", "null", "7", '{"meta.json": "0"}', "{", "[" * 10])
def test_a_digest_that_is_none(saved, digest, caplog):
    (saved / "00000002" / "digest.json").write_text(digest)
    assert restored(saved) == [1.0, 1.0, 1.0]
    (record,) = caplog.records
    assert "00000002 is damaged; using the one before it" in record.getMessage()


def test_an_empty_digest_of_nothing(saved):
    shutil.rmtree(saved / "00000002" / "arrays")
    (saved / "00000002" / "meta.json").unlink()
    (saved / "00000002" / "digest.json").write_text("{}")
    assert restored(saved) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("meta", [None, [], 7, "x", {}, {"identity": None}, {"identity": []}])
def test_a_right_digest_of_metadata_that_are_none(saved, meta, caplog):
    rewrite(saved / "00000002", meta)
    assert restored(saved) == [1.0, 1.0, 1.0]
    (record,) = caplog.records
    assert "00000002 does not say of which run it is; using" in record.getMessage()


@pytest.mark.parametrize("name", [name for name in (*META, "step") if name != "identity"])
@pytest.mark.parametrize("kind", ["missing", "of another type"])
def test_a_right_digest_of_metadata_that_lack_a_field(saved, name, kind, caplog):
    meta = {**META, "step": 2, name: "x"}
    if kind == "missing":
        del meta[name]
    rewrite(saved / "00000002", meta)
    assert restored(saved) == [1.0, 1.0, 1.0]
    (record,) = caplog.records
    assert f"00000002 lacks {name}; using the one before it" in record.getMessage()


def test_a_whole_checkpoint_under_the_name_of_another_step(saved, caplog):
    shutil.copytree(saved / "00000001", saved / "00000009")
    assert restored(saved) == [2.0, 2.0, 2.0]
    (record,) = caplog.records
    assert "00000009 is that of step 1; using the one before it" in record.getMessage()


def test_another_run_is_refused_even_if_fields_are_missing(saved):
    rewrite(saved / "00000002", {"identity": {**META["identity"], "algorithm": "fedpmt"}})
    with pytest.raises(InputError, match="algorithm: 'fedpmt' -> 'fedavg'"):
        restored(saved)


def test_values_deeper_down_are_named(saved):
    kept = Checkpoints(saved)
    missing = pytest.raises(InputError, match=r"checkpoint 2 in .*KeyError: 'kept'.*delete its")
    with missing, kept.taken_up():
        kept.restore(lambda meta: meta["progress"]["kept"], META["identity"])
    shapes = {"w": np.zeros((4, 4), np.float32), "v": np.zeros(1)}
    other = pytest.raises(InputError, match=r"checkpoint 2 in .* holds what no run saves")
    with other, kept.taken_up():
        kept.restore(lambda meta: shapes, META["identity"])


def test_a_full_disk_is_one_line_and_spares_the_ones_before(saved, capfd, caplog):
    kept = Checkpoints(saved)
    kept.newest(META["identity"])
    assert kept.last == 2
    values = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    refused = pytest.raises(WriteError, match=r"00000003: cannot be written \(File too large\)")
    with longest_file(20_000), refused:
        kept.save(3, {"w": values}, {**META, "step": 3})
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")
    assert kept.last == 2
    # What was written of it would take space.
    assert {path.name for path in saved.iterdir()} == {"00000001", "00000002"}
    kept.save(3, {"w": values}, {**META, "step": 3})
    assert kept.last == 3
