import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.data import load
from fedjax_het.data.sources.audio import log_mel
from fedjax_het.data.sources.text import (
    ROLES_VOCABULARY,
    TINY_PLAYS,
    TINY_VOCABULARY,
    tokenise,
    windows,
)


def test_tokens_are_places_in_the_vocabulary():
    assert tokenise("cab", "bca").tolist() == [1, 2, 0]
    with pytest.raises(InputError, match=r"symbols '\?z': must be among the 3"):
        tokenise("a?z?", "bca")


def test_windows_predict_the_next_symbol():
    x, y = windows(np.arange(11, dtype=np.int32), 3)
    assert x.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert y.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert windows(np.arange(3, dtype=np.int32), 3)[0].shape == (0, 3)
    assert windows(np.zeros(0, np.int32), 3)[0].shape == (0, 3)


def _roles(path, roles):
    lines = [json.dumps({"play": "P", "role": r, "speeches": s}) for r, s in roles.items()]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


def test_shakespeare_splits_every_role_by_position(tmp_path):
    text = "abcdefghij" * 10
    _roles(
        tmp_path / "shakespeare_roles.jsonl.gz",
        {"long": [text[:60], text[60:]], "short": ["abcdefghijklm"], "tiny": ["ab"]},
    )
    raw = load("shakespeare", tmp_path, window=5, verify=False)
    assert raw.x.shape == (16 + 2, 5)
    assert raw.test_x.shape == (4, 5)
    assert set(raw.clients) == {"P/long", "P/short"}
    assert set(raw.test_clients) == {"P/long"}
    joined = text[:60] + "\n" + text[60:]
    decoded = "".join(raw.classes[t] for t in raw.x[raw.clients == "P/long"].ravel())
    assert decoded == joined[:80]
    assert "".join(raw.classes[t] for t in raw.test_y.ravel()) == joined[81:101]
    np.testing.assert_array_equal(raw.y[:, :-1], raw.x[:, 1:])
    with pytest.raises(InputError, match="SHA-256"):
        load("shakespeare", tmp_path)


def test_plays_can_be_left_out(tmp_path):
    lines = [
        json.dumps({"play": play, "role": "R", "speeches": [20 * letter]})
        for play, letter in (("one", "a"), ("two", "b"), ("three", "c"))
    ]
    (tmp_path / "shakespeare_roles.jsonl").write_text("\n".join(lines))
    raw = load("shakespeare", tmp_path, window=2, exclude=("one", "three"), verify=False)
    assert set(raw.clients) == {"two/R"}
    assert {raw.classes[t] for t in raw.x.ravel()} == {"b"}
    for exclude, message in (
        (["won"], "play to exclude 'won': must be one of one, three, two; did you mean 'two'"),
        (["one", "two", "three"], "leaves no play"),
    ):
        with pytest.raises(InputError, match=message):
            load("shakespeare", tmp_path, window=2, exclude=exclude, verify=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{}", "line 1 is not an object with play, role and speeches"),
        (b"not json", "line 1: is not valid JSON"),
        (b'{"play": "P", "role": "R", "speeches": 3}', "line 1 is not an object"),
        (b"[]", "line 1 is not an object"),
        (b'{"play": "P", "role": "R", "speeches": "abc"}', "speeches, a list of texts"),
        (b'{"play": "P", "role": ["R"], "speeches": ["abc"]}', "line 1 is not an object"),
        (b"[" * 100_000, "line 1: is nested deeper than 64"),
        (b"\xff\xfe", "line 1: is not UTF-8 text"),
        (b"", "no lines"),
    ],
)
def test_broken_shakespeare_is_named(tmp_path, data, message):
    (tmp_path / "shakespeare_roles.jsonl").write_bytes(data)
    with pytest.raises(InputError, match=message):
        load("shakespeare", tmp_path, verify=False)


def test_tinyshakespeare_holds_out_the_end(tmp_path):
    (tmp_path / "tinyshakespeare.txt").write_text("abcdefghij" * 20 + "\n")
    raw = load("tinyshakespeare", tmp_path, window=10, verify=False)
    assert raw.x.shape == (18, 10)
    assert raw.test_x.shape == (2, 10)
    assert raw.clients is None
    assert raw.num_classes == 65


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window = 0"),
        ({"window": 500}, "leave no training window"),
        ({"window": 10, "test_fraction": 0.0}, "leave no test window"),
        ({"test_fraction": -0.1}, r"test_fraction = -0\.1"),
        ({"vocabulary": "aa"}, "vocabulary of 2 symbols, 1 different"),
        ({"vocabulary": "abc"}, "must be among the 3 of the vocabulary"),
    ],
)
def test_bad_text_options(tmp_path, options, message):
    (tmp_path / "tinyshakespeare.txt").write_text("abcdefghij" * 20)
    with pytest.raises(InputError, match=message):
        load("tinyshakespeare", tmp_path, verify=False, **options)


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "tinyshakespeare.txt").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        load("tinyshakespeare", tmp_path, verify=False)


