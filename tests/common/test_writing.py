"""Files are written whole or not at all, any text can be, and a refusal is one line."""

import contextlib
import errno
import json
import os
import re

import numpy as np
import pytest
from disk import longest_file, refusing

from fedjax_het.common import writing
from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import jsonable, read_json

LINE = r"[^\n]+: [^\n]+; [^\n]+"
REFUSALS = {
    errno.ENOSPC: r"No space left on device\); free space",
    errno.EDQUOT: r"Disk quota exceeded\); free space",
    errno.EROFS: r"Read-only file system\); name a directory",
    errno.EACCES: r"Permission denied\); name a directory",
    errno.EIO: r"Input/output error\); check the disk",
}


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_refusal_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, call, code):
    path = tmp_path / "summary.json"
    writing.write_json(path, {"old": 1})
    monkeypatch.setattr(os, call, refusing(code))
    with pytest.raises(writing.WriteError, match=REFUSALS[code]) as caught:
        writing.write_json(path, {"new": 1})
    assert re.fullmatch(LINE, str(caught.value))
    assert str(path) in str(caught.value)
    monkeypatch.undo()
    assert read_json(path) == {"old": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("text", ["Ä ☃ 😀", "half \udc80", "\ud800", "a\0b\n\x1b"])
def test_any_text_can_be_written_and_comes_back(tmp_path, text):
    path = tmp_path / "config.json"
    writing.write_json(path, {text: [text]})
    assert read_json(path) == {text: [text]}
    assert json.loads(writing.json_line({text: text}, "row")) == {text: text}
    assert writing.encodable(text) == ("\udc80" not in text and "\ud800" not in text)


VALUES = (
    *(
        0,
        -1,
        2**70,
        True,
        None,
        0.1,
        -0.0,
        1e300,
        5e-324,
        float("nan"),
        float("inf"),
        "ä\n",
        "\ud800",
    ),
    *(
        np.float64(0.1),
        np.float64("nan"),
        np.float32(0.1),
        np.int64(3),
        np.bool_(True),
        [1, (2,)],
        {"a": 1},
    ),
)


@pytest.mark.parametrize("key", ["name", 1, True, None, 1.5])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_row_that_is_written_as_it_is_has_the_bytes_of_a_converted_one(key, value):
    row = {"step": 3, key: value, "last": 0.5}
    wanted = json.dumps(jsonable(row, "row"), allow_nan=False, separators=(",", ":"))
    assert writing.json_line(row, "row") == wanted.encode() + b"\n"


def test_text_that_is_no_unicode_shows_which():
    assert writing.encoded("Ä\udc80") == b"\xc3\x84\\udc80"


def test_rows_reach_all_files_or_none(tmp_path):
    """The second file may not grow: the first ends where it did, and no line is torn."""
    names = "clients.jsonl", "metrics.jsonl"
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(tmp_path / n, "ab", buffering=0)) for n in names]
        writing.append(dict(zip(files, (b"a" * 10, b"b" * 900), strict=True)))
        with (
            longest_file(1000),
            pytest.raises(writing.WriteError, match="File too large") as caught,
        ):
            writing.append(dict(zip(files, (b"c" * 10, b"d" * 200), strict=True)))
        assert "metrics.jsonl" in str(caught.value)
        assert (tmp_path / names[0]).read_bytes() == b"a" * 10
        assert (tmp_path / names[1]).read_bytes() == b"b" * 900
        writing.append(dict(zip(files, (b"e", b"f"), strict=True)))
    assert [(tmp_path / name).stat().st_size for name in names] == [11, 901]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_device(tmp_path):
    refused = pytest.raises(writing.WriteError, match=r"/dev/full: .* free space")
    with open("/dev/full", "ab", buffering=0) as file, refused:
        writing.append({file: b"row\n"})


@pytest.mark.parametrize("value", ["", "a\0b", "a\udc80"])
def test_paths_that_no_file_can_have(value):
    with pytest.raises(InputError, match="workdir = ") as caught:
        writing.usable_path(value, "workdir")
    assert re.fullmatch(LINE, str(caught.value))


def test_directories_that_cannot_be_made(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "nowhere").symlink_to("gone")
    (tmp_path / "file").touch()
    reasons = {
        "a": "symbolic links",
        "a/b": "symbolic links",
        "nowhere": "No such file or directory",
        "file": "File exists",
        "file/b": "Not a directory",
        "x" * 300: "name too long",
    }
    for name, reason in reasons.items():
        with pytest.raises(writing.WriteError, match=rf"out: cannot be made \(.*{reason}\); \w+"):
            writing.make_directory(tmp_path / name, "out")
    (tmp_path / "link").symlink_to(tmp_path)
    writing.make_directory(tmp_path / "link" / "c" / "d", "out")
    assert (tmp_path / "c" / "d").is_dir()
