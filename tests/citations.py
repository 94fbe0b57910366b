"""Follows the citations of docs/methods: which places its pages have, and who refers to them how.

The one form is the page and the place on it, as docs/methods/README.md says. `faults_of` finds what
does not resolve, and what refers to a page without naming it. What stands in backticks is code.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# A place: a section, a check, or a row with a letter.
_PLACE = r"(?:check \d+|\d+(?:\.\d+)*|[A-Z]\d+)(?![\w.]*\d)"
_PLACES = rf"{_PLACE}(?:,? (?:and )?{_PLACE})*"
CITATION = re.compile(rf"\bmethods/(\w+)\.md(?: ({_PLACES}))?")
# On a page of docs/methods a link to another page is followed by the place.
_LINK = re.compile(rf"\]\((\w+)\.md\), ({_PLACES})")
_DECLARED = re.compile(r"\b(Checks|Claims) of methods/(\w+)\.md\b", re.IGNORECASE)
_CODE = re.compile(r"`[^`]{1,100}`")
_NUMBERED_TEST = re.compile(r"test_(\d+(?:_\d+)*)_")

# A paper is named by its authors, its year or its number shortly before.
_PAPER = re.compile(r"et al\.|\b(?:19|20)\d\d\b|arXiv \d{4}\.\d{5}")
_SECTION = re.compile(r"\b[Ss]ections? \d+(?:\.\d+)*")
_ROW = re.compile(r"(?<![\w/-])[AD]\d{1,2}(?![\w-])")
_LOOSE = {
    "names no page": re.compile(
        r"\b[Ss]pecifications?\b"
        r"|\b[Ss]pecs?,? (?:tests?|checks?|sections?|\d)[\w ]*"
        r"|\b(?:[Cc]hecks?|[Tt]ests?) \d+\b"
    ),
    "lacks its folder": re.compile(
        r"(?<![\w/(\[])(?:[Ff]edel|[Aa]del_fl|[Ff]edpmt|[Dd]tfl|[Pp]r_fl|[Bb]aselines)\.md\b"
    ),
}
_BARE_NUMBER = re.compile(r"#\s*\d{1,2}(?:[:,] .*)?$")


class Fault(NamedTuple):
    """What is wrong with a citation.

    Attributes:
      line: where the sentence, comment or docstring begins.
      text: the citation.
      problem: what is wrong with it.
    """

    line: int
    text: str
    problem: str


class Prose(NamedTuple):
    """A paragraph, docstring or run of comments, on one line, and the line where it begins."""

    line: int
    text: str


def places_of(page: str) -> set[str]:
    """The places that a page of docs/methods has: `1.7`, `check 10`, `A5`.

    Args:
      page: Markdown text.

    Returns:
      Numbers of headings, `check N` for the numbered list in the section called Checks, and the
      labels of table rows and of list entries that begin with a letter and a number.
    """
    found: set[str] = set()
    in_checks = False
    for line in page.splitlines():
        if heading := re.match(r"#{2,4} (\d+(?:\.\d+)*)\.? (.*)", line):
            found.add(heading[1])
            in_checks = heading[2].strip() == "Checks"
        elif in_checks and (check := re.match(r"(\d+)\. \S", line)):
            found.add(f"check {check[1]}")
        elif row := re.match(r"(?:\| |\* \*\*)([A-Z]\d{1,2})(?: \||\*\* )", line):
            found.add(row[1])
    return found


def read_pages(folder: Path) -> dict[str, set[str]]:
    """Places by page for a folder of pages; its README, which explains the form, has none."""
    return {
        path.stem: set() if path.stem == "README" else places_of(path.read_text())
        for path in sorted(folder.glob("*.md"))
    }


def prose_of(text: str, *, python: bool) -> Iterator[Prose]:
    """What is written for people: docstrings and comments, or the paragraphs of a page."""
    if not python:
        yield from _paragraphs(text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            document = ast.get_docstring(node)
            if document is not None:
                yield Prose(node.body[0].lineno, " ".join(document.split()))
    block: list[str] = []
    start = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        alone = token.line.lstrip().startswith("#")
        if not alone or token.start[0] != start + len(block) or _BARE_NUMBER.match(token.string):
            yield from _joined(start, block)
            block, start = [], token.start[0]
        # The mark of a comment's first line stays if it stands alone: `_BARE_NUMBER` looks for it.
        block.append(token.string if alone and not block else token.string.lstrip("# "))
    yield from _joined(start, block)


def faults_of(
    text: str, pages: dict[str, set[str]], *, python: bool, own: str | None = None
) -> list[Fault]:
    """What is wrong with the citations of one file.

    Args:
      text: its content.
      pages: places by page, from `read_pages`.
      python: whether it is Python; else Markdown.
      own: the page that the file is, if it is one of docs/methods.

    Returns:
      Faults in the order of the file.
    """
    head = (ast.get_docstring(ast.parse(text)) or "") if python else text
    declared = {kind.lower(): page for kind, page in _DECLARED.findall(" ".join(head.split()))}
    faults: list[Fault] = []
    for line, sentence in prose_of(text, python=python):
        for page, places in CITATION.findall(sentence):
            faults += _unresolved(line, page, places, pages)
        if own is not None:
            for page, places in _LINK.findall(sentence):
                faults += _unresolved(line, page, places, pages)
        rest = _LINK.sub("", CITATION.sub("", _CODE.sub("", sentence)))
        if own is not None:
            faults += _unresolved_here(line, rest, own, pages[own])
        else:
            faults += _loose(line, rest, declared.get("claims"), pages)
    if python:
        faults += _numbered_tests(text, declared.get("checks"), pages)
    return sorted(faults)


def _paragraphs(text: str) -> Iterator[Prose]:
    """The paragraphs of a page without its fenced code; table rows and list entries one by one."""
    block: list[str] = []
    start, fenced = 1, False
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        blank = fenced or fence or not line.strip()
        if block and (blank or re.match(r"\s*(?:\||\* |\d+\. |#)", line)):
            yield Prose(start, " ".join(" ".join(block).split()))
            block = []
        if not blank:
            start = start if block else number
            block.append(line)


def _joined(start: int, comments: list[str]) -> Iterator[Prose]:
    if comments:
        yield Prose(start, " ".join(comments))


def _unresolved(line: int, page: str, places: str, pages: dict[str, set[str]]) -> Iterator[Fault]:
    if page not in pages:
        yield Fault(line, f"methods/{page}.md", "there is no such page in docs/methods")
        return
    before = ""
    for place in re.findall(_PLACE, places):
        if place.isdigit() and before.startswith("check"):
            yield Fault(
                line, f"methods/{page}.md {before}, {place}", "say check before each number"
            )
        elif place not in pages[page]:
            yield Fault(line, f"methods/{page}.md {place}", "the page has no such place")
        before = place


def _unresolved_here(line: int, text: str, own: str, places: set[str]) -> Iterator[Fault]:
    """References of a page to itself: `section 3`, `check 4`, `A5`, and `(3.4)`."""
    numbers = re.findall(r"\b[Ss]ection (\d+(?:\.\d+)*)", text)
    if not text.startswith("|"):
        for inside in re.findall(r"\((\d\.\d(?:, \d\.\d)*)\)", text):
            numbers += inside.split(", ")
    wanted = [number for number in numbers if not _names_a_paper(text, number)]
    wanted += [f"check {number}" for number in re.findall(r"\b[Cc]heck (\d+)", text)]
    wanted += _ROW.findall(text)
    for place in wanted:
        if place not in places:
            yield Fault(line, f"{own}: {place}", "this page has no such place")


def _loose(line: int, text: str, claims: str | None, pages: dict[str, set[str]]) -> Iterator[Fault]:
    for problem, pattern in _LOOSE.items():
        for found in pattern.finditer(text):
            yield Fault(line, found[0], problem)
    for found in _SECTION.finditer(text):
        if not _PAPER.search(text[max(found.start() - 100, 0) : found.start()]):
            yield Fault(line, found[0], "names neither a page nor a paper")
    if _BARE_NUMBER.match(text):
        yield Fault(line, text, "names no page")
    for place in _ROW.findall(text):
        if claims is None:
            yield Fault(line, place, "names no page")
        else:
            yield from _unresolved(line, claims, place, pages)


def _numbered_tests(text: str, checks: str | None, pages: dict[str, set[str]]) -> Iterator[Fault]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and (found := _NUMBERED_TEST.match(node.name)):
            if checks is None:
                yield Fault(node.lineno, node.name, "the module names no page for its numbers")
            else:
                for number in found[1].split("_"):
                    yield from _unresolved(node.lineno, checks, f"check {int(number)}", pages)


def _names_a_paper(text: str, number: str) -> bool:
    """Whether a paper is named shortly before a section's number."""
    place = text.find(number)
    return bool(_PAPER.search(text[max(place - 100, 0) : place]))