def test_vocabularies_are_sorted_and_distinct():
    for vocabulary, size in ((TINY_VOCABULARY, 65), (ROLES_VOCABULARY, 79)):
        assert len(set(vocabulary)) == len(vocabulary) == size
        assert list(vocabulary) == sorted(vocabulary)


def _tone(hertz):
    t = np.arange(8000) / 8000
    return (20000 * np.sin(2 * np.pi * hertz * t)).astype(np.int16)


def test_log_mel_finds_the_pitch():
    features = log_mel(np.stack([_tone(300), _tone(1500), np.zeros(8000, np.int16)]))
    assert features.shape == (3, 64, 32, 1)
    assert features.dtype == np.float32
    peak = features[:2, 5:-5, :, 0].mean(axis=1).argmax(axis=1)
    mel = lambda f: 2595 * np.log10(1 + f / 700)
    edges = np.linspace(mel(20), mel(4000), 34)
    expected = [np.abs(edges[1:-1] - mel(f)).argmin() for f in (300, 1500)]
    assert peak.tolist() == expected
    np.testing.assert_allclose(features[2], np.log(1e-6), rtol=1e-5)


def _speech(path, n=40):
    rng = np.random.default_rng(0)
    speaker = np.array(["", "", *["a"] * 12, *["b"] * 6, *["c"] * 2, *["d"] * (n - 22)])
    np.savez(
        path / "speech_commands_v2_test_8khz.npz",
        audio=rng.integers(-1000, 1000, (n, 8000), dtype=np.int16),
        y=(np.arange(n) % 12).astype(np.uint8),
        speaker=speaker,
        classes=np.array([f"word{i}" for i in range(12)]),
    )


def test_speech_commands_gives_every_speaker_a_split(tmp_path):
    _speech(tmp_path)
    raw = load("speech_commands", tmp_path, features="waveform", verify=False)
    assert raw.x.dtype == np.int16
    assert len(raw.x) + len(raw.test_x) == 40
    assert set(raw.clients) == set("abcd"), "noise joins speakers"
    names, tests = np.unique(raw.test_clients, return_counts=True)
    # a: 12 + 1 noise, b: 6, c: 2, d: 18 + 1 noise; every fifth of each.
    assert dict(zip(names, tests, strict=True)) == {"a": 2, "b": 1, "d": 3}
    spectra = load("speech_commands", tmp_path, verify=False)
    assert spectra.x.shape[1:] == (64, 32, 1)
    np.testing.assert_array_equal(spectra.y, raw.y)
    with pytest.raises(InputError, match="features 'mfcc'"):
        load("speech_commands", tmp_path, features="mfcc")


def test_real_speech_commands(real):
    raw = real("speech_commands")
    assert len(raw.x) + len(raw.test_x) == 4890
    assert len(np.unique(raw.clients)) == 621
    mean, std = raw.normalise
    assert abs(raw.x.mean() - mean) < 0.05
    assert abs(raw.x.std() - std) < 0.05


def test_real_shakespeare(real):
    raw = real("shakespeare")
    assert len(np.unique(raw.clients)) == 1011
    assert raw.num_classes == 79
    assert 48_000 < len(raw.x) + len(raw.test_x) < 50_100


def test_real_tinyshakespeare(real):
    raw = real("tinyshakespeare")
    assert len(raw.x) + len(raw.test_x) == 1_115_393 // 80


def test_the_plays_of_tinyshakespeare_are_known(data_dir):
    letters = lambda text: re.sub(r"[^a-z]", "", text.lower())
    here = Path(data_dir)
    tiny = letters((here / "tinyshakespeare.txt").read_text())
    shared = set()
    with gzip.open(here / "shakespeare_roles.jsonl.gz", "rt") as roles:
        for role in map(json.loads, roles):
            passages = (letters(speech)[10:50] for speech in role["speeches"])
            if any(len(passage) == 40 and passage in tiny for passage in passages):
                shared.add(role["play"])
    assert shared == set(TINY_PLAYS)
