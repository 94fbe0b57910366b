"""JSON that is read: bounded in size and depth, finite, and text that can be written again."""

import json

import pytest

from fedjax_het.common import jsonio
from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import MAX_DEPTH, parse_json, read_lines


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"0" + b"}" * depth


def test_values_are_those_of_json():
    value = {"a": [1, -2.5, True, None, "é\u2028😀"], "b": {}, "c": 10**299, "d": 1e308}
    assert parse_json(json.dumps(value).encode(), "text") == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "text") == value
    assert parse_json(nested(MAX_DEPTH), "text") is not None
    assert parse_json(b'["' + b"[{" * 1000 + b'"]', "text") == ["[{" * 1000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nested(MAX_DEPTH + 1), "text: is nested deeper than 64"),
        (b"[" * 100_000, "text: is nested deeper than 64"),
        (b'{"a":' * 100_000, "text: is nested deeper than 64"),
        (b"1e999", "text: is not valid JSON .1e999 is not a JSON number, which is finite"),
        (b"-1e999", "-1e999 is not a JSON number"),
        (b"Infinity", "Infinity is not a JSON number"),
        (b"9" * 400, "a whole number of 400 digits, must be at most 300"),
        (b"9" * 5000, "a whole number of 5000 digits"),
        (b'"\xed\xa0\x80"', "text: is not UTF-8 text .byte 1"),
        (b"\xef\xbb\xbf{}", "text: is not valid JSON"),
        (b"", "text: is not valid JSON"),
    ],
)
def test_other_text_is_refused(content, message):
    with pytest.raises(InputError, match=message):
        parse_json(content, "text", "try again")


def test_sizes_are_bounded(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"[0]\n" * 8)
    assert read_lines(path) == [[0]] * 8
    monkeypatch.setattr(jsonio, "MAX_LINES", 31)
    with pytest.raises(InputError, match=r"rows\.jsonl: 32 bytes, must be at most 31; restore"):
        read_lines(path)
    monkeypatch.setattr(jsonio, "MAX_DOCUMENT", 4)
    with pytest.raises(InputError, match="text: 5 bytes, must be at most 4; restore"):
        parse_json(b"[0,0]", "text")
    monkeypatch.setattr(jsonio, "MAX_DOCUMENT", 100)
    monkeypatch.setattr(jsonio, "_MAX_CONTAINERS", 2)
    with pytest.raises(InputError, match=r"text: is not valid JSON .3 lists and objects, must be"):
        parse_json(b"[[],{}]", "text")
