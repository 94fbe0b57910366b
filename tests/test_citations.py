"""Every citation of docs/methods resolves, and none is left that does not name its page."""

import re
from pathlib import Path

import pytest
from citations import faults_of, places_of, read_pages

ROOT = Path(__file__).parents[1]
METHODS = ROOT / "docs" / "methods"
PAGES = read_pages(METHODS)
SOURCES = sorted(
    path
    for folder in ("benchmarks", "configs", "docs", "fedjax_het", "launch", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".md")
) + [path for path in [ROOT / "README.md"] if path.exists()]

PAGE = """# A method

## 1. Rules

### 1.2 Windows

* **D1** A defect.

## 3. Claims

| | claim |
|---|---|
| A4 | the front is trained |

## 4. Checks

1. One.
2. Two, 3. not one
   of the list.

## 5. Decisions

1. Not a check.
"""
KNOWN = {"m": places_of(PAGE), "other": {"7", "check 9"}}


def problems(text, *, python=True, own=None):
    return [(f.text, f.problem) for f in faults_of(text, KNOWN, python=python, own=own)]


def doc(text):
    return f'def f():\n    """{text}"""\n'


# ---- the repository ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_every_citation_resolves_and_names_its_page(path):
    own = path.stem if path.parent == METHODS and path.stem != "README" else None
    faults = faults_of(path.read_text(), PAGES, python=path.suffix == ".py", own=own)
    assert not faults, "\n".join(f"line {f.line}: {f.text!r}: {f.problem}" for f in faults)


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"README"}))
def test_pages_have_sections_and_checks_in_order(page):
    """A page whose checks were counted wrongly would let citations pass."""
    text = (METHODS / f"{page}.md").read_text()
    checks = [int(place.split()[1]) for place in places_of(text) if place.startswith("check ")]
    assert sorted(checks) == list(range(1, len(checks) + 1))
    assert len(checks) >= 10
    sections = [
        tuple(map(int, number.split("."))) for number in re.findall(r"^##+ ([\d.]*\d)", text, re.M)
    ]
    assert sections == sorted(set(sections))


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_between_pages_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", (METHODS / f"{page}.md").read_text()):
        assert (METHODS / target).exists(), target


def test_the_index_names_every_page_and_every_method():
    from fedjax_het.algorithms import ALGORITHMS

    index = (METHODS / "README.md").read_text()
    assert set(re.findall(r"^\| \[(\w+)\.md\]", index, re.M)) == set(PAGES) - {"README"}
    rows = "".join(line for line in index.splitlines() if line.startswith("| ["))
    listed = re.findall(r"`(\w+)`", rows)
    assert sorted(listed) == sorted(ALGORITHMS)


# ---- the checker ---------------------------------------------------------------------------------


def test_places_of_a_page():
    assert places_of(PAGE) == {"1", "1.2", "3", "4", "5", "D1", "A4", "check 1", "check 2"}


@pytest.mark.parametrize(
    "text",
    [
        "Windows (methods/m.md 1.2).",
        "See methods/m.md 1, check 2 and A4.",
        "Wrapped: methods/m.md\n    check 1.",
        "The page docs/methods/m.md as a whole.",
        "Reddi et al., 2021, section 9.",
        "Xie et al., *A title*,\n    section 5.1.",
        "arXiv 2312.05642, section 4",
        "code in `A5`, `section 8`",
        "Sections of a configuration; specific values; 3 checks.",
    ],
)
def test_good_citations_pass(text):
    assert problems(doc(text)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("methods/m.md 1.3", "methods/m.md 1.3"),
        ("methods/m.md check 3", "methods/m.md check 3"),
        ("methods/m.md 1, A5", "methods/m.md A5"),
        ("methods/m.md check 1, 3", "methods/m.md check 1, 3"),
        ("methods/nowhere.md 1", "methods/nowhere.md"),
        ("as the specification says", "specification"),
        ("Spec test 5.", "Spec test 5"),
        ("ADEL-FL spec, section 5", "spec, section 5"),
        ("the author's windows (section 8)", "section 8"),
        ("m, check 18", "check 18"),
        ("acceptance A4", "A4"),
        ("fedel.md 1.7", "fedel.md"),
    ],
)
def test_planted_faults_are_found(text, found):
    assert found in [text for text, _ in problems(doc(text))]
    assert found in [text for text, _ in problems(f"# {text}\n")]
    assert found in [text for text, _ in problems(f"{text}\n", python=False)]


def test_comments_that_are_only_a_number_are_found():
    assert [text for text, _ in problems("x = 1\n# 10: a step\ny = 2  # 11\n")] == ["# 10: a step"]
    assert problems("# 38,157,312 FLOPs\n# 16 samples\n") == []


def test_what_is_not_written_for_people_is_not_read():
    assert problems('name = "specification, section 8"\n') == []
    assert problems("```\nsection 8\n```\n", python=False) == []


def test_numbers_in_names_of_tests_need_a_page():
    body = "def test_2_windows():\n    pass\n"
    assert problems(body)[0][1] == "the module names no page for its numbers"
    assert problems(f'"""Checks of methods/m.md."""\n{body}') == []
    both = body.replace("test_2_", "test_02_3_")
    assert [text for text, _ in problems(f'"""Checks of methods/m.md."""\n{both}')] == [
        "methods/m.md check 3"
    ]


def test_claims_of_a_declared_page():
    table = "The claims of methods/m.md.\n\n| A4 | holds |\n| A5 | does not |\n"
    assert [text for text, _ in problems(table, python=False)] == ["methods/m.md A5"]


def test_a_page_may_refer_to_itself_and_to_its_neighbours():
    own = "Windows (1.2), section 3, check 2, A4, and [other.md](other.md), 7.\n"
    assert problems(own, python=False, own="m") == []
    bad = "Windows (1.3), section 8, check 3, A5, and [other.md](other.md), 8.\n"
    assert [text for text, _ in problems(bad, python=False, own="m")] == sorted(
        ["methods/other.md 8", "m: 8", "m: 1.3", "m: check 3", "m: A5"]
    )
