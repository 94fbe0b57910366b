"""The tables of claims are those of the stored numbers, and stored numbers are checked."""

import json
import re

import pytest

from benchmarks.reproduce import claims
from fedjax_het.common.errors import InputError

ONE = {
    "key": "speed",
    "claim": "rounds are shorter",
    "paper": "1.87",
    "check": "two types of devices",
    "form": ".2f",
    "values": [1.9, 2.1],
    "verdict": "holds",
    "command": "python -m benchmarks.reproduce.fedel_table1",
    "commit": "abc1234",
}
ROW = (
    "| rounds are shorter | 1.87 | 2.00 ± 0.14 | two types of devices | holds | "
    "`python -m benchmarks.reproduce.fedel_table1` | abc1234 |"
)


@pytest.fixture
def results(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fedel.json").write_text(json.dumps([ONE]))
    return tmp_path


def test_numbers_are_computed_from_the_stored_values(results):
    table = claims.table(claims.read(results / "data" / "fedel.json"))
    assert table.splitlines()[2] == ROW
    page = "before\n<!-- claims: fedel -->\nstale\n<!-- claims: end -->\nafter\n"
    filled = claims.filled(page, results)
    assert ROW in filled
    assert "stale" not in filled
    assert claims.filled(filled, results) == filled


def test_programs_store_values_with_the_commit(results):
    claims.store("fedel", {"speed": [2]}, results)
    [stored] = claims.read(results / "data" / "fedel.json")
    assert (stored.values, stored.here) == ((2.0,), "2.00")
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?", stored.commit)
    assert stored.claim == ONE["claim"]
    with pytest.raises(InputError, match="'sped'"):
        claims.store("fedel", {"sped": [2.0]}, results)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "perhaps"}, "verdict of claim 'speed' of fedel.json"),
        ({"values": []}, "finite numbers"),
        ({"values": [None]}, "finite numbers"),
        ({"command": ""}, "words in every field"),
        ({"note": "x"}, "must have"),
    ],
)
def test_what_a_claim_lacks_is_said(results, change, said):
    (results / "data" / "fedel.json").write_text(json.dumps([{**ONE, **change}]))
    with pytest.raises(InputError, match=said):
        claims.read(results / "data" / "fedel.json")


def test_the_pages_show_the_stored_claims():
    shown = 0
    for page in sorted(claims.RESULTS.glob("*.md")):
        text = page.read_text()
        assert text == claims.filled(text), "run python -m benchmarks.reproduce.claims --write"
        shown += text.count("<!-- claims: end -->")
    files = sorted((claims.RESULTS / "data").glob("*.json"))
    assert shown == len(files) > 0
    assert all(len(claims.read(path)) > 0 for path in files)
