"""The figures that are written for papers are those of the page."""

import re

import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.report.figures import export
from fedjax_het.report.page import page, run_content


def shapes(drawn):
    """Paths and places of what is drawn, without the ids."""
    return re.findall(r' (?:d|x|y|transform|points)="[^"]*"', drawn)


def test_what_is_written_is_what_the_page_shows(make_run, tmp_path):
    content = run_content(make_run(steps=3, devices=3, joules=True, client_rows="own"))
    written = export(content.runs, content.results, tmp_path / "figures")
    shown = re.findall(r"<svg.*?</svg>", page(content), re.S)
    drawn = [path for path in written if path.suffix == ".svg"]
    assert len(shown) == len(drawn) == 13
    for inline, path in zip(shown, drawn, strict=True):
        text = re.sub(r"<metadata>.*?</metadata>", "", path.read_text(), flags=re.S)
        assert shapes(inline) == shapes(text)
        assert len(shapes(text)) > 20
    names = {path.stem for path in written}
    assert {"accuracy_vs_time", "accuracy_vs_joules", "timeline_0", "labels_by_client"} <= names
    for path in written:
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF-")
            assert path.with_suffix(".svg") in written
    again = export(content.runs, content.results, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]


def test_a_directory_that_cannot_be_made_is_named(make_run, tmp_path):
    content = run_content(make_run(steps=1))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"figures = .* cannot be made"):
        export(content.runs, content.results, tmp_path / "file")
