"""The code blocks of a page of the documentation, run in their order.

    ```python, ```py, ```{code-cell} python    run, in one namespace for the page
    ```sh                                      each command is parsed, and started up to its problem
    ```csv                                     written to the file that a comment before it names
    ```text, directives of the site            nothing to run
    <!-- file: NAME -->                        the next block is written to this file, not run
    <!-- skip: next "REASON" -->               the next block is not run; or, in place of the
                                               reason, if(missing("LIBRARY"), reason="REASON")
    <!-- invisible-code-block: python ... -->  run, not shown: what a reader has and a test has not

A block of any other kind is an error.
"""

import importlib.util
import re
from pathlib import Path
from unittest import SkipTest

from doc_commands import run_command
from sybil import Document, Example, Lexeme, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

ROOT = Path(__file__).parents[1]
DIRECTIVES = ("{toctree}", "{include}", "{grid}", "{image}", "{figure}")

_run_python = PythonEvaluator()
_FENCE = RawFencedCodeBlockLexer(re.compile(r"(?P<info>[^\n]*)\n"))
_HIDDEN = DirectiveInHTMLCommentLexer("invisible-code-block", arguments="python")
_FILE = DirectiveInHTMLCommentLexer("file", arguments=r"\S+")


def parsed(page):
    """The page as a Sybil document, whose examples are to be evaluated in their order."""
    return Document.parse(str(page), _fences, _hidden, _Files(), SkipParser())


def run(page, after=None):
    """Runs the blocks of a page in the current directory.

    Args:
      page: path of the page.
      after: function of the namespace and the example, called after every block that was run.

    Returns:
      The namespace of the page.
    """
    document = parsed(page)
    document.namespace["missing"] = _missing
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest as reason:
            if len(str(reason)) < 10:
                raise ValueError(f"{page}: a block is skipped without a reason") from reason
            continue
        if after is not None:
            after(document.namespace, example)
    return document.namespace


def files(page):
    """The blocks that the page says to save, by the names of their files."""
    found, name = {}, None
    for example in parsed(page).examples():
        if isinstance(example.region.evaluator, _Files):
            name = example.parsed
        elif name is not None:
            found[name], name = str(example.parsed), None
    return found


def _missing(*modules):
    """Whether a library of an extra is not installed, for conditions of `skip`."""
    return any(importlib.util.find_spec(module) is None for module in modules)


def _fences(document):
    for region in _FENCE(document):
        info, source = region.lexemes["info"].strip(), region.lexemes["source"]
        where = f"{document.path}, {document.line_column(region.start)}"
        if info == "text" or info.startswith(DIRECTIVES):
            continue
        if info in ("python", "py", "{code-cell} python"):
            # Options of a cell are not code; as empty lines they keep the numbers of the others.
            code = re.sub(r"^:\w[\w-]*:.*$", "", source, flags=re.M)
            source = Lexeme(code, source.offset, source.line_offset)
            evaluate = _run_python
        elif info == "sh":
            evaluate = _run_commands
        elif info == "csv":
            evaluate = _needs_a_file
        else:
            raise ValueError(f"{where}: no test runs blocks of the kind {info!r}")
        yield Region(region.start, region.end, source, evaluate)


def _hidden(document):
    for region in _HIDDEN(document):
        yield Region(region.start, region.end, region.lexemes["source"], _run_python)


class _Files:
    """Writes a block to a file in place of running it."""

    def __init__(self):
        self.name = None

    def __call__(self, given):
        if isinstance(given, Document):
            return [
                Region(region.start, region.end, region.lexemes["arguments"], self)
                for region in _FILE(given)
            ]
        if given.region.evaluator is self:
            self.name = given.parsed
            given.document.push_evaluator(self)
        else:
            given.document.pop_evaluator(self)
            Path(self.name).write_text(given.parsed)
        return None


def _needs_a_file(example):
    raise ValueError(f"{example.path}, line {example.line}: a table without a file; name one")


def _run_commands(example: Example):
    for command in re.sub(r"\\\n", " ", example.parsed).splitlines():
        run_command(command, example.namespace)
