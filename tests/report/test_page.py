"""The page is one valid, self-contained file; a comparison writes the same bytes each time."""

import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.report import RunRecord, compare, embedding, write_report
from fedjax_het.report.page import comparison_page, run_page

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Checker(HTMLParser):
    """Collects what makes a page invalid or dependent on others."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self._attributes(attrs)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open:
            self.scripts.append(data)
        elif "style" not in self.open:
            self.text.append(data)

    def _attributes(self, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src"):
                self.references.append(value)
            if value and "url(" in value:
                self.references.append(value.split("url(")[1].split(")")[0])


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    assert len(set(checker.ids)) == len(checker.ids)
    inner = {r for r in checker.references if not r.startswith("data:image/png;base64,")}
    assert all(r.startswith("#") for r in inner), "an external resource"
    assert {r[1:] for r in inner} <= set(checker.ids)
    # What is run is what the package holds, each script by its digest; the data comes first.
    assert checker.scripts[1:] == [embedding.asset(name) for name in embedding.SCRIPTS]
    assert f'content="{embedding.policy(live=False)}"' in page
    assert "connect-src" not in page
    home = json.loads(embedding.asset("uPlot.json"))["source"]
    assert "http" not in page.replace("http-equiv", "").replace(home, "")
    assert not {"link", "iframe", "img"} & set(checker.tags)
    assert page.startswith("<!DOCTYPE html>")
    return checker


def test_the_page_of_a_comparison(two_methods):
    page = comparison_page(two_methods, [0.8, 0.9])
    checker = check(page)
    text = " ".join("".join(checker.text).split())
    assert "FedPMT reached 90 % test accuracy first, after 108 ± 6 s of virtual time" in text
    assert checker.tags.count("svg") == 10
    assert checker.tags.count("details") == 8
    assert "12: 4 in group 0" in text
    assert "digits: 1,348 training samples" in text
    assert "0123abc" in text
    assert "jax 0.10.2, numpy 2.4" in text
    assert "FedPMT skipped 29 % of the work" in text
    assert "FedAvg gave every device the same work per sample" in text
    assert len(page) < 1_000_000


def test_the_page_of_a_run(make_run, tmp_path):
    record = make_run("drop", deadline_s=8.0, targets=(0.9, 0.8), client_rows="classes")
    write_report(record, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page == run_page(record)
    text = " ".join("".join(check(page).text).split())
    assert "drop (seed 0) reached 90 % test accuracy after" in text
    assert "of the tasks were dropped" in text
    assert "drop cut no work, only tasks." in text
    assert "Client by client" in text
    assert "No client has test samples of its own" in text
    assert "speed-up" not in text
    assert "±" not in text


def test_the_page_of_regressions(two_regressions):
    page = comparison_page(two_regressions, [3.0])
    checker = check(page)
    text = " ".join("".join(checker.text).split())
    assert "FedPMT reached a test MAE of 3 first" in text
    assert "Further left is sooner, a lower MAE is better. " in text
    assert "The same values against server steps" in text
    assert "MAE of the worst-served tenth of the clients." in text
    assert "Client by client" in text
    assert "ccuracy" not in text
    assert checker.tags.count("svg") == 12


def test_everything_the_user_wrote_is_escaped(make_run):
    record = make_run(steps=2)
    evil = '<script>alert("1 & 2")</script>'
    config = {**record.config, "note": evil, "versions": {evil: evil}, "device": evil}
    summary = {
        **record.summary,
        "name": evil,
        "block_names": [evil, "$b$", "_c", "d"],
        "data": {**record.summary["data"], "name": evil},
    }
    page = comparison_page({evil: [replace(record, config=config, summary=summary)]}, [0.5])
    checker = check(page)
    assert checker.tags.count("script") == 1 + len(embedding.SCRIPTS)
    assert evil in "".join(checker.text)
    assert json.loads(checker.scripts[0])["methods"][0]["name"] == evil
    assert "<" not in checker.scripts[0]


def test_a_run_without_labels_targets_versions_or_worst_clients(make_run):
    record = make_run(steps=2, targets=())
    summary = {**record.summary, "data": {"name": "made up", "num_classes": None}}
    facts = replace(record.population, label_counts=None)
    metrics = [{k: v for k, v in m.items() if "worst" not in k} for m in record.metrics]
    page = run_page(RunRecord({}, metrics, record.clients, summary, facts))
    checker = check(page)
    assert checker.tags.count("svg") == 7
    text = "".join(checker.text)
    assert "not recorded" in text
    assert "Client by client" not in text


def test_what_is_vendored_is_what_its_authors_published():
    about = json.loads(embedding.asset("uPlot.json"))
    assert set(about["sha256"]) == {embedding.LIBRARY, embedding.LIBRARY_STYLE}
    for name, digest in about["sha256"].items():
        content = (embedding.ASSETS / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert name.endswith(".css") or f"v{about['version']}".encode() in content[:100]
    told = embedding.licence()
    assert f"uPlot {about['version']}, MIT licence, 52,938 bytes" in told
    assert "Permission is hereby granted, free of charge" in told


def test_a_large_comparison_stays_small(make_run):
    runs = {f"method {i}": [make_run(seed=i, devices=60, groups=60, steps=15)] for i in range(8)}
    page = comparison_page(runs, [0.9])
    check(page)
    assert len(page) < 3_000_000


def test_compare_writes_everything_and_the_same_each_time(two_methods, tmp_path):
    result = compare(two_methods, [0.9], tmp_path / "a")
    compare(two_methods, [0.9], tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "accuracy_vs_bytes_up.png",
        "accuracy_vs_round.png",
        "accuracy_vs_time.png",
        "accuracy_vs_wall_time.png",
        "comparison.json",
        "comparison.txt",
        "labels_by_client.png",
        "report.html",
        "timeline_0.png",
        "timeline_1.png",
        "trained_blocks.png",
        "waiting_by_group.png",
        "worst_clients_vs_time.png",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    text = (tmp_path / "a" / "comparison.txt").read_text()
    assert text == f"{result.headline}\n\n{result.table()}"
    data = json.loads((tmp_path / "a" / "comparison.json").read_text())
    assert data["headline"] == result.headline
    assert data["reference"] == "FedAvg"
    assert data["targets"] == [0.9]
    assert [m["name"] for m in data["methods"]] == ["FedAvg", "FedPMT"]
    assert data["methods"][1]["targets"][0]["speed_up"] == pytest.approx(2.0, abs=0.1)


def test_files_of_a_comparison_are_named_after_the_metric(make_run, tmp_path):
    metric = {"name": "my score/2", "higher_is_better": True, "share": False}
    runs = {"A": [make_run(steps=2, devices=3, metric=metric, targets=(), client_rows="own")]}
    compare(runs, [-1.0], tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"my_score_2_vs_time.png", "clients_0.png"} <= names
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert data["metric"] == metric
    assert data["methods"][0]["final_my score/2"]["std"] is None


def test_compare_refuses_before_it_writes(make_run, tmp_path):
    with pytest.raises(InputError, match="accuracy = 90: must be in"):
        compare({"a": [make_run(steps=1)]}, [90], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out_dir = .* cannot be made"):
        compare({"a": [make_run(steps=1)]}, [0.9], tmp_path / "file")
